"""Time and peak memory of a piece of work inside the process that does it."""

import ctypes
import gc
import platform
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch

_STATUS: Final = Path("/proc/self/status")
_CLEAR: Final = Path("/proc/self/clear_refs")
_RESET_PEAK: Final = "5"  # see proc(5), clear_refs


@dataclass(frozen=True)
class Lap:
    """What a contender hands back.

    Attributes:
        seconds: since its start, at the end of each part (an epoch, or all).
        flops: operations counted up to there; empty where nobody counts.
    """

    seconds: list[float]
    flops: list[int]


def now(device: torch.device) -> float:
    """Seconds on a monotonic clock, when the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class PeakMemory:
    """Peak memory from here on: on a GPU what torch allocates there, else the process's resident set."""

    def __init__(self, device: torch.device) -> None:
        """Give back what earlier work left behind, and start anew from what is held now."""
        self._device = device
        gc.collect()
        if platform.libc_ver()[0] == "glibc":
            ctypes.CDLL(None).malloc_trim(0)
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
            return
        with suppress(OSError):
            _CLEAR.write_text(_RESET_PEAK)

    def bytes(self) -> int | None:
        """The peak so far; ``None`` where the system does not tell (it takes Linux's ``/proc``)."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        if not _CLEAR.exists():
            return None
        lines = _STATUS.read_text(encoding="ascii", errors="replace").splitlines()
        (peak,) = (line.split()[1] for line in lines if line.startswith("VmHWM:"))
        return int(peak) * 1024
