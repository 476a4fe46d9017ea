import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from flows.lineage.ledger import check_chain, has_head, head, holds, read
from stages.common import run_record
from tests.stage_sources import ROOT

STAGE = """
import sys
from pathlib import Path
from salf.errors import UserError
from stages.common.command import exit_code
def main(argv):
    mode = sys.argv[sys.argv.index("--mode") + 1]
    Path("seen").write_text("at work")
    if mode == "bad":
        raise UserError("rows.csv: no column 'label'")
    if mode == "bug":
        raise RuntimeError("worn bearing")
    if mode == "usage":
        sys.exit(2)
    if mode == "killed":
        import os, signal
        os.kill(os.getpid(), signal.SIGKILL)
if __name__ == "__main__":
    sys.exit(exit_code(main))
"""


@pytest.fixture
def ledger(tmp_path) -> Path:
    return tmp_path / "reports/lineage/records.jsonl"


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    return subprocess.run(
        ["git", "-C", folder, *identity, *arguments], check=True, capture_output=True, text=True
    ).stdout


def run_stage(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """``toystage`` as DVC would start it in ``folder``."""
    (folder / "toystage").mkdir(exist_ok=True)
    (folder / "toystage/__init__.py").touch()
    (folder / "toystage/__main__.py").write_text(STAGE)
    dvc = {"DVC_STAGE": "toy@a-1", "DVC_ROOT": str(folder)}
    path = {"PYTHONPATH": f"{ROOT}{os.pathsep}{folder}", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "toystage", *arguments]
    return subprocess.run(
        command, cwd=folder, env={**os.environ, **dvc, **path, **environment}, text=True, capture_output=True
    )


def test_each_line_holds_the_hash_of_the_line_before_as_sha256sum_says(ledger):
    for number in range(3):
        run_record.append(ledger, "note", {"number": number, "word": "Öl"})
    lines = ledger.read_bytes().splitlines(keepends=True)
    assert len(lines) == 3
    previous = "0" * 64
    for number, line in enumerate(lines, start=1):
        record = json.loads(line)
        assert (record["previous"], record["seq"]) == (previous, number)
        assert line.decode() == json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=False) + "\n"
        told = subprocess.run(["sha256sum"], input=line[:-1], capture_output=True, check=True).stdout
        previous = told.decode().split()[0]
    assert head(ledger).sha256 == previous
    assert holds(ledger, previous)
    assert check_chain(ledger) == []


@pytest.mark.parametrize(
    "tamper",
    [
        lambda lines: [lines[0], lines[1].replace(b'"number":1', b'"number":7'), *lines[2:]],
        lambda lines: [lines[0], *lines[2:]],
        lambda lines: lines[1:],
        lambda lines: [lines[0], lines[2], lines[1], lines[3]],
        lambda lines: [lines[0], lines[1], lines[1], *lines[2:]],
        lambda lines: [lines[0], b"{}\n", *lines[2:]],
    ],
    ids=["edited", "removed", "first removed", "reordered", "inserted", "emptied"],
)
def test_a_changed_line_breaks_the_chain(ledger, tamper):
    for number in range(4):
        run_record.append(ledger, "note", {"number": number})
    assert not check_chain(ledger)
    ledger.write_bytes(b"".join(tamper(ledger.read_bytes().splitlines(keepends=True))))
    assert check_chain(ledger)


@pytest.fixture
def three(ledger) -> Path:
    """A ledger of three records."""
    for number in range(3):
        run_record.append(ledger, "note", {"number": number})
    return ledger


def test_the_head_tells_how_many_records_there_are_and_the_newest_ones_hash(three):
    assert three.with_suffix(".head").read_text() == f"3 {head(three).sha256}\n"


@pytest.mark.parametrize(
    "tamper",
    [
        lambda lines: [*lines[:-1], lines[-1].replace(b'"number":2', b'"number":7')],
        lambda lines: lines[:-1],
        lambda lines: lines[:1],
        lambda lines: lines[:0],
    ],
    ids=["newest edited", "one cut off", "two cut off", "emptied"],
)
def test_an_edit_of_the_newest_record_and_a_cut_are_found_by_the_head_and_stay_so(three, tamper):
    noted = head(three).sha256
    three.write_bytes(b"".join(tamper(three.read_bytes().splitlines(keepends=True))))
    assert not holds(three, noted)
    for _ in range(4):  # records that come later hide nothing
        (fault,) = check_chain(three)
        assert "records.head tells of another end: the newest record was edited, or records were cut off" in fault.text
        run_record.append(three, "note", {})


def test_a_writer_killed_between_record_and_head_is_no_fault_and_the_next_one_mends_it(three):
    file = three.with_suffix(".head")
    before = file.read_bytes()
    run_record.append(three, "note", {"number": 3})
    file.write_bytes(before)
    assert check_chain(three) == []
    run_record.append(three, "note", {"number": 4})
    assert file.read_text() == f"5 {head(three).sha256}\n"
    assert check_chain(three) == []


def test_only_the_last_record_may_be_beyond_the_head_and_it_must_follow(three):
    file = three.with_suffix(".head")
    before = file.read_bytes()
    run_record.append(three, "note", {"number": 3})
    whole = three.read_bytes()
    run_record.append(three, "note", {"number": 4})
    file.write_bytes(before)
    assert len(check_chain(three)) == 1
    three.write_bytes(whole.replace(json.loads(whole.splitlines()[-1])["previous"].encode(), b"1" * 64))
    assert [fault.line for fault in check_chain(three)] == [4]


def test_a_ledger_from_before_there_were_heads_gets_one_with_its_next_record(three):
    file = three.with_suffix(".head")
    file.unlink()
    assert (check_chain(three), has_head(three)) == ([], False)
    run_record.append(three, "note", {})
    assert (check_chain(three), has_head(three)) == ([], True)


def test_a_head_that_finds_no_room_takes_its_record_back(three, monkeypatch):
    def full(path: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    before = three.read_bytes()
    monkeypatch.setattr(run_record, "_replace", full)
    with pytest.raises(OSError, match="No space left"):
        run_record.append(three, "note", {})
    assert three.read_bytes() == before
    assert check_chain(three) == []


def test_a_half_written_last_line_is_put_aside_and_the_chain_goes_on(ledger):
    run_record.append(ledger, "note", {"number": 1})
    whole = ledger.read_bytes()
    ledger.write_bytes(whole + whole[:40])
    assert [record["number"] for record in read(ledger)] == [1]
    run_record.append(ledger, "note", {"number": 2})
    assert [record["kind"] for record in read(ledger)] == ["note", "repair", "note"]
    assert read(ledger)[1]["cut_bytes"] == 40
    assert ledger.with_name("records.torn").read_bytes() == whole[:40] + b"\n"
    assert check_chain(ledger) == []


def test_processes_that_append_at_once_lose_nothing(ledger):
    code = (
        "import sys; from pathlib import Path; from stages.common.run_record import append\n"
        "for n in range(50): append(Path(sys.argv[1]), 'note', {'who': sys.argv[2], 'n': n, 'ballast': 'x' * 5000})"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, ledger, str(n)], cwd=ROOT) for n in range(4)]
    assert [writer.wait() for writer in writers] == [0] * 4
    assert check_chain(ledger) == []
    assert {(r["who"], r["n"]) for r in read(ledger)} == {(str(w), n) for w in range(4) for n in range(50)}


def test_a_writer_killed_at_any_moment_leaves_a_ledger_that_goes_on(ledger):
    code = (
        "import sys; from pathlib import Path; from stages.common.run_record import append\n"
        "while True: append(Path(sys.argv[1]), 'note', {'ballast': 'x' * 200_000})"
    )
    for _ in range(4):
        before = ledger.stat().st_size if ledger.exists() else 0
        writer = subprocess.Popen([sys.executable, "-c", code, ledger], cwd=ROOT)
        while not ledger.exists() or ledger.stat().st_size < before + 400_000:
            assert writer.poll() is None
        writer.kill()
        writer.wait()
    run_record.append(ledger, "note", {"last": True})
    assert read(ledger)[-1]["last"]
    assert check_chain(ledger) == []


def test_a_record_that_finds_no_room_leaves_the_ledger_as_it_was(ledger):
    run_record.append(ledger, "note", {"number": 1})
    before = ledger.read_bytes()
    code = (
        "import resource, signal, sys; from pathlib import Path; from stages.common.run_record import append\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))\n"
        "append(Path(sys.argv[1]), 'note', {'ballast': 'x' * 5000})"
    )
    # -B: a module that is compiled under the limit would be left cut off in the environment.
    ended = subprocess.run([sys.executable, "-B", "-c", code, ledger], cwd=ROOT, capture_output=True, text=True)
    assert "File too large" in ended.stderr
    assert ledger.read_bytes() == before


def test_a_stage_that_dvc_runs_is_recorded_from_start_to_end(tmp_path, ledger):
    git(tmp_path, "init", "--initial-branch=main")
    (tmp_path / "code.py").write_text("one")
    (tmp_path / ".gitignore").write_text("toystage\nseen\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--message=one")
    ended = run_stage(tmp_path, "--mode", "fine", "--seed", "7", SALF_FLOW_RUN="id-1", SALF_FLOW_RUN_NAME="red-fox")
    assert ended.returncode == 0, ended.stderr
    start, end = read(ledger)
    assert (start["kind"], end["kind"]) == ("start", "end")
    assert start["stage"] == "toy@a-1"
    assert start["command"] == ["python", "-m", "toystage", "--mode", "fine", "--seed", "7"]
    assert start["seed"] == 7
    assert start["commit"] == git(tmp_path, "rev-parse", "HEAD").strip()
    assert (start["branch"], start["detached"], start["shallow"], start["dirty"]) == ("main", False, False, False)
    assert (start["flow_run"], start["flow_run_name"]) == ("id-1", "red-fox")
    assert start["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert {"torch", "transformers", "dvc"} <= set(start["versions"])
    assert start["machine"]["cores"] >= 1
    assert (end["run"], end["status"]) == (start["run"], 0)
    assert end["seconds"] > 0


@pytest.mark.parametrize(("mode", "status"), [("bad", 2), ("bug", 1), ("usage", 2)])
def test_a_failed_stage_is_recorded_with_its_exit_status(tmp_path, ledger, mode, status):
    assert run_stage(tmp_path, "--mode", mode).returncode == status
    assert [record.get("status") for record in read(ledger)] == [None, status]


def test_a_killed_stage_is_a_start_without_an_end(tmp_path, ledger):
    assert run_stage(tmp_path, "--mode", "killed").returncode == -9
    assert [record["kind"] for record in read(ledger)] == ["start"]


def test_nothing_is_recorded_where_dvc_does_not_run_the_stage(tmp_path, ledger):
    assert run_stage(tmp_path, "--mode", "fine", DVC_STAGE="").returncode == 0
    assert not ledger.exists()


def test_a_stage_whose_start_cannot_be_recorded_does_not_begin(tmp_path, ledger):
    ledger.parent.parent.mkdir()
    ledger.parent.write_text("a file in the place of the folder")
    ended = run_stage(tmp_path, "--mode", "fine")
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: cannot record this run")
    assert len(ended.stderr.splitlines()) == 1
    assert not (tmp_path / "seen").exists()


def test_another_ledger_can_be_named(tmp_path, ledger):
    elsewhere = tmp_path / "else where/ledger.jsonl"
    assert run_stage(tmp_path, "--mode", "fine", SALF_LEDGER=str(elsewhere)).returncode == 0
    assert len(read(elsewhere)) == 2
    assert not ledger.exists()


def test_dirty_is_what_differs_from_the_commit_but_what_runs_write(tmp_path, ledger):
    git(tmp_path, "init", "--initial-branch=main")
    (tmp_path / ".gitignore").write_text("toystage\nseen\n")
    (tmp_path / "código fuente.py").write_text("one")
    (tmp_path / "scores.json").write_text("1")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--message=one")

    def state() -> tuple[bool, str | None]:
        run_stage(tmp_path, "--mode", "fine")
        start = [record for record in read(ledger) if record["kind"] == "start"][-1]
        return start["dirty"], start["dirty_files_sha256"]

    (tmp_path / "dvc.lock").write_text(
        "schema: '2.0'\nstages:\n  judge:\n    cmd: x\n    deps:\n    - path: código fuente.py\n      hash: md5\n"
        "    outs:\n    - path: scores.json\n      hash: md5\n"
    )
    (tmp_path / "scores.json").write_text("2")
    assert state() == (False, None)
    (tmp_path / "código fuente.py").write_text("two")
    content = hashlib.sha256(b"two").hexdigest()
    assert state() == (True, hashlib.sha256(f"{content} código fuente.py\n".encode()).hexdigest())
    (tmp_path / "código fuente.py").write_text("one")
    (tmp_path / "new.py").write_text("untracked")
    assert state()[0]


def test_a_detached_head_a_shallow_clone_and_no_repository_are_told(tmp_path):
    origin, clone, bare = tmp_path / "origin", tmp_path / "a clone", tmp_path / "no repository"
    origin.mkdir()
    bare.mkdir()
    git(origin, "init", "--initial-branch=main")
    for word in ("one", "two"):
        (origin / ".gitignore").write_text(f"toystage\nseen\n# {word}\n")
        git(origin, "add", ".")
        git(origin, "commit", f"--message={word}")
    git(tmp_path, "clone", "--depth=1", origin.as_uri(), str(clone))
    git(origin, "checkout", "--detach", "HEAD~1")
    starts = {}
    for folder in (origin, clone, bare):
        assert run_stage(folder, "--mode", "fine", GIT_CEILING_DIRECTORIES=str(tmp_path)).returncode == 0
        starts[folder] = read(folder / run_record.LEDGER)[0]
    assert (starts[origin]["detached"], starts[origin]["branch"], starts[origin]["shallow"]) == (True, None, False)
    assert starts[origin]["commit"] == git(origin, "rev-parse", "HEAD").strip()
    assert (starts[clone]["detached"], starts[clone]["branch"], starts[clone]["shallow"]) == (False, "main", True)
    assert {starts[bare][key] for key in ("commit", "branch", "detached", "shallow", "dirty")} == {None}


def test_no_variable_of_the_environment_and_no_path_is_recorded(tmp_path, ledger):
    run_stage(tmp_path, "--mode", "fine", AWS_SECRET_ACCESS_KEY="planted-4f1c", HF_TOKEN="planted-77aa")
    text = ledger.read_text()
    assert "planted" not in text
    assert str(tmp_path) not in text
    assert os.uname().nodename not in text


def test_writing_costs_a_stage_little():
    loaded = "import sys; import stages.common.run_record; print('\\n'.join(sys.modules))"
    told = subprocess.run([sys.executable, "-c", loaded], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    foreign = {name.partition(".")[0] for name in told.split()} - sys.stdlib_module_names - {"stages", "__main__"}
    assert {name for name in foreign if not name.startswith(("_", "sitecustomize", "usercustomize"))} == set()
    assert "importlib.metadata" not in told.split()
