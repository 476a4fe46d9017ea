"""What goes wrong on real machines: full disks, kills, two runs at once, rot, odd clones, odd clocks, odd names."""

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

import pytest
from dvc.dvcfile import Lockfile
from dvc.repo import Repo

from flows.lineage.ledger import Ledger
from flows.workspace import clear_torn
from tests.conftest import PROJECT, write_params
from tests.hard_project import FOLDER, PARTS, SOURCE, HardProject, kill_group

pytestmark = [pytest.mark.chain, pytest.mark.slow]

LEDGER = "reports/lineage/records.jsonl"


@pytest.fixture(scope="session")
def hard_template(tmp_path_factory) -> HardProject:
    """The project, made once; tests work on copies."""
    return HardProject.new(tmp_path_factory.mktemp("hard") / FOLDER)


@pytest.fixture
def hard(hard_template, tmp_path) -> HardProject:
    """A copy of the finished project, its hard links into the cache included."""
    root = tmp_path / FOLDER
    subprocess.run(["cp", "-a", str(hard_template.root), str(root)], check=True)
    return HardProject(root)


def records(project: HardProject) -> list[dict]:
    return [json.loads(line) for line in (project.root / LEDGER).read_text(encoding="utf-8").splitlines()]


def starts(project: HardProject) -> list[dict]:
    return [record for record in records(project) if record["kind"] == "start"]


def nothing_wrong(project: HardProject, *words: str) -> None:
    """No artifact is half there or mixed, and every good one that was made before is still in the cache."""
    there = project.outputs()
    possible = [project.expected(word) for word in words]
    first = {name: text for name, text in there.items() if name.startswith("out/first/")}
    assert first == {} or any(first.items() <= each.items() and len(first) == PARTS for each in possible)
    assert there.get("out/second.txt") in [None, *(each["out/second.txt"] for each in possible)]
    assert project.unsound() == []
    for text in project.expected(words[0]).values():
        assert project.object_of(text).exists()


# Kills


@pytest.mark.parametrize("number", range(20))
def test_a_run_killed_at_a_random_moment_spoils_nothing_and_the_next_one_finishes(hard, number):
    """Odd numbers kill the stage alone, even ones DVC with it: while it writes, ends, is stored, is locked."""
    hard.set("blue", pause=0.04)
    moment = random.Random(number).uniform(0, 1.4)
    with hard.start() as process:
        while "first at work" not in (line := process.stdout.readline()):
            assert line
        time.sleep(moment)
        kill_group(process, alone=number % 2 == 1)
        process.stdout.read()
    nothing_wrong(hard, "red", "blue")

    clear_torn(hard.root)
    done = hard.repro()
    assert done.returncode == 0, done.stdout + done.stderr
    assert hard.outputs() == hard.expected("blue")
    assert hard.unsound() == []
    assert Ledger(hard.root / LEDGER).faults == []


def test_whatever_a_kill_leaves_of_the_lock_file_dvc_reads_it_again(hard):
    """DVC writes dvc.lock in place: a kill may leave any beginning of it."""
    lock = hard.root / "dvc.lock"
    whole = lock.read_bytes()
    outcomes = set()
    with Repo(str(hard.root)) as repo:
        for cut in range(0, len(whole), 7):
            lock.write_bytes(whole[:cut])
            told = clear_torn(hard.root)
            assert lock.exists() == (told == [])
            Lockfile(repo, str(lock)).load()  # refuses what is torn
            outcomes.add(bool(told))
    assert outcomes == {True, False}
    lock.write_bytes(whole[: len(whole) // 2])
    assert hard.repro().returncode == 0
    assert lock.read_bytes() == whole
    assert hard.outputs() == hard.expected("red")


def test_a_lock_file_that_waits_for_a_merge_is_left_to_its_user(hard):
    conflict = "<<<<<<< HEAD\nschema: '2.0'\n=======\n>>>>>>> other\n"
    (hard.root / "dvc.lock").write_text(conflict)
    assert clear_torn(hard.root) == []
    assert (hard.root / "dvc.lock").read_text() == conflict


@pytest.mark.parametrize("torn", ["", '{"write": {"/a": {"pi'])
def test_a_torn_table_of_workers_stops_no_later_run(hard, torn):
    hard.set("blue")
    (hard.root / ".dvc/tmp/rwlock").write_text(torn)
    assert "rwlock" in hard.repro().stderr
    assert len(clear_torn(hard.root)) == 1
    assert clear_torn(hard.root) == []
    assert hard.repro().returncode == 0
    assert hard.outputs() == hard.expected("blue")


def test_a_killed_stage_is_a_start_without_an_end(hard):
    hard.set("blue", pause=1.0)
    with hard.start() as process:
        while "first at work" not in process.stdout.readline():
            pass
        kill_group(process, alone=True)
        process.stdout.read()
    last = records(hard)[-1]
    assert (last["kind"], last["stage"]) == ("start", "first")
    ended = {record["run"] for record in records(hard) if record["kind"] == "end"}
    assert last["run"] not in ended


# A full disk

FULL = """
set -u
mount -t tmpfs -o size=64k tmpfs .dvc/cache
"$1" -m dvc repro > full.log 2>&1; echo $? > full.status
cp -r .dvc/cache full.cache
cp -r out full.out
"$1" -m flows.lineage verify > verify.log 2>&1; echo $? > verify.status
mount -o remount,size=64m .dvc/cache
"$1" -m dvc repro > room.log 2>&1; echo $? > room.status
rm -rf out
"$1" -m dvc checkout > checkout.log 2>&1; echo $? > checkout.status
cp -r .dvc/cache room.cache
cp -rL out room.out  # the links end with this namespace
"""


def in_a_namespace(*command: str, **more) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(["unshare", "--map-root-user", *command], capture_output=True, text=True, **more)


@pytest.fixture
def namespaces() -> None:
    """Mounting needs a mount namespace of one's own."""
    if not shutil.which("unshare") or in_a_namespace("-m", "mount", "-t", "tmpfs", "tmpfs", "/mnt").returncode:
        pytest.skip("this system lets no user mount in a namespace of his own")


def test_a_full_cache_is_said_and_leaves_nothing_wrong_behind(hard, namespaces):
    hard.set("blue")
    shutil.rmtree(hard.root / ".dvc/cache")
    (hard.root / ".dvc/cache").mkdir()
    in_a_namespace("-m", "sh", "-c", FULL, "sh", sys.executable, cwd=hard.root, env=hard.environment)
    said = {name: (hard.root / name).read_text() for name in ("full.log", "verify.log")}
    status = {name: int((hard.root / f"{name}.status").read_text()) for name in ("full", "verify", "room", "checkout")}

    assert status["full"] != 0
    assert "No space left on device" in said["full.log"]
    # What was made lies in the workspace, whole; what the cache did not take is missing, and verify says so.
    for file in (hard.root / "full.out/first").iterdir():
        assert file.read_text() == hard.expected("blue")[f"out/first/{file.name}"]
    assert cache_copy(hard, "full.cache").unsound() == []
    assert status["verify"] == 1, said["verify.log"]
    assert "is missing" in said["verify.log"]
    # With room again the same command finishes, and all of it is in the cache.
    assert (status["room"], status["checkout"]) == (0, 0)
    shutil.rmtree(hard.root / "out")
    (hard.root / "room.out").rename(hard.root / "out")
    assert hard.outputs() == hard.expected("blue")
    room = cache_copy(hard, "room.cache")
    assert room.unsound() == []
    assert all(room.object_of(text).exists() for text in hard.expected("blue").values())


def cache_copy(project: HardProject, name: str) -> HardProject:
    """A project that has nothing but a copy of the cache, taken at some time."""
    copy = HardProject(project.root / f"{name}.project")
    shutil.copytree(project.root / name, copy.root / ".dvc/cache")
    return copy


# Two at once


def test_two_runs_at_once_give_one_good_result(hard):
    hard.set("blue", pause=0.1)
    processes = [hard.start(), hard.start()]
    told = [process.communicate()[0] for process in processes]
    codes = [process.returncode for process in processes]
    assert 0 in codes
    for code, text in zip(codes, told, strict=True):
        assert code == 0 or "is busy" in text or "Unable to acquire lock" in text, text
    nothing_wrong(hard, "red", "blue")
    assert hard.repro().returncode == 0
    assert hard.outputs() == hard.expected("blue")
    assert "Running stage" not in hard.repro().stdout
    assert Ledger(hard.root / LEDGER).faults == []


# Rot


@pytest.mark.parametrize("same_size_and_time", [False, True])
def test_a_corrupt_cache_object_is_found_and_made_again(hard, same_size_and_time):
    assert hard.lineage("record").returncode == 0
    assert hard.lineage("verify").returncode == 0
    good = hard.expected("red")["out/first/part-03.txt"]
    spoilt = hard.object_of(good)
    facts = spoilt.stat()
    spoilt.chmod(0o644)
    with spoilt.open("r+b") as file:
        file.write(b"RED")
        if not same_size_and_time:
            file.truncate(100)
    spoilt.chmod(0o444)  # as it was: DVC trusts what is write-protected
    if same_size_and_time:
        os.utime(spoilt, ns=(facts.st_atime_ns, facts.st_mtime_ns))

    found = hard.lineage("verify")
    assert found.returncode == 1
    assert hashlib.md5(good.encode()).hexdigest() in found.stdout
    done = hard.repro()
    assert done.returncode == 0, done.stdout + done.stderr
    assert hard.outputs() == hard.expected("red")
    assert hard.unsound() == []
    hard.lineage("record")
    assert hard.lineage("verify").returncode == 0


def test_a_corrupt_object_of_an_older_run_does_not_come_back(hard):
    """It is only in the cache: nothing in the workspace would tell."""
    hard.set("blue")
    assert hard.repro().returncode == 0
    spoilt = hard.object_of(hard.expected("red")["out/first/part-03.txt"])
    spoilt.chmod(0o644)
    spoilt.write_text("rotten")
    spoilt.chmod(0o444)
    assert hard.lineage("verify", "--whole-cache").returncode == 1
    hard.set("red")
    assert hard.repro().returncode == 0
    assert hard.outputs() == hard.expected("red")
    assert hard.unsound() == []


# A renamed parameter


def test_a_renamed_parameter_runs_its_stage_again_and_the_stage_says_what_is_wrong(hard):
    hard.set("red", key="colour")
    done = hard.repro()
    assert done.returncode != 0
    assert "Running stage 'first'" in done.stdout
    hard.set("red")
    assert hard.repro().returncode == 0
    assert hard.outputs() == hard.expected("red")


def test_the_real_stages_name_a_renamed_parameter_in_one_line(tmp_path):
    text = write_params(tmp_path).read_text(encoding="utf-8")
    assert "  bootstrap: 200" in text
    (tmp_path / "params.yaml").write_text(text.replace("  bootstrap: 200", "  resamples: 200"), encoding="utf-8")
    command = [sys.executable, "-m", "stages.fit", "--traces", "traces", "--law", "law.json", "--gains", "gains.csv"]
    env = {**os.environ, "PYTHONPATH": str(PROJECT)}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 2
    assert "fit.resamples" in done.stderr
    assert all(line.startswith("error: ") for line in done.stderr.splitlines())


# Odd checkouts: what the record says is what git says


def run_again(project: HardProject) -> dict:
    """Force the first stage, and return the record of its start."""
    done = project.repro("--force", "--single-item", "first")
    assert done.returncode == 0, done.stdout + done.stderr
    return starts(project)[-1]


def test_a_detached_head_is_recorded_with_its_commit(hard):
    hard.git("checkout", "-q", "--detach")
    start = run_again(hard)
    assert start["commit"] == hard.git("rev-parse", "HEAD").strip()
    assert (start["detached"], start["branch"], start["shallow"]) == (True, None, False)
    hard.git("checkout", "-q", "main")
    start = run_again(hard)
    assert (start["detached"], start["branch"]) == (False, "main")


def test_a_shallow_clone_runs_and_is_recorded_as_one(hard, tmp_path):
    hard.commit("second")
    clone = HardProject(tmp_path / "clone ü")
    hard.git("clone", "-q", "--depth", "1", f"file://{hard.root}", str(clone.root))
    start = run_again(clone)
    assert start["shallow"] is True
    assert start["commit"] == hard.git("rev-parse", "HEAD").strip()
    assert start["dirty"] is False
    assert clone.repro().returncode == 0
    assert clone.outputs() == clone.expected("red")


def test_a_dirty_tree_is_recorded_and_told_apart_by_its_edits(hard):
    clean = run_again(hard)
    assert hard.git("status", "--porcelain") == ""
    assert (clean["dirty"], clean["dirty_files_sha256"]) == (False, None)
    source = hard.root / "stage.py"
    text = source.read_text()
    seen = set()
    for edit in ("# one\n", "# two\n", "# one\n"):
        source.write_text(text + edit)
        start = run_again(hard)
        assert start["dirty"] is True
        assert start["commit"] == clean["commit"]
        seen.add(start["dirty_files_sha256"])
    assert len(seen) == 2
    source.write_text(text)
    (hard.root / "new.py").write_text("")
    assert run_again(hard)["dirty"] is True


# The clock

BACKWARDS = """
import sys
from datetime import datetime, timedelta
from pathlib import Path
from salf import ledger

class Backwards(datetime):
    @classmethod
    def now(cls, tz=None):
        return datetime.now(tz) - timedelta(days=int(sys.argv[2]))

ledger.datetime = Backwards
ledger.append(Path(sys.argv[1]), ledger.Repair(cut_bytes=0))
"""


def test_records_keep_their_order_when_the_clock_goes_backwards(hard):
    for days in (0, 400, 1):
        assert hard.python("-c", BACKWARDS, LEDGER, str(days)).returncode == 0
    run_again(hard)
    ledger = hard.root / LEDGER
    times = [datetime.fromisoformat(record["at"]) for record in records(hard)]
    assert times != sorted(times)
    assert [record["seq"] for record in records(hard)] == list(range(1, len(times) + 1))
    assert Ledger(ledger).faults == []
    assert len(Ledger(ledger).hashes) == len(times)


def test_an_edit_is_noticed_though_its_time_is_before_the_last_run(hard):
    """Same size, and older than what it replaces, as after a clock was set back."""
    file = hard.root / SOURCE
    before = file.stat().st_mtime_ns
    file.write_text("war\n")
    os.utime(file, ns=(before - 10**15, before - 10**15))
    assert hard.repro().returncode == 0
    assert hard.outputs() == hard.expected("red", raw="war\n")


# Names


def test_spaces_and_letters_beyond_ascii_in_names(hard):
    assert " " in str(hard.root)
    assert not str(hard.root).isascii()
    assert not SOURCE.isascii()
    shutil.rmtree(hard.root / "out")
    done = hard.repro()
    assert done.returncode == 0
    assert "Running stage" not in done.stdout
    assert hard.outputs() == hard.expected("red")
    assert hard.lineage("record").returncode == 0
    verified = hard.lineage("verify")
    assert verified.returncode == 0, verified.stdout + verified.stderr
    shown = hard.lineage("show", "out/second.txt")
    assert shown.returncode == 0, shown.stderr
    assert Path(SOURCE).name in shown.stdout
    assert "Traceback" not in shown.stderr
