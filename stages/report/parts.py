"""What a page is made of: sections with sentences, figures and tables, and numbers in words."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeVar

from salf.metrics import Interval

ABSENT: Final = "–"
THIN: Final = "\u202f"  # narrow no-break space, before units and between thousands
MINUS: Final = "\u2212"


@dataclass(frozen=True)
class Cell:
    """A table's cell: its text, small print, the exact value of a number, and a mark for the style sheet."""

    text: str
    note: str = ""
    value: float | None = None
    mark: str = ""
    numeric: bool = False


def number(value: float | None, write: Callable[[float], str] = str, note: str = "", mark: str = "") -> Cell:
    """Return a numeric cell; an absent value is a dash without small print."""
    if value is None or math.isnan(value):
        return Cell(ABSENT, mark=mark, numeric=True)
    return Cell(write(value), note, value, mark, numeric=True)


@dataclass(frozen=True)
class Table:
    """A captioned table; the first cell of a row is its heading. A folded table opens on a click on its caption."""

    name: str
    caption: str
    headings: Sequence[str]
    rows: Sequence[Sequence[Cell | str]]
    folded: bool = False

    @property
    def body(self) -> list[list[Cell]]:
        """The rows, plain texts as cells."""
        return [[Cell(cell) if isinstance(cell, str) else cell for cell in row] for row in self.rows]

    @property
    def columns(self) -> list[tuple[str, bool]]:
        """Each heading, and whether its column holds numbers, which are set flush right."""
        body = self.body
        return [(heading, any(row[at].numeric for row in body)) for at, heading in enumerate(self.headings)]


Item = TypeVar("Item")
Columns = dict[str, Callable[[Item], Cell | str]]


def table(name: str, caption: str, items: Iterable[Item], columns: Columns[Item], *, folded: bool = False) -> Table:
    """A table with a row per item; ``columns`` maps a heading to the cell of an item."""
    rows = [[cell(item) for cell in columns.values()] for item in items]
    return Table(name, caption, list(columns), rows, folded)


@dataclass(frozen=True)
class Figure:
    """An SVG with its title (what is seen) and caption (what is drawn), which is its accessible description too."""

    title: str
    svg: str
    caption: str = ""


@dataclass(frozen=True)
class Artifact:
    """A node of the lineage: lines of (text, hash, whether it differs), and (artifact read, how its hash compares)."""

    key: str
    title: str
    lines: Sequence[tuple[str, str, bool]]
    read: Sequence[tuple[str, str]] = ()


@dataclass
class Section:
    """A section of the page; ``short`` is its name in the table of contents.

    The parts are shown in the order of the fields, and all may be empty. ``prompt`` is a prompt and its answer,
    ``assumptions`` a folded list, ``code`` holds (title, text) blocks to copy.
    """

    anchor: str
    short: str
    heading: str
    sentences: list[str] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    lineage: list[Artifact] = field(default_factory=list)
    prompt: tuple[str, str] | None = None
    tables: list[Table] = field(default_factory=list)
    assumptions: list[str] = field(default_factory=list)
    code: list[tuple[str, str]] = field(default_factory=list)


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
    if 0 < value < 0.5 * 10 ** (-2 - digits):
        return f"<{THIN}{10.0**-digits:.{digits}f}{THIN}%"
    return f"{decimal(100 * value, digits)}{THIN}%"


def count(value: float | None) -> str:
    """A whole number with thin spaces between thousands."""
    return ABSENT if value is None else f"{round(value):,}".replace(",", THIN).replace("-", MINUS)


def flops(value: float | None) -> str:
    """Floating-point operations with a decimal prefix."""
    return _scaled(value, 1000, ("FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP", "EFLOP"))


def size(value: float | None) -> str:
    """Bytes with a binary prefix."""
    return _scaled(value, 1024, ("B", "KiB", "MiB", "GiB", "TiB"))


def parameters(value: float | None) -> str:
    """Numbers of parameters: 1.2 M, 3.4 B."""
    return ABSENT if value is None else _scaled(value, 1000, ("", "k", "M", "B", "T")).strip(THIN)


def seconds(value: float | None) -> str:
    """A duration, from milliseconds to minutes."""
    if value is None:
        return ABSENT
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


def moved_words(before_budget: float | None) -> str:
    """What a selector chose before ``plan.budget`` moved its boundary; empty if it did not."""
    return "" if before_budget is None else f"before the budget: {compact(before_budget)}"


def listing(items: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}" if items else ""


def _scaled(value: float | None, base: int, units: Sequence[str]) -> str:
    if value is None:
        return ABSENT
    power = 0
    while abs(value) >= base and power < len(units) - 1:
        value /= base
        power += 1
    digits = 0 if power == 0 else 3 - len(str(int(abs(value))))
    return f"{decimal(value, max(digits, 0))}{THIN}{units[power]}"
