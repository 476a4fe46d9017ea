"""Each selector's choice on this run's evidence, and the scores of selectors that use more than the trace."""

from typing import Final

from salf.methods import FIRST_N
from salf.plan import FreezePlan, SelectedBoundary
from stages.report import depth_figures
from stages.report.tables import Cell, Column, Figure, Section, Table, number_cell, pairs
from stages.report.wording import listing, moved_words, percent

# Selectors whose scores are drawn, with the scores' meaning; those of the trace have figures of their own.
_DRAWN: Final = {
    "pilot": "minus the loss that pilots predict (nats)",
    "probe": "what prompts know, less what arrived",
    "block-influence": "turn of the states in the layer",
    "variability": "minus the classes’ spread",
    "grad-norm": "share of gradients, less that of cost",
    "spectrum": "share of signal, less that of cost",
}


def rules_section(plan: FreezePlan) -> Section:
    """Each selector's boundary, cost and reason; the scores of selectors that score every boundary.

    The control first-n is left out: it has no boundary, and its cost is not on the frontier.
    """
    section = Section("rules", "Selectors", "What other selectors would choose")
    found = {str(name): chosen for name, chosen in plan.boundaries.items() if name != FIRST_N}
    section.sentences.append(
        f"The plan follows {plan.selector}. {len(found)} selectors have the evidence that they need. None of them "
        "knows the resulting quality: only fine-tuning above their boundaries measures it (make study)."
    )
    drawn = {name: what for name, what in _DRAWN.items() if name in found and found[name].scores is not None}
    section.figures += [_scores(name, what, found[name]) for name, what in drawn.items()]
    section.tables.append(_table(plan, found))
    if plan.absent:
        rows = [(str(name), reason) for name, reason in plan.absent.items()]
        section.tables.append(
            pairs("absent-rules", "Selectors without evidence in this run", rows, ("Selector", "What it needs"))
        )
    return section


def _scores(name: str, what: str, chosen: SelectedBoundary) -> Figure:
    title = f"{name}: boundary {chosen.boundary}"
    svg = depth_figures.scores(f"fig-rule-{name}", title, what, chosen.scores or [], chosen.boundary)
    return Figure(title, svg, "The selector’s score of every boundary, higher is better; vertical line: its choice.")


def _table(plan: FreezePlan, found: dict[str, SelectedBoundary]) -> Table:
    """Selectors of one boundary for one reason share a row, the shallowest boundary first."""
    alike: dict[tuple[int, int | None, str], list[str]] = {}
    for name, chosen in found.items():
        alike.setdefault((chosen.boundary, chosen.before_budget, chosen.reason), []).append(name)
    rows = [
        [
            Cell(listing(names), mark="best" if plan.selector in names else ""),
            number_cell(boundary, str(boundary), moved_words(before)),
            number_cell(share := plan.frontier[boundary].flops_share, percent(share)),
            Cell(reason),
        ]
        for (boundary, before, reason), names in sorted(alike.items(), key=lambda item: item[0][0])
    ]
    columns = [
        Column("Selector", numeric=False),
        Column("Boundary"),
        Column("FLOPs of full"),
        Column("Why", numeric=False),
    ]
    return Table("rules-table", "Every selector that has its evidence, the shallowest boundary first.", columns, rows)
