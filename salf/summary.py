"""The plan in a few lines, for the eyes."""

from collections.abc import Iterator

from rich.console import Console
from rich.table import Table

from salf.plan import FreezePlan
from salf.plan_records import FrontierPoint

_ROWS = 6
_LAW = "salf-law"


def print_summary(plan: FreezePlan, console: Console) -> None:
    """Print what was chosen, why, how sure, and a few rows of the frontier."""
    for line in summary_lines(plan):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    console.print(frontier_table(plan))


def summary_lines(plan: FreezePlan) -> Iterator[str]:
    """The choice in plain words."""
    trained = plan.parameters.trained / plan.parameters.total
    yield f"Plan ({plan.selector}): {_scope(plan)}; {trained:.1%} of {plan.parameters.total:,} parameters train."
    yield f"Why: {plan.reason}."
    if plan.fallback:
        yield f"Note: {plan.fallback}."
    yield f"Certainty: {plan.certainty.words}."
    if law := plan.boundaries.get(_LAW):
        low, high = law.interval or (law.boundary, law.boundary)
        yield f"By the law ({_LAW}): boundary {law.boundary}, {low} to {high} over resamples of the traced examples."
        if law.warning:
            yield f"Warning ({_LAW}): {law.warning}."
    point = plan.frontier[plan.boundary]
    yield (
        f"Cost: {point.flops_share:.0%} of full fine-tuning's FLOPs over {plan.cost_model.epochs} epochs "
        f"({point.flops_share_uncached:.0%} for one epoch or without cached boundary states, "
        f"{point.flops_share_many_epochs:.0%} for many){_backward(point)}."
    )
    if timed := plan.timed:
        fits = {"all positions": timed.shallowest, "answers alone (+answer)": timed.shallowest_answer}
        within = "; ".join(f"{what} from boundary {k} on" for what, k in fits.items() if k is not None)
        yield f"Predicted: {(point.seconds or 0) / 60:.3g} min. Within {timed.budget}: {within or 'nothing'}."


def frontier_table(plan: FreezePlan) -> Table:
    """Some boundaries of the frontier, the chosen one among them."""
    table = Table(title="What each boundary costs and leaves to be trained")
    for name in ("frozen up to", "trained parameters", "FLOPs", "backward", f"mean {plan.quantity}", "reduction left"):
        table.add_column(name, justify="right")
    for point in _some(plan):
        chosen = " <- chosen" if point.boundary == plan.boundary else ""
        left = "" if point.remaining_reduction is None else f"{point.remaining_reduction:.0%}"
        table.add_row(
            f"{point.boundary}{chosen}",
            f"{point.trained_parameters:,}",
            f"{point.flops_share:.0%}",
            "" if point.flops_backward_share is None else f"{point.flops_backward_share:.0%}",
            f"{point.observed:.3f}",
            left,
        )
    return table


def _backward(point: FrontierPoint) -> str:
    if point.flops_backward_share is None:
        return ""
    lora = f" ({point.lora.flops_backward_share:.0%} with LoRA)" if point.lora else ""
    return f", and {point.flops_backward_share:.0%} of its backward FLOPs{lora}"


def _scope(plan: FreezePlan) -> str:
    layers = plan.model.layers
    if plan.boundary == 0:
        return f"nothing is frozen, all {layers} layers train"
    if plan.boundary == layers:
        return f"embeddings and all {layers} layers frozen"
    return f"embeddings and layers 1-{plan.boundary} frozen, layers {plan.boundary + 1}-{layers} train"


def _some(plan: FreezePlan) -> list[FrontierPoint]:
    layers = plan.model.layers
    shown = {round(step * layers / (_ROWS - 1)) for step in range(_ROWS)} | {plan.boundary}
    return [plan.frontier[boundary] for boundary in sorted(shown)]
