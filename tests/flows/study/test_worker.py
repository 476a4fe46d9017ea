"""A process that runs stages one after the other."""

import json
import subprocess
import sys

import pytest

from flows.study.apart import commands_of
from flows.study.description import StudyError
from flows.study.workers import Workers
from tests.conftest import PROJECT

MODULES = {
    "says": "import os, sys\nprint(*sys.argv[1:])\nprint(os.getpid(), file=open('pid', 'w'))\n",
    "refuses": "import sys\nprint('error: not so', file=sys.stderr)\nsys.exit(2)\n",
    "breaks": "1 / 0\n",
    "dies": "import os\nos._exit(7)\n",
    "is_killed": "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n",
}


@pytest.fixture
def folders(tmp_path, monkeypatch):
    for name, text in MODULES.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    folders = [tmp_path / "a job", tmp_path / "another"]
    for folder in folders:
        folder.mkdir()
    return folders


@pytest.fixture
def worker(folders):
    workers = Workers(PROJECT, 1)
    yield workers
    workers.stop()


def test_commands_run_in_their_folders_in_one_process(worker, folders):
    for folder in folders:
        worker.run(folder, [["says", "one"], ["says", "two", "three"]])
        assert (folder / "log").read_text().split() == ["one", "two", "three"]
    one, other = ((folder / "pid").read_text() for folder in folders)
    assert one == other


def test_the_first_command_that_fails_ends_the_job_and_its_last_line_is_told(worker, folders):
    with pytest.raises(StudyError, match=r"^not so$"):
        worker.run(folders[0], [["refuses"], ["says", "never"]])
    assert "never" not in (folders[0] / "log").read_text()
    with pytest.raises(StudyError, match="ZeroDivisionError"):
        worker.run(folders[0], [["breaks"]])
    worker.run(folders[0], [["says", "again"]])


def test_a_worker_that_dies_is_told_and_another_takes_its_place(worker, folders):
    with pytest.raises(StudyError, match="its process ended with 7"):
        worker.run(folders[0], [["dies"]])
    with pytest.raises(StudyError, match=r"its process ended with -9 \(killed; if memory ran out: fewer --workers\)"):
        worker.run(folders[0], [["is_killed"]])
    worker.run(folders[1], [["says", "again"]])


def test_what_a_stage_prints_is_no_answer(folders):
    job = json.dumps({"folder": str(folders[0]), "commands": [["says", "{}"]]})
    done = subprocess.run(
        [sys.executable, "-m", "flows.study.worker"],
        input=job + "\n",
        cwd=PROJECT,
        env={"PYTHONPATH": f"{PROJECT}:{folders[0].parent}"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == {"status": 0, "said": "{}\n"}


def test_commands_are_those_of_the_graph():
    commands = commands_of(PROJECT)
    assert commands["trace"][:3] == ["stages.trace", "--base", "data/base"]
    assert "${item.method}" in commands["finetune"]
