"""A contender in a process of its own: loaded once, it runs one request at a time and measures time and memory."""

import ctypes
import gc
import os
import platform
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final, Self

import torch

from salf.children import end_with_creator
from salf.engine.runtime import device_name

Measured = dict[
    str, Any
]  # seconds: list[float], flops: list[int], least: list[float], peak_bytes: int or None, device: str
_STATUS: Final = Path("/proc/self/status")
_CLEAR: Final = Path("/proc/self/clear_refs")
_RESET_PEAK: Final = "5"  # see proc(5), clear_refs
_runners: Final = list[Any]()  # the one of a contender's process


@dataclass(frozen=True)
class Lap:
    """A contender's reply."""

    seconds: list[float]  # since its start, at the end of each part (an epoch, or all)
    flops: list[int] = field(default_factory=list)  # FLOPs counted up to there; empty where they are not counted
    least: list[float] = field(default_factory=list)  # of these seconds, if only matrix products and updates took time


def now(device: torch.device) -> float:
    """Seconds on a monotonic clock, once the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class PeakMemory:
    """Peak memory from here on: on a GPU what torch allocates there, else the process's resident set."""

    def __init__(self, device: torch.device) -> None:
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
        """The peak so far; ``None`` on systems without Linux's ``/proc``."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        if not _CLEAR.exists():
            return None
        lines = _STATUS.read_text(encoding="ascii", errors="replace").splitlines()
        (peak,) = (line.split()[1] for line in lines if line.startswith("VmHWM:"))
        return int(peak) * 1024


class Contender:
    """A process that makes a runner once, and then runs one request at a time; it starts with the first."""

    def __init__(self, make: Callable[[Any], Any], task: Any, log: Path) -> None:
        """``make(task)``, with a ``device`` and a ``run``, is called in the process; what it prints goes to ``log``."""
        self._name, self._log = make.__name__, log
        self._pool = ProcessPoolExecutor(1, get_context("spawn"), _begin, (make, task, log))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def ask(self, **request: Any) -> Measured:
        """Run ``request`` there and wait for the measurement; a ``RuntimeError`` holds the end of its log."""
        try:
            return self._pool.submit(_measured, request).result()
        except Exception as error:
            said = self._log.read_text(encoding="utf-8", errors="replace").splitlines() if self._log.exists() else []
            raise RuntimeError("\n".join([f"contender {self._name}, {request}: {error!r}", *said[-20:]])) from error


def _begin(make: Callable[[Any], Any], task: Any, log: Path) -> None:
    """Make the runner in the new process."""
    end_with_creator()
    with log.open("ab") as file:  # progress and warnings of many runs
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    _runners.append(make(task))


def _measured(request: dict[str, Any]) -> Measured:
    (runner,) = _runners
    peak = PeakMemory(runner.device)
    lap = runner.run(**request)
    return {**asdict(lap), "peak_bytes": peak.bytes(), "device": device_name(runner.device)}
