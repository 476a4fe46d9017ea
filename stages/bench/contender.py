"""A contender in a process of its own: loaded once, it runs one request at a time and measures time and memory."""

import ctypes
import gc
import multiprocessing
import os
import platform
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final, TypeVar

import torch

from salf.engine.runtime import device_name
from salf.files import read_json, write_json

Measured = dict[str, Any]  # seconds: list[float], flops and traffic: list[int], peak_bytes: int or None, device: str
Value = TypeVar("Value")  # anything that JSON holds
_STATUS: Final = Path("/proc/self/status")
_CLEAR: Final = Path("/proc/self/clear_refs")
_RESET_PEAK: Final = "5"  # see proc(5), clear_refs


@dataclass(frozen=True)
class Lap:
    """A contender's reply."""

    seconds: list[float]  # since its start, at the end of each part (an epoch, or all)
    flops: list[int]  # FLOPs counted up to there; empty where nobody counts
    traffic: list[int] = field(default_factory=list)  # bytes that the optimizer moved up to there, likewise


class Kept:
    """Measurements by name in a JSON file that grows with each: a stopped benchmark resumes from it."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._values: dict[str, Any] = read_json(file) if file.exists() else {}

    def once(self, name: str, measure: Callable[[], Value]) -> Value:
        """The kept value, or else that of ``measure()``, which is then kept."""
        if name not in self._values:
            self._values[name] = measure()
            write_json(self.file, self._values)
        value: Value = self._values[name]
        return value


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
    """The parent's side; the process starts with the first request, and ends with its parent: its pipe breaks."""

    def __init__(self, make: Callable[[Any], Any], task: Any, log: Path) -> None:
        """``make(task)``, with a ``device`` and a ``run``, is called in the process; what it prints goes to ``log``."""
        self._make, self._task, self._log = make, task, log
        self._process: Any = None
        self._pipe: Connection | None = None

    def ask(self, **request: Any) -> Measured:
        """Run ``request`` there and wait for the measurement; a ``RuntimeError`` holds the end of its log."""
        if self._pipe is None:
            context = multiprocessing.get_context("spawn")
            self._pipe, theirs = context.Pipe()
            options = (theirs, self._make, self._task, self._log)
            self._process = context.Process(target=_serve, args=options, daemon=True)
            self._process.start()
            theirs.close()
        try:
            self._pipe.send(request)
            reply: Measured | str = self._pipe.recv()
        except (EOFError, ConnectionError):
            self._process.join()
            reply = f"its process ended with exit code {self._process.exitcode}"
        if isinstance(reply, str):
            raise RuntimeError(f"contender {self._make.__name__}, {request}: {reply}\n{self._last_lines()}")
        return reply

    def ask_warm(self, first: dict[str, Any], request: dict[str, Any]) -> Measured:
        """Run ``request``; a process that is not started runs ``first`` before: what happens once is not compared."""
        if self._pipe is None:
            self.ask(**first)
        return self.ask(**request)

    def stop(self) -> None:
        """End the process."""
        if self._pipe is not None:
            self._pipe.close()
            self._process.join(timeout=10)
            self._process.kill()

    def _last_lines(self) -> str:
        with suppress(OSError):
            return "\n".join(self._log.read_text(encoding="utf-8", errors="replace").splitlines()[-20:])
        return ""


def _serve(pipe: Connection, make: Callable[[Any], Any], task: Any, log: Path) -> None:
    with log.open("ab") as file:  # progress and warnings of many runs
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    with suppress(EOFError, ConnectionError, KeyboardInterrupt):
        runner = None
        while True:
            request = pipe.recv()
            try:
                runner = runner or make(task)
                peak = PeakMemory(runner.device)
                lap = runner.run(**request)
                where = device_name(runner.device)
                pipe.send({**asdict(lap), "peak_bytes": peak.bytes(), "device": where})
            except Exception:  # handed to the parent, which stops
                pipe.send(traceback.format_exc())
