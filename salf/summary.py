"""The plan in a few lines, for the eyes."""

from collections.abc import Iterator
from typing import Final

from salf.plan import FreezePlan
from salf.plan_records import FrontierPoint

_ROWS: Final = 6
_LAW: Final = "salf-law"


def summary(plan: FreezePlan) -> Iterator[str]:
    """Say in lines what was chosen, why, how sure, and what some boundaries cost and leave to be trained."""
    trained, point = plan.parameters.trained / plan.parameters.total, plan.frontier[plan.boundary]
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
    yield (
        f"Cost: {point.flops_share:.0%} of full fine-tuning's FLOPs over {plan.cost_model.epochs} epochs "
        f"({point.flops_share_uncached:.0%} for one epoch or without cached boundary states, "
        f"{point.flops_share_many_epochs:.0%} for many){_backward(point)}."
    )
    if timed := plan.timed:
        fits = {"all positions": timed.shallowest, "answers alone (+answer)": timed.shallowest_answer}
        within = "; ".join(f"{what} from boundary {k} on" for what, k in fits.items() if k is not None)
        yield f"Predicted: {(point.seconds or 0) / 60:.3g} min. Within {timed.budget}: {within or 'nothing'}."
    yield f"frozen up to   trained parameters  FLOPs  backward  {f'mean {plan.quantity}':>14}  reduction left"
    shown = {round(step * plan.model.layers / (_ROWS - 1)) for step in range(_ROWS)} | {plan.boundary}
    for one in (plan.frontier[boundary] for boundary in sorted(shown)):
        name = f"{one.boundary}{' <- chosen' if one is point else ''}"
        back, left = _share(one.flops_backward_share), _share(one.remaining_reduction)
        yield f"{name:13}{one.trained_parameters:20,}{one.flops_share:7.0%}{back:>10}{one.observed:16.3f}{left:>16}"


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


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"
