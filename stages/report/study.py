"""The study's section: its headline, tables and figures."""

from collections.abc import Mapping
from typing import Final

from stages.common.figures.svg import inline
from stages.common.study_page import Cell as Shown
from stages.common.study_page import StudyPage
from stages.report.parts import Cell, Figure, Section, Table

# Figures over all datasets, which come first.
_OVER_ALL: Final = {
    "costs": "What the selectors cost, and what they miss",
    "depth": "What freezing costs, by the share of the layers",
}


def study_section(found: StudyPage | None, figures: Mapping[str, str]) -> Section | None:
    """Return the study's section; ``None`` if there is no study.

    Args:
        found: the study's headline and tables.
        figures: SVG files of the study by name.
    """
    if found is None:
        return None
    section = Section("study", "The study", "Is the boundary right? What the study measured")
    section.sentences += [found.headline, found.scope, "This section is not part of the chain: make study measures it."]
    for name in found.report:
        table = found.tables[name]
        rows = [[_cell(cell) for cell in row] for row in table.rows]
        section.tables.append(Table(f"study-{name.replace(' ', '-')}", table.caption, table.headings, rows))
    titles = _OVER_ALL | {name: f"Quality against the boundary: {name}" for name in figures if name not in _OVER_ALL}
    section.figures += [Figure(title, inline(figures[name])) for name, title in titles.items() if name in figures]
    return section


def _cell(cell: Shown) -> Cell:
    """A cell of the page; the interval of a number is small print below it."""
    if isinstance(cell, str):
        return Cell(cell.replace("`", ""))
    value, text = cell
    shown, bracket, ends = text.partition(" [")
    return Cell(shown, bracket.strip() + ends, value, numeric=True)
