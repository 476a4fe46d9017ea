"""A child process whose lines are passed on as they come, and whose whole family ends with it.

The command runs under a guard: this file as a script. A flow holds the other end of the guard's standard input.
However the flow ends, even killed, the operating system closes that pipe, and the guard ends the family. The
script is run by its path, because the working folder is the project's; so only psutil is imported.
"""

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Final

import psutil

GRACE_SECONDS = 5.0  # between asking a family to stop and killing it
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run_streaming(
    command: Sequence[str],
    folder: Path,
    environment: Mapping[str, str],
    on_line: Callable[[str], None],
    timeout: float | None = None,
    keep_open: Sequence[int] = (),
) -> int:
    """Run a command to its end and return its exit status.

    Whenever this function is left, and also when this process is killed, the command and its descendants end.
    ``on_line`` is called with every line of both its streams, in order of arrival. The command inherits the file
    descriptors ``keep_open``.

    Raises:
        subprocess.TimeoutExpired: ``timeout`` seconds have passed, and the command was stopped.
    """
    streams: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "errors": "replace"}
    with guarded(command, cwd=folder, env=dict(environment), pass_fds=keep_open, **streams) as process:
        try:
            _pass_on(process, on_line, timeout)
            return process.wait()
        finally:
            let_end(process)


def guarded(command: Sequence[str], **options: Any) -> "subprocess.Popen[Any]":
    """Start a command that ends with this process, however that ends; options are those of ``subprocess.Popen``.

    A Ctrl-C at the terminal does not reach it: who started it decides.
    """
    guard = [sys.executable, "-P", __file__, str(GRACE_SECONDS), *command]
    return subprocess.Popen(guard, stdin=subprocess.PIPE, start_new_session=True, **options)


def let_end(process: "subprocess.Popen[Any]") -> None:
    """End a guarded command and its descendants, if there still are any."""
    assert process.stdin is not None
    process.stdin.close()  # the guard takes this as its order
    try:
        process.wait(timeout=3 * GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        stop_family(process.pid, grace=0)


def end_cleanly() -> None:
    """Have a command's process clean up at SIGTERM as at Ctrl-C, and end at once at the second Ctrl-C."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:  # a shell's background job ignores it
        signal.signal(signal.SIGINT, _first_interrupt)


def _first_interrupt(*_: object) -> None:
    signal.signal(signal.SIGINT, lambda *_: os._exit(128 + signal.SIGINT))  # guards then end what is at work
    raise KeyboardInterrupt


def stop_family(pid: int, grace: float = GRACE_SECONDS) -> None:
    """End a process that leads its group, and all its descendants: ask them (as by Ctrl-C), then kill them.

    They have ``grace`` seconds to end by themselves.
    """
    family = []
    with contextlib.suppress(psutil.NoSuchProcess):
        head = psutil.Process(pid)
        family = [head, *head.children(recursive=True)]
    try:
        os.killpg(pid, signal.SIGINT)
    except ProcessLookupError:
        return
    _, stubborn = psutil.wait_procs(family, timeout=grace)
    for member in stubborn:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    psutil.wait_procs(stubborn, timeout=grace)


def listen_again() -> None:
    """Restore the usual effect of signals, whatever this process ignores; for a child, before it begins."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_DFL)


def _pass_on(process: "subprocess.Popen[str]", on_line: Callable[[str], None], timeout: float | None) -> None:
    began = time.monotonic()
    lines: queue.Queue[str | None] = queue.Queue()
    assert process.stdout is not None
    threading.Thread(target=_read, args=(process.stdout, lines), daemon=True).start()
    while timeout is None or time.monotonic() < began + timeout:
        left = None if timeout is None else max(0.0, began + timeout - time.monotonic())
        with contextlib.suppress(queue.Empty):
            line = lines.get(timeout=left)
            if line is None:
                return
            on_line(line)
    raise subprocess.TimeoutExpired(process.args, timeout)


def _read(stream: IO[str], lines: "queue.Queue[str | None]") -> None:
    for line in stream:
        lines.put(line.rstrip())
    lines.put(None)


def _guard(grace: float, command: Sequence[str]) -> int:
    """Run a command, end its family when standard input closes, and return its exit status."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # the pipe alone decides, so that no child is left behind
    # The child takes the inherited descriptors along: the workspace's lock is held while it lives.
    child = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, close_fds=False, start_new_session=True, preexec_fn=listen_again
    )
    stopping = threading.Event()

    def stop_at_end_of_input() -> None:
        while os.read(0, 1):
            continue
        stopping.set()
        stop_family(child.pid, grace)

    watch = threading.Thread(target=stop_at_end_of_input, daemon=True)
    watch.start()
    status = child.wait()
    if stopping.is_set():
        watch.join()  # the child's own children may take longer than it
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(_guard(float(sys.argv[1]), sys.argv[2:]))
