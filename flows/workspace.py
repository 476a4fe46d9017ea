"""One run at a time in a workspace: two would overwrite each other's half-done outputs."""

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from flows.environment import WORKSPACE
from flows.guard import GRACE_SECONDS, stop_family

LOCK_FILE = Path(".dvc/tmp/flow.lock")  # git-ignored by DVC's own rules
_POLL_SECONDS = 1.0
ENDING_SECONDS = 2 * GRACE_SECONDS + 5  # the most that a killed run's guard takes to end its stages


class WorkspaceBusyError(Exception):
    """Another run holds the workspace; the text names it."""


@dataclass(frozen=True)
class Holder:
    """A run that works in a workspace.

    Attributes:
        run: its name.
        pid: its process.
        flow_run: Prefect's id of it; ``None``: no flow run.
    """

    run: str
    pid: int
    flow_run: str | None = None


@dataclass(frozen=True)
class Hold:
    """A workspace that is held.

    Attributes:
        descriptor: the lock's file descriptor, for children to inherit.
        died: the run that held it before and ended without letting it go (killed, power cut).
    """

    descriptor: int
    died: Holder | None


@contextmanager
def sole_run(
    project: Path,
    run_name: str,
    wait: bool = False,
    on_wait: Callable[[str], None] = print,
    flow_run: str | None = None,
) -> Iterator[Hold]:
    """Hold the workspace for one run.

    The lock is the operating system's: it ends with the last process that has the descriptor, so a
    killed run leaves none behind. A child that inherits the descriptor keeps the lock while it lives:
    for the children of a run that was killed this waits, as their guard is ending them.

    Args:
        project: the DVC project.
        run_name: what the second run is told about this one.
        wait: wait for the other run's end instead of refusing.
        on_wait: called once with a message before waiting.
        flow_run: Prefect's id of this run.

    Raises:
        WorkspaceBusyError: another run holds the workspace and ``wait`` is false.
    """
    path = project / LOCK_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _take(descriptor, wait, on_wait)
        died = _holder(descriptor)
        _write(descriptor, json.dumps(asdict(Holder(run_name, os.getpid(), flow_run))))
        try:
            yield Hold(descriptor, died)
        finally:
            _write(descriptor, "")  # a record that stays tells the next run that this one was killed
    finally:
        os.close(descriptor)


def stop_leftovers(project: Path) -> list[int]:
    """End the processes that a dead run left at work in this project; returns their ids.

    To be called by the run that holds the workspace, before it starts a process of its own.
    """
    mine = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    left = [process.pid for process in psutil.process_iter() if process.pid not in mine and _works_in(process, project)]
    for pid in left:
        stop_family(pid)
    return left


def _works_in(process: psutil.Process, project: Path) -> bool:
    try:
        return process.environ().get(WORKSPACE) == str(project)
    except (psutil.Error, OSError):  # another user's, or gone
        return False


def _take(descriptor: int, wait: bool, on_wait: Callable[[str], None]) -> None:
    told = False
    patience = time.monotonic() + ENDING_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            holder = _holder(descriptor)
        at_work = f"{_named(holder)} is working in this folder"
        if holder and not _lives(holder.pid):
            at_work = f"{_named(holder)} was killed, and its stages are still ending in this folder"
        elif not wait:
            patience = 0.0
        if not wait and time.monotonic() >= patience:
            raise WorkspaceBusyError(f"{at_work}; wait for it, or start with --wait")
        if not told:
            on_wait(f"waiting: {at_work}")
            told = True
        time.sleep(_POLL_SECONDS)


def _lives(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _named(holder: Holder | None) -> str:
    # Without a record, the other took the lock a moment ago and has not written yet.
    return f"the run {holder.run!r} (process {holder.pid})" if holder else "another run"


def _holder(descriptor: int) -> Holder | None:
    try:
        return Holder(**json.loads(os.pread(descriptor, 4096, 0)))
    except (ValueError, TypeError):
        return None


def _write(descriptor: int, text: str) -> None:
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, text.encode(), 0)
