"""A contender in a process of its own: loaded once, it runs one request at a time and measures time and memory."""

import ctypes
import gc
import os
import platform
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final

import torch

from salf.children import end_with
from salf.engine.runtime import device_name

Measured = dict[str, Any]  # the fields of a Lap, peak_bytes: int or None, device: str
Ask = Callable[..., Measured]
_STATUS: Final = Path("/proc/self/status")
_CLEAR: Final = Path("/proc/self/clear_refs")
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


def forget_peak(device: torch.device) -> None:
    """Count peak memory from here on."""
    gc.collect()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    with suppress(OSError):
        _CLEAR.write_text("5")  # resets the peak: see proc(5), clear_refs


def peak_bytes(device: torch.device) -> int | None:
    """Peak memory: what torch allocated on a GPU, else the resident set; ``None``: not Linux, which alone tells it."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if not _CLEAR.exists():
        return None
    return int(_STATUS.read_text(encoding="ascii", errors="replace").partition("VmHWM:")[2].split()[0]) * 1024


@contextmanager
def contender(make: Callable[[Any], Any], task: Any, log: Path) -> Iterator[Ask]:
    """Yield what asks a process to run a request and waits; ``make(task)`` is called in it, and its output logged.

    What it makes has a ``device`` and a ``run``. A ``RuntimeError`` holds the end of the log.
    """
    pool = ProcessPoolExecutor(1, get_context("spawn"), _begin, (make, task, log))

    def ask(**request: Any) -> Measured:
        try:
            return pool.submit(_measured, request).result()
        except Exception as error:
            said = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
            raise RuntimeError("\n".join([f"contender {make.__name__}, {request}: {error!r}", *said[-20:]])) from error

    try:
        yield ask
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(make: Callable[[Any], Any], task: Any, log: Path) -> None:
    """Make the runner in the new process."""
    end_with(os.getppid())
    with log.open("ab") as file:  # progress and warnings of many runs
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    _runners.append(make(task))


def _measured(request: dict[str, Any]) -> Measured:
    (runner,) = _runners
    forget_peak(runner.device)
    lap = runner.run(**request)
    return {**asdict(lap), "peak_bytes": peak_bytes(runner.device), "device": device_name(runner.device)}
