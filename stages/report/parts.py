"""The parts of a page: sections with sentences, figures and tables."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import TypeVar

from stages.report.wording import ABSENT


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


def table(
    name: str,
    caption: str,
    items: Iterable[Item],
    columns: Columns[Item],
    *,
    folded: bool = False,
    group: Callable[[Item], str] = lambda _: "",
) -> Table:
    """A table with a row per item; ``columns`` maps a heading to the cell of an item.

    Items of a ``group`` follow each other, after a row with its heading.
    """
    rows: list[list[Cell | str]] = []
    for heading, members in groupby(items, group):
        if heading:
            rows.append([Cell(heading, mark="group"), *[""] * (len(columns) - 1)])
        rows += [[cell(item) for cell in columns.values()] for item in members]
    return Table(name, caption, list(columns), rows, folded)


@dataclass(frozen=True)
class Figure:
    """An SVG with its title (what is seen) and caption (what is drawn), which is its accessible description too."""

    name: str
    title: str
    svg: str
    caption: str = ""


@dataclass
class Section:
    """A section of the page; ``short`` is its name in the table of contents.

    The parts are shown in the order of the fields, and all may be empty. ``prompt`` is a prompt and its answer,
    ``assumptions`` a folded list.
    """

    anchor: str
    short: str
    heading: str
    sentences: list[str] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    prompt: tuple[str, str] | None = None
    tables: list[Table] = field(default_factory=list)
    assumptions: list[str] = field(default_factory=list)
