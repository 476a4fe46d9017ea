"""The plan's choice: cost and benefit of every boundary, how certain the choice is, and each selector's choice."""

from collections.abc import Iterator, Mapping

from matplotlib.axes import Axes

from salf.methods import SCOPES
from salf.plan import FreezePlan
from salf.plan_records import FrontierPoint, SelectedBoundary, Spent
from stages.common.figures import ACCENT, MUTED, colour, marker, place_labels
from stages.report.artifacts import Artifacts
from stages.report.figures import figure, in_percent
from stages.report.parts import Cell, Columns, Figure, Section, Table, number, table
from stages.report.wording import count, decimal, flops, listing, moved_words, parameters, percent, sentence, size


def frontier_section(artifacts: Artifacts) -> Section:
    """Cost against what is left to train, for every boundary."""
    plan = artifacts.plan
    section = Section("frontier", "Frontier", "Cost and benefit of every boundary")
    chosen, epochs = plan.frontier[plan.boundary], plan.cost_model.epochs
    lora = f", and {percent(chosen.lora.flops_backward_share)} with LoRA" if chosen.lora else ""
    section.sentences.append(
        f"Predicted for {count(epochs)} epoch{'s' * (epochs != 1)}. A boundary of {plan.boundary} trains "
        f"{parameters(chosen.trained_parameters)} of {parameters(plan.parameters.total)} parameters for "
        f"{percent(chosen.flops_share)} of full fine-tuning’s FLOPs; with many epochs this tends to "
        f"{percent(chosen.flops_share_many_epochs)}, because the frozen layers run once. Of the backward FLOPs alone "
        f"it is {percent(chosen.flops_backward_share)}{lora}."
    )
    section.figures += _benefit(plan)
    section.tables.append(_frontier_table(plan))
    section.assumptions = [plan.cost_model.formula, *plan.cost_model.assumptions]
    return section


def certainty_section(artifacts: Artifacts) -> Section:
    """Why this boundary, how certain the choice is, and its runners-up."""
    plan = artifacts.plan
    section = Section("certainty", "Certainty", "How certain is the choice")
    section.sentences += map(sentence, (plan.reason, plan.certainty.words))
    if plan.fallback:
        section.sentences.append(sentence(f"Fallback: {plan.fallback}"))
    if plan.runners_up:
        rivals = [f"{one.boundary} ({percent(one.win_share)})" for one in plan.runners_up]
        section.sentences.append(f"Runners-up, with the share of resamples that they win: {listing(rivals)}.")
    return section


def selectors_section(artifacts: Artifacts) -> Section:
    """Each selector's boundary, cost and reason.

    The control first-n is left out: it has no boundary, and its cost is not on the frontier.
    """
    plan = artifacts.plan
    section = Section("selectors", "Selectors", "Other selectors’ choices")
    found = {str(name): chosen for name, chosen in plan.boundaries.items() if name not in SCOPES}
    section.sentences.append(
        f"The plan follows {plan.selector}. {len(found)} selectors have the evidence that they need. None of them "
        "knows the resulting quality: only fine-tuning above their boundaries measures it (make study)."
    )
    section.sentences += ["salf export writes the plan in the words of other tools.", *plan.exports.notes]
    caption = "Every selector that has its evidence, the shallowest boundary first."
    section.tables.append(_selectors_table(caption, plan, found))
    if plan.absent:
        rows = [(str(name), reason) for name, reason in plan.absent.items()]
        caption, headings = "Selectors without evidence in this run", ("Selector", "What it needs")
        section.tables.append(Table("absent-selectors", caption, headings, rows, folded=True))
    return section


def _selectors_table(caption: str, plan: FreezePlan, found: Mapping[str, SelectedBoundary]) -> Table:
    """Selectors with the same boundary for the same reason share a row, the shallowest boundary first."""
    alike: dict[str, list[str]] = {}
    for selector, chosen in found.items():
        alike.setdefault(chosen.model_dump_json(exclude={"scores"}), []).append(selector)
    groups = sorted(alike.values(), key=lambda names: found[names[0]].boundary)
    columns: Columns[list[str]] = {
        "Selector": lambda names: Cell(listing(names), mark="best" if plan.selector in names else ""),
        "Boundary": lambda names: _selected(found[names[0]]),
        "FLOPs of full": lambda names: number(plan.frontier[found[names[0]].boundary].flops_share, percent),
        "Backward": lambda names: number(plan.frontier[found[names[0]].boundary].flops_backward_share, percent),
        "Why": lambda names: _why(found[names[0]]),
    }
    return table("selectors-table", caption, groups, columns)


def _selected(chosen: SelectedBoundary) -> Cell:
    """A boundary, what it was before the budget, and the interval of the latter."""
    ends = f"interval {'–'.join(map(str, dict.fromkeys(chosen.interval)))}" if chosen.interval else ""
    return number(chosen.boundary, note="\n".join(filter(None, (moved_words(chosen.before_budget), ends))))


def _why(chosen: SelectedBoundary) -> Cell:
    return Cell(chosen.reason, f"Warning: {chosen.warning}" if chosen.warning else "")


def _benefit(plan: FreezePlan) -> Iterator[Figure]:
    """Plot each boundary's cost against the reduction left to train; nothing where the trace shows none."""
    chosen = plan.frontier[plan.boundary]
    benefit = {p: p.remaining_reduction for p in plan.frontier if p.remaining_reduction is not None}
    if not benefit:
        return
    dots = [(point.flops_share, left) for point, left in benefit.items()]
    answers = sorted((point.answer.flops_share, left) for point, left in benefit.items() if point.answer)

    def paint(axes: Axes) -> None:
        efficient = sorted((point.flops_share, left) for point, left in benefit.items() if point.efficient)
        axes.plot(*zip(*efficient, strict=True), color=MUTED, lw=1.2)
        for point, dot in zip(benefit, dots, strict=True):
            axes.plot(*dot, "o", color=MUTED, ms=4.5, mfc=MUTED if point.efficient else "none", mew=1)
        if answers:
            axes.plot(*zip(*answers, strict=True), "o-", color=colour("last-n"), lw=1.2, ms=3)
            place_labels(axes, [(*answers[-1], "answers alone", colour("last-n"))], [*dots, *answers])
        axes.margins(x=0.06, y=0.12)
        axes.set_xlim(0, max(1.05, axes.get_xlim()[1]))
        if (y := chosen.remaining_reduction) is not None:
            axes.plot(chosen.flops_share, y, marker("salf"), color=ACCENT, markersize=9)
            place_labels(axes, [(chosen.flops_share, y, f"boundary {plan.boundary}", ACCENT)], dots)
        in_percent(axes.xaxis)
        axes.set(
            xlabel="share of full fine-tuning’s FLOPs", ylabel=f"reduction of the trace’s {plan.quantity}, not accuracy"
        )

    title = (
        f"Above boundary {plan.boundary}: {percent(chosen.remaining_reduction)} of the reduction in "
        f"{plan.quantity} for {percent(chosen.flops_share)} of the FLOPs"
    )
    caption = (
        "A dot per boundary; the square is the chosen one. Filled and joined: none is both cheaper and leaves more to "
        "train."
    )
    if answers:
        caption += " The second curve: the same boundaries with weights that act on answers alone (+answer)."
    yield figure("fig-frontier", title, caption, paint)


def _lora(spent: Spent | None) -> Cell:
    """FLOPs, and in small print their share and the backward FLOPs' share of full fine-tuning's."""
    if spent is None:
        return number(None)
    shares = f"{percent(spent.flops_share)}\nbackward {percent(spent.flops_backward_share)}"
    return number(spent.flops, flops, shares)


def _answers(point: FrontierPoint) -> Cell:
    """FLOPs of answers alone, and in small print their share of full fine-tuning's, memory and cache."""
    if (spent := point.answer) is None:
        return number(None)
    held = f"{size(spent.training_bytes)}, cache {size(spent.cache_bytes)}"
    return number(spent.flops, flops, f"{percent(spent.flops_share)}\n{held}")


def _frontier_table(plan: FreezePlan) -> Table:
    columns: Columns[FrontierPoint] = {
        "Boundary": lambda p: number(p.boundary, mark="best" if p.boundary == plan.boundary else ""),
        "Trained": lambda p: number(p.trained_parameters, parameters, count(p.trained_parameters)),
        "FLOPs": lambda p: number(p.flops, flops, percent(p.flops_share)),
        "Backward": lambda p: number(p.flops_backward, flops, percent(p.flops_backward_share)),
        "LoRA": lambda p: _lora(p.lora),
        "Answers alone": _answers,
        "Recomputed": lambda p: number(p.flops_share_uncached, percent),
        "Memory": lambda p: number(p.training_bytes, size),
        plan.quantity.capitalize(): lambda p: number(p.observed, decimal),
        "Law": lambda p: number(p.predicted, decimal),
    }
    caption = (
        f"Every boundary: predicted cost, in small print shares of full fine-tuning, and {plan.quantity} at its space, "
        "traced and by the law."
    )
    return table("frontier-table", caption, plan.frontier, columns, folded=True)
