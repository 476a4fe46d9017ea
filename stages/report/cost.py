"""The frontier of boundaries, what each would cost, the runners-up and how sure the choice is."""

from typing import Final

from salf.plan import FreezePlan, FrontierPoint
from stages.report import figures
from stages.report.figures import FrontierDot
from stages.report.tables import Cell, Figure, Section, Table, columns, number_cell
from stages.report.wording import compact, count, decimal, flops, parameters, percent, size

_MARKED: Final = ("full", "salf", "last-n")


def frontier_section(plan: FreezePlan) -> Section:
    """Cost against what is left to train, and the predicted memory, for every boundary."""
    section = Section("frontier", "Frontier", "Cost and benefit of every boundary")
    chosen = plan.frontier[plan.boundary]
    section.sentences.append(
        f"Predicted for {plan.cost_model.epochs} epochs. A boundary of {plan.boundary} trains "
        f"{parameters(chosen.trained_parameters)} of {parameters(plan.parameters.total)} parameters for "
        f"{percent(chosen.flops_share)} of full fine-tuning’s FLOPs; with many epochs this tends to "
        f"{percent(chosen.flops_share_many_epochs)}, because the frozen layers run once."
    )
    section.figures += [_benefit(plan), _cost(plan), _memory(plan)]
    section.tables.append(_table(plan))
    section.extra["assumptions"] = [plan.cost_model.formula, *plan.cost_model.assumptions]
    return section


def certainty_section(plan: FreezePlan) -> Section:
    """Why this boundary, how certain the choice is, and its runners-up."""
    section = Section("certainty", "Certainty", "How certain is the choice")
    section.sentences += [plan.reason, plan.certainty.words]
    if plan.fallback:
        section.sentences.append(f"Fallback: {plan.fallback}")
    headings = ("Boundary", "Gain", "Wins", "FLOPs of full", "Trained layers")
    chosen = plan.certainty
    rows = [_candidate(plan, plan.boundary, chosen.value, chosen.win_share, "best")]
    rows += [_candidate(plan, r.boundary, r.value, r.win_share) for r in plan.runners_up]
    caption = "The chosen boundary."
    if plan.runners_up:
        caption = f"The chosen boundary and its runners-up by {plan.gain} gain in {plan.quantity}."
    section.tables.append(Table("runners-up", caption, columns(headings, words=0), rows))
    return section


def _candidate(plan: FreezePlan, boundary: int, value: float | None, wins: float | None, mark: str = "") -> list[Cell]:
    point = plan.frontier[boundary]
    return [
        number_cell(boundary, str(boundary), "chosen" if mark else "", mark),
        number_cell(value, compact(value)),
        number_cell(wins, percent(wins)),
        number_cell(point.flops_share, percent(point.flops_share)),
        number_cell(point.trained_layers, str(point.trained_layers)),
    ]


def _benefit(plan: FreezePlan) -> Figure:
    shares = [p.remaining_reduction for p in plan.frontier]
    if all(share is None for share in shares):
        title = f"The {plan.quantity} at each boundary’s space"
        dots = [FrontierDot(p.boundary, p.flops_share, p.observed, p.efficient) for p in plan.frontier]
        return Figure(title, figures.frontier("fig-frontier", title, f"{plan.quantity} there", dots, plan.boundary))
    dots = [
        FrontierDot(p.boundary, p.flops_share, p.remaining_reduction, p.efficient)
        for p in plan.frontier
        if p.remaining_reduction is not None
    ]
    chosen = plan.frontier[plan.boundary]
    title = (
        f"Above boundary {plan.boundary}: {percent(chosen.remaining_reduction)} of the reduction in {plan.quantity} "
        f"for {percent(chosen.flops_share)} of the FLOPs"
    )
    what = f"share of reduction in {plan.quantity} above"
    svg = figures.frontier("fig-frontier", title, what, dots, plan.boundary)
    return Figure(title, svg, "A dot per boundary. Filled and joined: none is both cheaper and leaves more to train.")


def _cost(plan: FreezePlan) -> Figure:
    cached = [p.flops_share for p in plan.frontier]
    uncached = [p.flops_share_uncached for p in plan.frontier]
    marks = {
        str(name): chosen.boundary
        for name, chosen in plan.boundaries.items()
        if name in _MARKED or name == plan.selector
    }
    title = f"Training above layer {plan.boundary} costs {percent(cached[plan.boundary])} of full fine-tuning’s FLOPs"
    svg = figures.boundary_cost("fig-cost", title, cached, uncached, marks)
    return Figure(title, svg, "Solid: the boundary’s hidden states are computed once; dashed: again in every epoch.")


def _memory(plan: FreezePlan) -> Figure:
    parts = {
        "optimizer": [float(p.optimizer_bytes) for p in plan.frontier],
        "gradients": [float(p.gradient_bytes) for p in plan.frontier],
        "activations": [float(p.activation_bytes) for p in plan.frontier],
    }
    chosen, full = _memory_of(plan.frontier[plan.boundary]), _memory_of(plan.frontier[0])
    title = f"Training memory falls from {size(full)} to {size(chosen)}"
    svg = figures.boundary_memory("fig-memory", title, parts, plan.boundary)
    return Figure(title, svg, "Predicted, without the weights themselves; the vertical line is the chosen boundary.")


def _memory_of(point: FrontierPoint) -> int:
    return point.optimizer_bytes + point.gradient_bytes + point.activation_bytes


def _table(plan: FreezePlan) -> Table:
    headings = ["Boundary", "Trained layers", "Trained", "FLOPs", "Of full", "Uncached", "Memory"]
    headings += [plan.quantity.capitalize(), "Law"]
    rows = [
        [
            number_cell(p.boundary, str(p.boundary), mark="best" if p.boundary == plan.boundary else ""),
            number_cell(p.trained_layers, str(p.trained_layers)),
            number_cell(p.trained_parameters, parameters(p.trained_parameters), count(p.trained_parameters)),
            number_cell(p.flops, flops(p.flops)),
            number_cell(p.flops_share, percent(p.flops_share)),
            number_cell(p.flops_share_uncached, percent(p.flops_share_uncached)),
            number_cell(_memory_of(p), size(_memory_of(p))),
            number_cell(p.observed, decimal(p.observed)),
            number_cell(p.predicted, decimal(p.predicted)),
        ]
        for p in plan.frontier
    ]
    caption = f"Every boundary: predicted cost, and {plan.quantity} at its space, traced and by the law."
    return Table("frontier-table", caption, columns(headings, words=0), rows)
