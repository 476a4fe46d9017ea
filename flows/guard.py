"""Runs a command whose whole family ends when the guard's standard input is closed.

A flow holds the other end of that pipe: however the flow ends, killed without a chance to clean up
included, the operating system closes the pipe, and no stage goes on writing without its flow. Run as
a script by its path, since the working folder is the project's: nothing but psutil is imported.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence

import psutil

GRACE_SECONDS = 10.0  # between asking a family to stop and killing it


def stop_family(pid: int, grace: float = GRACE_SECONDS) -> None:
    """End a process and all its descendants: first asked (as by Ctrl-C), then killed.

    Args:
        pid: the head of the family; it leads its own process group.
        grace: seconds that the family has to end by itself.
    """
    family = _family(pid)
    try:
        os.killpg(pid, signal.SIGINT)
    except ProcessLookupError:
        return
    _, stubborn = psutil.wait_procs(family, timeout=grace)
    for member in stubborn:
        try:
            member.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(stubborn, timeout=grace)


def _family(pid: int) -> list[psutil.Process]:
    try:
        head = psutil.Process(pid)
        return [head, *head.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def main(argv: Sequence[str]) -> int:
    """Run ``argv[1:]`` with ``argv[0]`` seconds of grace; returns its exit status."""
    grace, command = float(argv[0]), argv[1:]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the pipe alone decides, so that no child is left behind
    # The child takes the inherited descriptors along: the workspace's lock is held while it lives.
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        close_fds=False,
        start_new_session=True,
        preexec_fn=listen_again,
    )
    stopping = threading.Event()
    watch = threading.Thread(target=_stop_at_end_of_input, args=(child.pid, grace, stopping), daemon=True)
    watch.start()
    status = child.wait()
    if stopping.is_set():
        watch.join()  # the child's own children may take longer than it
    return status if status >= 0 else 128 - status


def listen_again() -> None:
    """Have signals their usual effect, whatever this process was told to ignore; for a child, before it begins."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def _stop_at_end_of_input(pid: int, grace: float, stopping: threading.Event) -> None:
    while os.read(0, 1):
        continue
    stopping.set()
    stop_family(pid, grace)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
