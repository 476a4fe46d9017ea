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
    yield _lines(what, total, unit)


def _lines(what: str, total: float, unit: str) -> Advance:
    """Print lines in place of a bar."""
    done, started = 0.0, time.monotonic()
    printed = started

    def advance(amount: float, note: str) -> None:
        nonlocal done, printed
        done, now = done + amount, time.monotonic()
        if now - printed < _SECONDS_BETWEEN_LINES and done < total:
            return
        printed = now
        rate = done / max(now - started, 1e-9)
        text = f"{what}: {done:.0f}/{total:.0f} {unit} ({done / total:.0%}), {rate:.3g} {unit}/s"
        print(f"{text}, {(total - done) / rate:.0f} s left{note and f'  {note}'}", file=sys.stderr, flush=True)

    return advance
