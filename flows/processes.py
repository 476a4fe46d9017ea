"""A child process whose lines are passed on as they come and whose whole family ends with it."""

import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

from flows import guard

_POLL_SECONDS = 0.2  # how soon a request to stop is seen


class TimedOutError(Exception):
    """The process ran longer than it was allowed to and was stopped."""


class StoppedError(Exception):
    """The process was asked to stop before its end, and has."""


def run_streaming(
    command: Sequence[str],
    folder: Path,
    environment: Mapping[str, str],
    on_line: Callable[[str], None],
    timeout: float | None = None,
    keep_open: Sequence[int] = (),
    stop: threading.Event | None = None,
) -> int:
    """Run a command to its end and return its exit status.

    Whenever this function is left, and also when this process is killed, the command and all its
    descendants end (see :mod:`flows.guard`).

    Args:
        command: program and arguments.
        folder: working folder.
        environment: the whole environment.
        on_line: called with every line of its output (both streams, in order of arrival).
        timeout: seconds; ``None``: no limit.
        keep_open: file descriptors that the command inherits.
        stop: once set, the command is stopped.

    Raises:
        TimedOutError: the limit was reached.
        StoppedError: ``stop`` was set.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    with subprocess.Popen(
        [sys.executable, "-P", guard.__file__, str(guard.GRACE_SECONDS), *command],
        cwd=folder,
        env=dict(environment),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,  # a Ctrl-C at the terminal reaches the flow, which then stops the family
        pass_fds=keep_open,
    ) as process:
        try:
            _pass_on(process, on_line, deadline, stop or threading.Event())
            return process.wait()
        finally:
            _end(process)


def _end(process: "subprocess.Popen[str]") -> None:
    assert process.stdin is not None
    process.stdin.close()  # the guard stops its family, if there still is one
    try:
        process.wait(timeout=3 * guard.GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        guard.stop_family(process.pid, grace=0)


def _pass_on(
    process: "subprocess.Popen[str]", on_line: Callable[[str], None], deadline: float | None, stop: threading.Event
) -> None:
    lines: queue.Queue[str | None] = queue.Queue()
    assert process.stdout is not None
    threading.Thread(target=_read, args=(process.stdout, lines), daemon=True).start()
    while not stop.is_set():
        if deadline is not None and time.monotonic() >= deadline:
            raise TimedOutError
        try:
            line = lines.get(timeout=_POLL_SECONDS)
        except queue.Empty:
            continue
        if line is None:
            return
        on_line(line)
    raise StoppedError


def _read(stream: IO[str], lines: "queue.Queue[str | None]") -> None:
    for line in stream:
        lines.put(line.rstrip())
    lines.put(None)
