"""What every rule would choose on this run's evidence, and what those that see more than the trace see."""

from typing import Final

from stages.common.freeze_plan import FreezePlan, SelectedBoundary
from stages.common.method_names import FIRST_N
from stages.report import depth_figures
from stages.report.tables import Cell, Column, Figure, Section, Table, number_cell, pairs
from stages.report.wording import listing, percent

# Rules whose scores are drawn, by what their scores are; those of the trace have figures of their own.
_DRAWN: Final = {
    "pilot": "minus the loss that pilots predict (nats)",
    "probe": "what prompts know, less what arrived",
    "block-influence": "turn of the states in the layer",
    "variability": "minus the classes’ spread",
    "grad-norm": "share of gradients, less that of cost",
    "spectrum": "share of signal, less that of cost",
}


def rules_section(plan: FreezePlan) -> Section:
    """Every rule's boundary, cost and reason; the curves of rules that predict something of every boundary.

    The control that trains the first layers is left out: it has no boundary, and its cost is none of the frontier's.
    """
    section = Section("rules", "Rules", "What other rules would choose")
    found = {str(name): chosen for name, chosen in plan.boundaries.items() if name != FIRST_N}
    section.sentences.append(
        f"The plan goes by {plan.selector}. {len(found)} rules have the evidence that they need: none of them "
        "knows the quality that follows, which only fine-tuning above their boundaries tells (make study)."
    )
    drawn = {name: what for name, what in _DRAWN.items() if name in found and found[name].scores is not None}
    section.figures += [_scores(name, what, found[name]) for name, what in drawn.items()]
    section.tables.append(_table(plan, found))
    if plan.absent:
        rows = [(str(name), reason) for name, reason in plan.absent.items()]
        section.tables.append(pairs("absent-rules", "Rules without evidence here", rows, ("Rule", "What it takes")))
    return section


def _scores(name: str, what: str, chosen: SelectedBoundary) -> Figure:
    title = f"{name}: boundary {chosen.boundary}"
    svg = depth_figures.scores(f"fig-rule-{name}", title, what, chosen.scores or [], chosen.boundary)
    return Figure(title, svg, "What the rule makes of every boundary, higher for better; the vertical line is its own.")


def _table(plan: FreezePlan, found: dict[str, SelectedBoundary]) -> Table:
    """Rules of one boundary for one reason share a row, the shallowest boundary first."""
    alike: dict[tuple[int, str], list[str]] = {}
    for name, chosen in found.items():
        alike.setdefault((chosen.boundary, chosen.reason), []).append(name)
    rows = [
        [
            Cell(listing(names), mark="best" if plan.selector in names else ""),
            number_cell(boundary, str(boundary)),
            number_cell(share := plan.frontier[boundary].flops_share, percent(share)),
            Cell(reason),
        ]
        for (boundary, reason), names in sorted(alike.items(), key=lambda item: item[0][0])
    ]
    columns = [Column("Rule", numeric=False), Column("Boundary"), Column("FLOPs of full"), Column("Why", numeric=False)]
    return Table("rules-table", "Every rule with its evidence, from the shallowest boundary on.", columns, rows)
