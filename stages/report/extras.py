"""The section on the study, which no stage of the chain measures."""

from typing import Final

from stages.common.figures import inline
from stages.common.study_page import Cell as Shown
from stages.report.artifacts import Artifacts
from stages.report.parts import Cell, Figure, Section, Table

_OVER_ALL: Final = {
    "balance": "What the trace promises and what was measured",
    "depth": "What freezing costs, by the share of the layers",
}


def study_section(artifacts: Artifacts) -> Section | None:
    """Headline, tables and figures of the study; ``None`` if there is none."""
    found, figures = artifacts.study, artifacts.study_figures
    if found is None:
        return None
    section = Section("study", "The study", "Is the boundary right? What the study measured")
    section.sentences += [found.headline, found.scope, "This section is not part of the chain: make study measures it."]
    for name in found.report:
        shown = found.tables[name]
        rows = [[_shown(cell) for cell in row] for row in shown.rows]
        section.tables.append(Table(f"study-{name.replace(' ', '-')}", shown.caption, shown.headings, rows))
    for name in sorted(figures, key=lambda name: (name not in _OVER_ALL, name)):  # those over all datasets come first
        title = _OVER_ALL.get(name, f"Quality against the boundary: {name}")
        section.figures.append(Figure(title, inline(figures[name])))
    return section


def _shown(cell: Shown) -> Cell:
    """A cell of the study; the interval of a number is small print below it."""
    if isinstance(cell, str):
        return Cell(cell.replace("`", ""))
    value, text = cell
    shown, bracket, ends = text.partition(" [")
    return Cell(shown, bracket.strip() + ends, value, numeric=True)
