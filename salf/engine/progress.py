"""Progress of long work: a bar with rate and time left on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_SECONDS_BETWEEN_LINES: Final = 10.0

Advance = Callable[[float, str], None]


@contextmanager
def progress(what: str, total: float, unit: str) -> Iterator[Advance]:
    """Show progress; the block calls ``advance(amount, note)``.

    A terminal gets a live bar. Anything else (DVC's capture, Prefect's log, CI) gets a line every ten seconds.
    """
    if sys.stderr.isatty():
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
        times = (TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.fields[note]}"))
        with Progress(*columns, *times, console=Console(stderr=True)) as bar:
            task = bar.add_task(what, total=total, note="")
            yield lambda amount, note: bar.update(task, advance=amount, note=note)
        return
    line = _Lines(what, total, unit)
    yield line.advance


class _Lines:
    def __init__(self, what: str, total: float, unit: str) -> None:
        self.what, self.total, self.unit = what, total, unit
        self.done = 0.0
        self.started = self.printed = time.monotonic()

    def advance(self, amount: float, note: str) -> None:
        self.done += amount
        now = time.monotonic()
        if now - self.printed < _SECONDS_BETWEEN_LINES and self.done < self.total:
            return
        self.printed = now
        rate = self.done / max(now - self.started, 1e-9)
        left = (self.total - self.done) / rate
        share = f"{self.done:.0f}/{self.total:.0f} {self.unit} ({self.done / self.total:.0%})"
        text = f"{self.what}: {share}, {rate:.3g} {self.unit}/s, {left:.0f} s left"
        print(f"{text}  {note}" if note else text, file=sys.stderr, flush=True)
