"""Child processes that end with their parent."""

import ctypes
import os
import select
import signal
import sys
from threading import Thread
from typing import Final

import psutil

_PR_SET_PDEATHSIG: Final = 1


def end_with(parent: int) -> None:
    """Have this process killed when the one that started it, ``parent``, is; on Linux, and nothing elsewhere."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it was killed before we could ask
        sys.exit(1)


def end_with_caller() -> None:
    """Have this process killed when its parent is, and when the parent of a parent that is a shell with one command is.

    DVC calls a stage by a shell; some shells (dash) stay between the two and outlive DVC.
    """
    end_with(os.getppid())
    shell = psutil.Process().parent()
    if sys.platform == "linux" and shell is not None and shell.cmdline()[-2:-1] == ["-c"]:
        try:
            launcher = os.pidfd_open(shell.ppid())
        except OSError:  # it was killed before we could ask
            sys.exit(1)
        Thread(target=_killed_after, args=(launcher,), daemon=True).start()


def _killed_after(process: int) -> None:
    select.select([process], [], [])  # a process's descriptor can be read once it has ended
    os.kill(os.getpid(), signal.SIGKILL)
