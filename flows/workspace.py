"""One run at a time in a workspace: two would overwrite each other's half-done outputs."""

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

LOCK_FILE = Path(".dvc/tmp/flow.lock")  # git-ignored by DVC's own rules
_POLL_SECONDS = 1.0


class WorkspaceBusyError(Exception):
    """Another run holds the workspace; the text names it."""


@contextmanager
def sole_run(project: Path, run_name: str, wait: bool = False, on_wait: Callable[[str], None] = print) -> Iterator[int]:
    """Hold the workspace for one run; yields the lock's file descriptor.

    The lock is the operating system's: it ends with the last process that has the descriptor, so a
    killed run leaves none behind. A child that inherits the descriptor keeps the lock while it lives.

    Args:
        project: the DVC project.
        run_name: what the second run is told about this one.
        wait: wait for the other run's end instead of refusing.
        on_wait: called once with a message before waiting.

    Raises:
        WorkspaceBusyError: another run holds the workspace and ``wait`` is false.
    """
    path = project / LOCK_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _take(descriptor, wait, on_wait)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps({"pid": os.getpid(), "run": run_name}).encode(), 0)
        yield descriptor
    finally:
        os.close(descriptor)


def _take(descriptor: int, wait: bool, on_wait: Callable[[str], None]) -> None:
    told = False
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            holder = _holder(descriptor)
        if not wait:
            raise WorkspaceBusyError(f"{holder} is working in this folder; wait for it, or start with --wait")
        if not told:
            on_wait(f"waiting: {holder} is working in this folder")
            told = True
        time.sleep(_POLL_SECONDS)


def _holder(descriptor: int) -> str:
    try:
        record = json.loads(os.pread(descriptor, 4096, 0))
        return f"the run {record['run']!r} (process {record['pid']})"
    except (ValueError, KeyError):  # it took the lock a moment ago and has not written yet
        return "another run"
