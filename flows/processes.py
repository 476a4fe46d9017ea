"""A child process whose lines are passed on as they come and whose whole family ends with it."""

import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

import psutil

GRACE_SECONDS = 10.0  # between asking a family to stop and killing it


class TimedOutError(Exception):
    """The process ran longer than it was allowed to and was stopped."""


def run_streaming(
    command: Sequence[str],
    folder: Path,
    environment: Mapping[str, str],
    on_line: Callable[[str], None],
    timeout: float | None = None,
    keep_open: Sequence[int] = (),
) -> int:
    """Run a command to its end and return its exit status.

    Args:
        command: program and arguments.
        folder: working folder.
        environment: the whole environment.
        on_line: called with every line of its output (both streams, in order of arrival).
        timeout: seconds; ``None``: no limit.
        keep_open: file descriptors that the command inherits.

    Raises:
        TimedOutError: the limit was reached; the command and all its descendants have ended.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    with subprocess.Popen(
        command,
        cwd=folder,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,  # a Ctrl-C at the terminal reaches the flow, which then stops the family
        pass_fds=keep_open,
    ) as process:
        try:
            _pass_on(process, on_line, deadline)
            return process.wait()
        except BaseException:  # the time-out, a cancelled flow, a fault in on_line
            stop_family(process)
            raise


def stop_family(process: "subprocess.Popen[str]") -> None:
    """End a process and all its descendants: first asked (as by Ctrl-C), then killed."""
    family = _family(process.pid)
    _signal_group(process.pid, signal.SIGINT)
    _, stubborn = psutil.wait_procs(family, timeout=GRACE_SECONDS)
    for member in stubborn:
        try:
            member.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(stubborn, timeout=GRACE_SECONDS)


def _pass_on(process: "subprocess.Popen[str]", on_line: Callable[[str], None], deadline: float | None) -> None:
    lines: queue.Queue[str | None] = queue.Queue()
    assert process.stdout is not None
    threading.Thread(target=_read, args=(process.stdout, lines), daemon=True).start()
    while True:
        left = None if deadline is None else deadline - time.monotonic()
        try:
            line = lines.get(timeout=None if left is None else max(left, 0))
        except queue.Empty:
            raise TimedOutError from None
        if line is None:
            return
        on_line(line)


def _read(stream: IO[str], lines: "queue.Queue[str | None]") -> None:
    for line in stream:
        lines.put(line.rstrip())
    lines.put(None)


def _family(pid: int) -> list[psutil.Process]:
    try:
        head = psutil.Process(pid)
        return [head, *head.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _signal_group(pid: int, number: signal.Signals) -> None:
    try:
        os.killpg(pid, number)  # the process leads its own session, hence a group of the same number
    except ProcessLookupError:
        return
