"""One run at a time in a workspace, and a clear workspace for it: two runs would overwrite each other's outputs.

``make run`` and ``make audit`` call this module to clear away what a killed run left.
"""

import argparse
import contextlib
import fcntl
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import psutil
from dvc.schema import COMPILED_LOCKFILE_SCHEMA
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from voluptuous import Invalid

from flows import report
from flows.overrides import take_back
from flows.processes import GRACE_SECONDS, end_cleanly, run_streaming, stop_family
from salf.children import end_with
from salf.errors import BAD_INPUT, INTERRUPTED, UserError
from stages import QUIET

LOCK_FILE: Final = Path(".dvc/tmp/flow.lock")  # git-ignored by DVC's own rules
WORKSPACE: Final = "SALF_WORKSPACE"  # marks the processes that work in a project for its flows
ENDING_SECONDS: Final = 2 * GRACE_SECONDS + 5  # the most that a killed run's guard takes to end its stages
_POLL_SECONDS: Final = 1.0
_WRITING_SECONDS: Final = 0.5  # a living DVC has written its file by then


class WorkspaceBusyError(UserError):
    """Another run holds the workspace; the text names it."""


class Holder(NamedTuple):
    """A run that works in a workspace."""

    run: str
    pid: int


@dataclass(frozen=True)
class Workspace:
    """A held workspace: the state that all tasks of a run share."""

    project: Path
    environment: Mapping[str, str]
    descriptor: int  # of the workspace's lock, to hand on to children
    flow_run: str | None = None  # Prefect's id, if it is a flow run

    def run(self, command: list[str], on_line: Callable[[str], None], timeout: float | None = None) -> int:
        """Run a command here until it ends; see :func:`flows.processes.run_streaming`."""
        return run_streaming(command, self.project, self.environment, on_line, timeout, [self.descriptor])


def stage_environment(inherited: Mapping[str, str]) -> dict[str, str]:
    """Return ``inherited`` with this interpreter first on PATH, unbuffered output and no telemetry.

    A flow runs DVC in this environment, and DVC its stages: ``python`` in a stage's command is then the interpreter
    of the flow, even if its environment is not activated.
    """
    path = os.pathsep.join([str(Path(sys.executable).parent), inherited.get("PATH", os.defpath)])
    return {**inherited, **QUIET, "PATH": path, "PYTHONUNBUFFERED": "1"}


@contextmanager
def sole_run(
    project: Path,
    run_name: str,
    wait: bool = False,
    tell: Callable[[str], None] = print,
    flow_run: str | None = None,
) -> Iterator[Workspace]:
    """Hold the workspace for one run; ``tell`` is called with a line for each thing that a killed run left there.

    These are processes, half-written files of DVC's, and overrides: all are cleared away first.
    The lock is the operating system's: it ends with the last process that has the descriptor, so a killed run
    leaves none. A child that inherits the descriptor keeps the lock while it lives. For the children of a killed
    run this waits, because their guard is ending them.
    """
    path = project / LOCK_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _take(descriptor, wait, tell)
        died = _holder(descriptor)
        _write(descriptor, json.dumps(Holder(run_name, os.getpid())._asdict()))
        environment = {**stage_environment(os.environ), WORKSPACE: str(project)}
        if flow_run:  # for the stages' records
            environment |= {"SALF_FLOW_RUN": flow_run, "SALF_FLOW_RUN_NAME": run_name}
        try:
            if died:
                tell(f"the run {died.run!r} (process {died.pid}) was killed")
            for pid in stop_leftovers(project):
                tell(f"ended process {pid}, left running by a run that no longer exists")
            for line in clear_torn(project):
                tell(line)
            if take_back(project):
                tell("removed the parameter overrides of a killed run")
            yield Workspace(project, environment, descriptor, flow_run)
        finally:
            _write(descriptor, "")  # a record that stays tells the next run that this one was killed
    finally:
        os.close(descriptor)


def stop_leftovers(project: Path) -> list[int]:
    """End the processes of a dead run that still work in this project, and return their ids.

    Call it while holding the workspace, before starting a process.
    """
    mine = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    left = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):  # another user's, or gone
            if process.pid not in mine and process.environ().get(WORKSPACE) == str(project):
                left.append(process.pid)
    for pid in left:
        stop_family(pid)
    return left


def clear_torn(project: Path) -> list[str]:
    """Move or remove files that a killed DVC left half-written; returns a sentence for each.

    DVC rewrites ``.dvc/tmp/rwlock`` (who works on what) and ``dvc.lock`` in place, and refuses to run while one
    of them is torn. Neither is needed: a torn ``rwlock`` names no living process, and DVC's cache of runs restores
    every finished stage to an empty ``dvc.lock`` without running it.
    """
    found = []
    workers, lock = project / ".dvc/tmp/rwlock", project / "dvc.lock"
    if _is_torn(workers, json.loads):
        time.sleep(_WRITING_SECONDS)
        if _is_torn(workers, json.loads):
            workers.unlink(missing_ok=True)
            found.append(".dvc/tmp/rwlock: half-written by a DVC that was killed; removed")
    if _is_torn(lock, _check_lock):
        lock.replace(lock.with_name("dvc.lock.torn"))
        found.append("dvc.lock: half-written by a killed DVC; moved to dvc.lock.torn, DVC rebuilds it from its cache")
    return found


def _is_torn(path: Path, check: Callable[[bytes], object]) -> bool:
    try:
        check(path.read_bytes())
    except FileNotFoundError:
        return False
    except (YAMLError, ValueError, Invalid):
        return True
    return False


def _check_lock(content: bytes) -> None:
    if b"<<<<<<< " not in content:  # a merge that a person has to finish: DVC says so
        COMPILED_LOCKFILE_SCHEMA(YAML(typ="safe", pure=True).load(content.decode()))


def _take(descriptor: int, wait: bool, tell: Callable[[str], None]) -> None:
    announced = False
    patience = time.monotonic() + ENDING_SECONDS
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(descriptor)
        # Without a record, the other took the lock a moment ago and has not written yet.
        named = f"the run {holder.run!r} (process {holder.pid})" if holder else "another run"
        ending = holder is not None and not _lives(holder.pid)
        state = f"{named} {'was killed, and its stages are still ending' if ending else 'is working'} in this folder"
        if not wait and (not ending or time.monotonic() >= patience):
            raise WorkspaceBusyError(f"{state}; wait for it (flows do so with --wait)")
        if not announced:
            tell(f"waiting: {state}")
            announced = True
        time.sleep(_POLL_SECONDS)


def _lives(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    return False


def _holder(descriptor: int) -> Holder | None:
    try:
        return Holder(**json.loads(os.pread(descriptor, 4096, 0)))
    except (ValueError, TypeError):
        return None


def _write(descriptor: int, text: str) -> None:
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, text.encode(), 0)


def main() -> int:
    """Clear the workspace from a command line, and run a command in it; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m flows.workspace",
        description="Clear away what a killed run left in this folder, then run a command while no other run works "
        "here. The command ends with this process. Refused while another run works here.",
        epilog="example: python -m flows.workspace dvc repro plan",
    )
    parser.add_argument("command", nargs=argparse.REMAINDER, help="none: clear away only")
    command = parser.parse_args().command
    if "MAKELEVEL" in os.environ:
        end_with(os.getppid())  # make does not wait for us when it is killed
    end_cleanly()
    try:
        with sole_run(Path.cwd(), " ".join(command) or "make run", tell=partial(print, file=sys.stderr)) as held:
            return held.run(command, partial(print, flush=True)) if command else 0
    except UserError as error:
        return report(str(error), BAD_INPUT)
    except KeyboardInterrupt:
        return report("interrupted; run again to resume", INTERRUPTED)


if __name__ == "__main__":
    sys.exit(main())
