"""Progress of long work: a line on standard error every ten seconds."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

_SECONDS_BETWEEN_LINES: Final = 10.0

Advance = Callable[[float, str], None]


@contextmanager
def progress(what: str, total: float, unit: str) -> Iterator[Advance]:
    """Show what is done, the rate and the time left; the block calls ``advance(amount, note)``."""
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

    yield advance
