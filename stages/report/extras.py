"""The section on the study, which no stage of the chain measures."""

from typing import Final

from stages.common.figures import inline
from stages.common.study_page import Cell as Shown
from stages.report.artifacts import Artifacts
from stages.report.parts import Cell, Figure, Section, Table

_STUDY_FIGURES: Final = {
    "methods": "What each method costs and gains",
    "balance": "What the trace promises and what was measured",
}


def study_section(artifacts: Artifacts) -> Section | None:
    """Headline, tables and figures of the study; ``None`` if there is none."""
    found, figures = artifacts.study, artifacts.study_figures
    if found is None:
        return None
    section = Section("study", "The study", "Which method? What the study measured")
    section.sentences += [found.headline, found.scope, "This section is not part of the chain: make study measures it."]
    for name in found.report:
        shown = found.tables[name]
        rows = [[_shown(cell) for cell in row] for row in shown.rows]
        section.tables.append(Table(f"study-{name.replace(' ', '-')}", shown.caption, shown.headings, rows))
    section.figures += [
        Figure(title, inline(figures[name])) for name, title in _STUDY_FIGURES.items() if name in figures
    ]
    return section


def _shown(cell: Shown) -> Cell:
    """A cell of the study; the interval of a number is small print below it."""
    if isinstance(cell, str):
        return Cell(cell.replace("`", ""))
    value, text = cell
    shown, bracket, ends = text.partition(" [")
    return Cell(shown, bracket.strip() + ends, value, numeric=True)
