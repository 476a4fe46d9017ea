"""Computes each boundary's cost and remaining reduction, and the boundary within the budget."""

import math
from collections.abc import Sequence

from salf.cost import activation_bytes_per_token, optimizer_bytes
from salf.evidence import DepthLaw
from salf.files import significant
from salf.plan_records import AnswerPoint, CostModel, FrontierPoint
from salf.records import BaseFacts
from salf.scale.inputs import Configuration, Machine
from salf.scale.prediction import PRECISIONS, predict
from salf.shape import ModelShape
from salf.workload import BoundaryFlops, prompt_cache_bytes, spent_on_lora


def frontier(base: BaseFacts, work: CostModel, law: DepthLaw, machine: Machine | None = None) -> list[FrontierPoint]:
    """Cost and remaining reduction of the boundaries 0..L, by the law of the plan's quantity; seconds on a machine.

    A cost-benefit balance and the cost of back-propagation by layer are from the abstract; both axes are ours.
    """
    boundaries = range(base.shape.layers + 1)
    costs = [BoundaryFlops.of(base.shape, work, boundary) for boundary in boundaries]
    remaining = [_remaining_reduction(law.mean, boundary) for boundary in boundaries]
    efficient = _efficient([cost.cached(work.epochs) for cost in costs], remaining)
    times = _times(base, work, machine) if machine else [(None, None)] * len(boundaries)
    part_tokens = work.queries / work.parts_per_epoch
    points = []
    for boundary in boundaries:
        cost, whole, trained = costs[boundary], costs[0], base.trained_parameters(boundary)
        depth = base.shape.layers - boundary
        points.append(
            FrontierPoint(
                boundary=boundary,
                trained_layers=depth,
                trained_parameters=trained,
                **cost.spent(whole, work.epochs).model_dump(),
                flops_uncached=cost.uncached(work.epochs),
                flops_frozen=cost.frozen,
                flops_epoch=cost.epoch.total,
                flops_share_uncached=significant(cost.uncached(1) / whole.uncached(1)),
                flops_share_many_epochs=significant(cost.epoch.total / whole.epoch.total),
                lora=spent_on_lora(base.shape, work, boundary),
                answer=_on_answers(base, work, boundary, whole, times[boundary][1]),
                seconds=times[boundary][0],
                optimizer_bytes=optimizer_bytes(trained),
                gradient_bytes=trained * work.value_bytes,
                activation_bytes=round(part_tokens * _kept_bytes_per_token(base.shape, work, depth)),
                cache_bytes=work.frozen_queries * base.shape.hidden * work.value_bytes if boundary else 0,
                observed=significant(law.mean[boundary]),
                predicted=significant(law.predicted(boundary)),
                remaining_reduction=remaining[boundary],
                efficient=efficient[boundary],
            )
        )
    return points


def _times(base: BaseFacts, work: CostModel, machine: Machine) -> list[tuple[float, float | None]]:
    """Predicted seconds where all positions train, and where answers alone do."""
    model = Configuration(base.identity.name, "", base.shape)
    predicted = predict(model, work, machine, PRECISIONS["float32"]).boundaries
    return [(one.all.seconds, one.answer.seconds if one.answer else None) for one in predicted]


def _on_answers(
    base: BaseFacts, work: CostModel, boundary: int, whole: BoundaryFlops, seconds: float | None
) -> AnswerPoint | None:
    """Return the cost of answers alone, as shares of ``whole``, full fine-tuning."""
    cost, shape, sums = BoundaryFlops.on_answers(base.shape, work, boundary), base.shape, work.answer
    if cost is None or sums is None:
        return None
    trained = base.trained_parameters(boundary, embeddings=False)
    kept = sums.queries / work.parts_per_epoch * _kept_bytes_per_token(shape, work, shape.layers - boundary)
    states = work.frozen_queries * shape.hidden * work.value_bytes if boundary else 0
    return AnswerPoint(
        **cost.spent(whole, work.epochs).model_dump(),
        seconds=seconds,
        trained_parameters=trained,
        optimizer_bytes=optimizer_bytes(trained),
        gradient_bytes=trained * work.value_bytes,
        activation_bytes=round(kept),
        cache_bytes=prompt_cache_bytes(shape, work, boundary, work.value_bytes) + states,
    )


def _kept_bytes_per_token(shape: ModelShape, work: CostModel, depth: int) -> int:
    """Bytes that back-propagation through ``depth`` layers stores; recomputed layers are held one at a time."""
    layer = activation_bytes_per_token(shape, work.value_bytes)
    if not work.recompute:
        return depth * layer
    return depth * shape.hidden * work.value_bytes + (layer if depth else 0)


def _remaining_reduction(mean: Sequence[float], boundary: int) -> float | None:
    whole = mean[1] - mean[-1]
    return significant((mean[max(boundary, 1)] - mean[-1]) / whole) if whole > 0 else None


def _efficient(costs: Sequence[int], remaining: Sequence[float | None]) -> list[bool]:
    """Pareto-efficient points: no other is at least as good in both and better in one."""
    points = [(cost, -math.inf if left is None else left) for cost, left in zip(costs, remaining, strict=True)]
    return [not any(c <= cost and r >= left and (c, r) != (cost, left) for c, r in points) for cost, left in points]
