"""However a run ends, at the terminal or killed, nothing goes on working: real commands in processes of their own."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from flows.processes import listen_again
from tests.stage_sources import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

STAGE = """
import os, pathlib, sys, time
from stages.common.command import exit_code
def work(_argv):
    pathlib.Path("calls").mkdir(exist_ok=True)
    pathlib.Path("calls/pids").write_text(str(os.getpid()))
    time.sleep(600)
sys.exit(exit_code(work))
"""


class Command:
    """A command in the toy project, and whatever descends from it, known by a variable of their environment."""

    def __init__(self, root: Path, *words: str) -> None:
        self.root = root
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("PREFECT")},
            "PREFECT_HOME": str(root / ".prefect"),
            "PYTHONPATH": str(ROOT),
        }
        pipe: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        self.process = subprocess.Popen(
            words, cwd=root, env=self.environment, start_new_session=True, preexec_fn=listen_again, **pipe
        )

    def family(self) -> list[psutil.Process]:
        return [process for process in psutil.process_iter() if self._ours(process)]

    def _ours(self, process: psutil.Process) -> bool:
        try:
            ours = process.environ().get("PREFECT_HOME") == self.environment["PREFECT_HOME"]
            return ours and process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False

    def until(self, condition: Callable[[], Any], seconds: float = 240) -> Any:
        deadline = time.monotonic() + seconds
        while not (found := condition()):
            assert time.monotonic() < deadline, "it did not come to pass"
            time.sleep(0.1)
        return found

    def at_work(self) -> None:
        """Wait until the toy's stage works, whose ids it notes."""
        self.until(lambda: self.process.poll() is not None or (self.root / "calls/pids").exists())
        assert self.process.poll() is None, self.process.stdout.read()

    def ends(self) -> tuple[int, list[str]]:
        """Its status and lines, once nothing of it is left."""
        lines = self.process.communicate(timeout=120)[0].splitlines()
        self.until(lambda: not self.family(), 60)
        return self.process.returncode, lines


@pytest.fixture
def command(toy) -> Iterator[Callable[..., Command]]:
    started = []

    def start(*words: str) -> Command:
        started.append(Command(toy.root, *words))
        return started[-1]

    yield start
    for one in started:
        for process in one.family():
            process.kill()
        one.process.kill()
        one.process.communicate()


def interrupt(one: Command) -> None:
    """Ctrl-C at a terminal: the whole foreground group gets it."""
    os.killpg(one.process.pid, signal.SIGINT)


FLOW = (sys.executable, "-m", "flows.pipeline", "--set", "word=other")
HOLD = (sys.executable, "-m", "flows.workspace", "dvc", "repro")


def make(target: str) -> tuple[str, ...]:
    """The project's own Makefile, with an environment that counts as installed."""
    return ("make", "-f", str(ROOT / "Makefile"), target, "LOCKED=x", "VENV=venv")


@pytest.fixture
def installed(toy) -> None:
    (toy.root / "venv").mkdir()
    (toy.root / "venv/.installed-x").touch()


@pytest.mark.parametrize("words", [FLOW, HOLD])
@pytest.mark.parametrize("ends", ["Ctrl-C", "SIGTERM"])
def test_an_interrupted_run_leaves_no_stage_no_server_and_no_override(toy, command, words, ends):
    toy.single("hang")
    before = (toy.root / "params.yaml").read_bytes()
    run = command(*words)
    run.at_work()
    interrupt(run) if ends == "Ctrl-C" else run.process.terminate()
    status, lines = run.ends()
    assert status == {"Ctrl-C": 130, "SIGTERM": 143}[ends]
    assert not any("Traceback" in line for line in lines), lines
    assert [line for line in lines if line.startswith("error")] == (
        ["error: interrupted; run again to resume"] if ends == "Ctrl-C" else []
    )
    assert (toy.root / "params.yaml").read_bytes() == before


@pytest.mark.parametrize("ends", ["second Ctrl-C", "SIGKILL"])
def test_a_run_that_ends_at_once_leaves_nothing_at_work_and_make_audit_takes_back_its_override(
    toy, command, installed, ends
):
    toy.single("deaf")
    before = (toy.root / "params.yaml").read_bytes()
    run = command(*FLOW)
    run.at_work()
    if ends == "SIGKILL":
        run.process.kill()
    else:
        while run.process.poll() is None:  # the stage does not listen, so the run waits for it
            interrupt(run)
            time.sleep(0.2)
    status, _ = run.ends()
    assert status == {"second Ctrl-C": 130, "SIGKILL": -9}[ends]
    assert (toy.root / "params.yaml").read_bytes() != before
    _, lines = command(*make("audit")).ends()
    assert "removed the parameter overrides of a killed run" in lines
    assert (toy.root / "params.yaml").read_bytes() == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_killing_make_run_alone_leaves_no_stage_at_work(toy, command, installed, number):
    toy.single("hang")
    run = command(*make("run"))
    run.at_work()
    run.process.send_signal(number)
    run.ends()


@pytest.mark.parametrize("shell", ["/bin/sh", "bash"])  # by which DVC calls a stage: dash stays, bash becomes the stage
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_killing_dvc_repro_alone_leaves_no_stage_at_work(toy, command, monkeypatch, number, shell):
    monkeypatch.setenv("SHELL", shell)
    (toy.root / "stage.py").write_text(STAGE)
    (toy.root / "dvc.yaml").write_text("stages: {only: {cmd: python stage.py, deps: [stage.py]}}")
    run = command(sys.executable, "-m", "dvc", "repro")
    run.at_work()
    run.process.send_signal(number)
    run.ends()
