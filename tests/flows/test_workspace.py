import contextlib
import os
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest

from flows.workspace import WORKSPACE, WorkspaceBusyError, sole_run, stop_leftovers
from tests.stage_sources import ROOT

HOLD = """
import subprocess, sys, time
from pathlib import Path
from flows.workspace import sole_run
with sole_run(Path(sys.argv[1]), "early-bird") as hold:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], pass_fds=[hold.descriptor])
    print(child.pid, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the workspace, with a child that inherited the lock."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    child = int(process.stdout.readline())
    yield process, child
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)  # first: it holds the pipe open
    process.kill()
    process.communicate()


def test_a_second_run_is_refused_and_told_of_the_first(tmp_path, holder):
    process, _ = holder
    with (
        pytest.raises(WorkspaceBusyError, match=rf"'early-bird' \(process {process.pid}\).*--wait"),
        sole_run(tmp_path, "latecomer"),
    ):
        pass


def test_a_killed_run_frees_the_workspace_once_its_children_have_ended(tmp_path, holder):
    process, child = holder
    process.kill()
    process.wait()
    order: list[str] = []
    said: list[str] = []

    def child_ends():
        order.append("child ends")
        os.kill(child, signal.SIGKILL)

    ending = threading.Timer(1.5, child_ends)
    ending.start()
    with sole_run(tmp_path, "next", tell=said.append):
        order.append("next starts")
    ending.join()
    assert order == ["child ends", "next starts"]
    holder_of_then = f"the run 'early-bird' (process {process.pid})"
    assert said == [
        f"waiting: {holder_of_then} was killed, and its stages are still ending in this folder",
        f"{holder_of_then} was killed",
    ]


def test_children_of_a_killed_run_that_do_not_end_are_not_waited_for_for_ever(tmp_path, holder, monkeypatch):
    process, _ = holder
    process.kill()
    process.wait()
    monkeypatch.setattr("flows.workspace.ENDING_SECONDS", 0.5)
    with pytest.raises(WorkspaceBusyError, match=r"'early-bird'.* was killed.*--wait"), sole_run(tmp_path, "too soon"):
        pass


def test_a_waiting_run_says_so_once_and_starts_after_the_first(tmp_path):
    order: list[str] = []
    said: list[str] = []
    with sole_run(tmp_path, "first"):
        second = threading.Thread(target=lambda: _enter(tmp_path, order, said))
        second.start()
        time.sleep(1.5)
        order.append("first ends")
    second.join(timeout=10)
    assert order == ["first ends", "second starts"]
    assert said == [f"waiting: the run 'first' (process {os.getpid()}) is working in this folder"]


def _enter(root, order: list[str], said: list[str]) -> None:
    with sole_run(root, "second", wait=True, tell=said.append):
        order.append("second starts")


def test_the_lock_is_free_again_after_a_failure(tmp_path):
    with pytest.raises(ValueError, match="spoiled"), sole_run(tmp_path, "one"):
        raise ValueError("spoiled")
    with sole_run(tmp_path, "two"):
        pass


def test_a_run_that_ended_by_itself_did_not_die(tmp_path):
    said: list[str] = []
    with sole_run(tmp_path, "one", tell=said.append):
        pass
    with contextlib.suppress(ValueError), sole_run(tmp_path, "two", tell=said.append):
        raise ValueError
    with sole_run(tmp_path, "three", tell=said.append):
        pass
    assert said == []


def test_what_a_dead_run_left_at_work_is_ended_and_nothing_else(tmp_path):
    def sleeper(project) -> subprocess.Popen:
        code = [sys.executable, "-c", "import time; time.sleep(600)"]
        return subprocess.Popen(code, env={**os.environ, WORKSPACE: str(project)}, start_new_session=True)

    left, other = sleeper(tmp_path), sleeper(tmp_path / "other")
    try:
        assert stop_leftovers(tmp_path) == [left.pid]
        assert not psutil.pid_exists(left.pid)
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


KILLED = """
import os, signal, sys
from pathlib import Path
from flows.overrides import overridden
from flows.workspace import sole_run
with sole_run(Path(), "early-bird"), overridden(Path(), {"word": "other"}):
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_make_run_takes_back_the_overrides_of_a_killed_flow_and_is_refused_while_one_works(toy):
    before = (toy.root / "params.yaml").read_bytes()
    there = {"cwd": toy.root, "env": {**os.environ, "PYTHONPATH": str(ROOT)}, "capture_output": True, "text": True}
    assert subprocess.run([sys.executable, "-c", KILLED], **there).returncode == -signal.SIGKILL
    assert (toy.root / "params.yaml").read_bytes() != before
    clear = [sys.executable, "-m", "flows.workspace"]
    cleared = subprocess.run(clear, **there)
    assert cleared.returncode == 0, cleared.stderr
    assert "removed the parameter overrides" in cleared.stderr
    assert (toy.root / "params.yaml").read_bytes() == before
    with sole_run(toy.root, "at work"):
        refused = subprocess.run(clear, **there)
    assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1)
    assert "'at work'" in refused.stderr
