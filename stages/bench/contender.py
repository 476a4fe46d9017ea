"""A contender in a process of its own: loaded once, told by a pipe what to run, one at a time."""

import multiprocessing
import os
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

import torch

from stages.bench.clock import Lap, PeakMemory

Measured = dict[str, Any]  # seconds: list[float], flops: list[int], peak_bytes: int or None


class Runner(Protocol):
    """What a contender's process holds."""

    device: torch.device

    @property
    def run(self) -> Callable[..., Lap]:
        """Does the work that its keywords ask for."""


class Contender:
    """The parent's side; the process starts when the first work is asked for.

    The process ends with its parent: when the pipe breaks, there is nothing more to read from it.
    """

    def __init__(self, make: Callable[[Any], Runner], task: Any, log: Path) -> None:
        """``make(task)`` is called in the process; what it prints goes to ``log``."""
        self._make, self._task, self._log = make, task, log
        self._process: Any = None
        self._pipe: Connection | None = None

    @property
    def running(self) -> bool:
        """Whether its process was started."""
        return self._pipe is not None

    def ask(self, **request: Any) -> Measured:
        """Run ``request`` there and wait for what was measured.

        Raises:
            RuntimeError: it failed or was killed; holds the end of its log.
        """
        if self._pipe is None:
            self._start()
        assert self._pipe is not None
        try:
            self._pipe.send(request)
            reply: Measured | str = self._pipe.recv()
        except (EOFError, ConnectionError):
            self._process.join()
            reply = f"its process ended with exit code {self._process.exitcode}"
        if isinstance(reply, str):
            raise RuntimeError(f"contender {self._make.__name__}, {request}: {reply}\n{self._last_lines()}")
        return reply

    def stop(self) -> None:
        """End the process."""
        if self._pipe is not None:
            self._pipe.close()
            self._process.join(timeout=10)
            self._process.kill()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, self._make, self._task, self._log), daemon=True)
        self._process.start()
        theirs.close()

    def _last_lines(self) -> str:
        with suppress(OSError):
            return "\n".join(self._log.read_text(encoding="utf-8", errors="replace").splitlines()[-20:])
        return ""


def _serve(pipe: Connection, make: Callable[[Any], Runner], task: Any, log: Path) -> None:
    with log.open("ab") as file:  # progress and warnings of many runs
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    with suppress(EOFError, ConnectionError, KeyboardInterrupt):
        runner = None
        while True:
            request = pipe.recv()
            try:
                runner = runner or make(task)
                pipe.send(_measure(runner, request))
            except Exception:  # handed to the parent, which stops
                pipe.send(traceback.format_exc())


def _measure(runner: Runner, request: dict[str, Any]) -> Measured:
    peak = PeakMemory(runner.device)
    lap = runner.run(**request)
    return {"seconds": lap.seconds, "flops": lap.flops, "peak_bytes": peak.bytes()}
