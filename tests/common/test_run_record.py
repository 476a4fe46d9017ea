import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from flows.lineage.ledger import read_records
from salf.ledger import LEDGER
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


def records(ledger: Path):
    return list(read_records(ledger))


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


def test_a_stage_that_dvc_runs_is_recorded_from_start_to_end(tmp_path, ledger):
    git(tmp_path, "init", "--initial-branch=main")
    (tmp_path / "code.py").write_text("one")
    (tmp_path / ".gitignore").write_text("toystage\nseen\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--message=one")
    ended = run_stage(tmp_path, "--mode", "fine", "--seed", "7", SALF_FLOW_RUN="id-1", SALF_FLOW_RUN_NAME="red-fox")
    assert ended.returncode == 0, ended.stderr
    start, end = records(ledger)
    assert (start.kind, end.kind) == ("start", "end")
    assert start.stage == "toy@a-1"
    assert start.command == ["python", "-m", "toystage", "--mode", "fine", "--seed", "7"]
    assert start.seed == 7
    assert start.commit == git(tmp_path, "rev-parse", "HEAD").strip()
    assert (start.branch, start.detached, start.shallow, start.dirty) == ("main", False, False, False)
    assert (start.flow_run, start.flow_run_name) == ("id-1", "red-fox")
    assert start.versions["python"] == ".".join(map(str, sys.version_info[:3]))
    assert {"torch", "transformers", "dvc"} <= set(start.versions)
    assert start.machine.cores >= 1
    assert (end.run, end.status) == (start.run, 0)
    assert end.seconds > 0


@pytest.mark.parametrize("graph", ["stages: [", "stages: {}", "[]", "stages: {toy: {outs: ['se${item.x}n']}}"])
def test_a_graph_that_is_being_edited_costs_no_finished_run(tmp_path, ledger, graph):
    (tmp_path / "dvc.yaml").write_text(graph)
    ended = run_stage(tmp_path, "--mode", "fine", "seen")
    assert (ended.returncode, ended.stderr) == (0, "")
    (_, end) = records(ledger)
    content = hashlib.md5(b"at work").hexdigest()
    assert end.outputs == ({"seen": content} if "item" in graph else {})


@pytest.mark.parametrize(("mode", "status"), [("bad", 2), ("bug", 1), ("usage", 2)])
def test_a_failed_stage_is_recorded_with_its_exit_status(tmp_path, ledger, mode, status):
    assert run_stage(tmp_path, "--mode", mode).returncode == status
    assert [getattr(record, "status", None) for record in records(ledger)] == [None, status]


def test_a_killed_stage_is_a_start_without_an_end(tmp_path, ledger):
    assert run_stage(tmp_path, "--mode", "killed").returncode == -9
    assert [record.kind for record in records(ledger)] == ["start"]


@pytest.mark.parametrize("variable", [{"DVC_STAGE": ""}, {"RANK": "1"}])
def test_nothing_is_recorded_where_dvc_does_not_run_the_stage_or_another_rank_records_it(tmp_path, ledger, variable):
    assert run_stage(tmp_path, "--mode", "fine", **variable).returncode == 0
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
    assert len(records(elsewhere)) == 2
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
        start = [record for record in records(ledger) if record.kind == "start"][-1]
        return start.dirty, start.dirty_files_sha256

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
        starts[folder] = records(folder / LEDGER)[0]
    assert (starts[origin].detached, starts[origin].branch, starts[origin].shallow) == (True, None, False)
    assert starts[origin].commit == git(origin, "rev-parse", "HEAD").strip()
    assert (starts[clone].detached, starts[clone].branch, starts[clone].shallow) == (False, "main", True)
    assert {getattr(starts[bare], key) for key in ("commit", "branch", "detached", "shallow", "dirty")} == {None}


def test_no_variable_of_the_environment_and_no_path_is_recorded(tmp_path, ledger):
    run_stage(tmp_path, "--mode", "fine", AWS_SECRET_ACCESS_KEY="planted-4f1c", HF_TOKEN="planted-77aa")
    text = ledger.read_text()
    assert "planted" not in text
    assert str(tmp_path) not in text
    assert os.uname().nodename not in text


def test_recording_loads_no_library_but_pydantic():
    code = "import sys; import stages.common.run_record; print(*sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    loaded = {name.partition(".")[0] for name in said.split()}
    assert loaded >= {"pydantic", "stages"}
    assert not loaded & {"dvc", "numpy", "pandas", "prefect", "rich", "ruamel", "torch", "transformers"}
