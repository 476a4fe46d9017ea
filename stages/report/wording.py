"""Numbers in words: how shares, counts, bytes, seconds and intervals are written on the page."""

from collections.abc import Sequence
from typing import Final

from salf.metrics import Interval

ABSENT: Final = "–"
THIN: Final = "\u202f"  # narrow no-break space, before units and between thousands
MINUS: Final = "\u2212"


def decimal(value: float | None, digits: int = 3) -> str:
    """Fixed digits with a true minus sign."""
    if value is None:
        return ABSENT
    text = f"{value:.{digits}f}"
    return text.replace("-", MINUS) if float(text) != 0 else f"{0:.{digits}f}"


def compact(value: float | None) -> str:
    """Four significant digits, for parameters whose size is not known beforehand."""
    return ABSENT if value is None else f"{value:.4g}".replace("-", MINUS)


def signed(value: float, digits: int = 3) -> str:
    """Fixed digits with a sign of either kind."""
    return f"{'+' if value > 0 else ''}{decimal(value, digits)}"


def percent(value: float | None, digits: int = 0) -> str:
    """A share as a percentage; tiny shares never read as zero."""
    if value is None:
        return ABSENT
    if 0 < value <= 0.5 * 10 ** (-2 - digits):
        return f"<{THIN}{10.0**-digits:.{digits}f}{THIN}%"
    return f"{decimal(100 * value, digits)}{THIN}%"


def count(value: float | None) -> str:
    """A whole number with thin spaces between thousands."""
    return ABSENT if value is None else f"{round(value):,}".replace(",", THIN).replace("-", MINUS)


def flops(value: float) -> str:
    """Floating-point operations with a decimal prefix."""
    return _scaled(value, 1000, ("FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP", "EFLOP"))


def size(value: float) -> str:
    """Bytes with a binary prefix."""
    return _scaled(value, 1024, ("B", "KiB", "MiB", "GiB", "TiB"))


def parameters(value: float) -> str:
    """Numbers of parameters: 1.2 M, 3.4 B."""
    return _scaled(value, 1000, ("", "k", "M", "B", "T")).strip(THIN)


def seconds(value: float) -> str:
    """A duration, from milliseconds to minutes."""
    if value < 1:
        return f"{1000 * value:.0f}{THIN}ms"
    return f"{value:.1f}{THIN}s" if value < 120 else f"{value / 60:.1f}{THIN}min"


def span(interval: Interval, digits: int = 3) -> str:
    """The ends of an interval in brackets."""
    return f"[{decimal(interval.low, digits)}, {decimal(interval.high, digits)}]"


def layer_range(first: int, last: int) -> str:
    """``layers 22–30``, ``layer 30`` or ``no layer``."""
    if first > last:
        return "no layer"
    return f"layer {first}" if first == last else f"layers {first}–{last}"


def sentence(words: str) -> str:
    """A reason as a sentence of its own."""
    return f"{words[:1].upper()}{words[1:].rstrip('.')}."


def moved_words(before_budget: float | None) -> str:
    """The boundary before ``plan.budget`` moved it, in words; empty if it did not."""
    return "" if before_budget is None else f"before the budget: {compact(before_budget)}"


def listing(items: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}" if items else ""


def _scaled(value: float, base: int, units: Sequence[str]) -> str:
    power = 0
    while abs(value) >= base and power < len(units) - 1:
        value /= base
        power += 1
    digits = 0 if power == 0 else 3 - len(str(int(abs(value))))
    return f"{decimal(value, max(digits, 0))}{THIN}{units[power]}"
