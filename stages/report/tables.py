"""Tables and figures as the template takes them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from stages.report.wording import ABSENT


@dataclass(frozen=True)
class Cell:
    """A cell: its text, a second line in small print, the exact value behind it, and a mark for the style sheet."""

    text: str
    note: str = ""
    value: float | None = None
    mark: str = ""


@dataclass(frozen=True)
class Column:
    """A column's heading; numbers are set flush right."""

    heading: str
    numeric: bool = True


@dataclass(frozen=True)
class Table:
    """A captioned table; the first cell of a row is its heading."""

    name: str
    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True)
class Figure:
    """An SVG with its title (what is seen) and caption (what is drawn)."""

    title: str
    svg: str
    caption: str = ""


@dataclass
class Section:
    """A section of the page: sentences, figures and tables in this order; all may be empty.

    ``short`` is its name in the table of contents; ``extra`` holds what only one section has.
    """

    anchor: str
    short: str
    heading: str
    sentences: list[str] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)


def columns(headings: Sequence[str], words: int = 1) -> list[Column]:
    """Columns of which the first ones hold words, the others numbers."""
    return [Column(heading, numeric=place >= words) for place, heading in enumerate(headings)]


def number_cell(value: float | None, text: str, note: str = "", mark: str = "") -> Cell:
    """A numeric cell; an absent value shows a dash."""
    return Cell(ABSENT, "", None, mark) if value is None else Cell(text, note, value, mark)


def pairs(name: str, caption: str, rows: Sequence[tuple[str, str]], headings: tuple[str, str]) -> Table:
    """A table of two text columns."""
    return Table(name, caption, columns(headings, words=2), [[Cell(k), Cell(v)] for k, v in rows])
