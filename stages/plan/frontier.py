"""Computes each boundary's cost and remaining reduction, and the boundary within the budget."""

import math
from collections.abc import Sequence
from typing import Any

from salf.evidence import DepthLaw
from salf.files import significant
from salf.plan_records import AnswerPoint, CostModel, FrontierPoint, Spent
from salf.records import BaseFacts
from salf.scale.inputs import UTILISATION, Configuration, Machine, device
from salf.scale.prediction import PRECISIONS, Cost, predict
from salf.workload import BoundaryFlops


def frontier(base: BaseFacts, work: CostModel, law: DepthLaw, machine: Machine | None = None) -> list[FrontierPoint]:
    """Cost and remaining reduction of the boundaries 0..L, by the law of the plan's quantity; seconds on a machine.

    A cost-benefit balance and the cost of back-propagation by layer are from the abstract; both axes are ours.
    """
    shape, model = base.shape, Configuration(base.identity.name, "", base.shape)
    nominal = device("h100", UTILISATION)  # whose seconds are left out
    predicted = predict(model, work, machine or nominal, PRECISIONS["float32"]).boundaries
    flops = [BoundaryFlops.of(shape, work, one.boundary) for one in predicted]
    mean, reduction = law.mean, law.mean[1] - law.mean[-1]
    left = [significant((value - mean[-1]) / reduction) if reduction > 0 else None for value in mean[1:]]
    remaining = [left[0], *left]  # boundaries 0 and 1 get the same: the embedding step is no layer's reduction
    efficient = _efficient([one.flops for one in predicted], remaining)
    whole = flops[0]
    return [
        FrontierPoint(
            **_cost(one, timed=machine is not None),
            boundary=boundary,
            trained_layers=shape.layers - boundary,
            flops_uncached=spent.uncached(work.epochs),
            flops_frozen=spent.frozen,
            flops_epoch=spent.epoch.total,
            flops_share_uncached=significant(spent.uncached(1) / whole.uncached(1)),
            flops_share_many_epochs=significant(spent.epoch.total / whole.epoch.total),
            lora=one.lora,
            answer=AnswerPoint(**_cost(one.answer, timed=machine is not None)) if one.answer else None,
            observed=significant(mean[boundary]),
            predicted=significant(law.predicted(boundary)),
            remaining_reduction=remaining[boundary],
            efficient=efficient[boundary],
        )
        for boundary, (one, spent) in enumerate(zip(predicted, flops, strict=True))
    ]


def _cost(one: Cost, *, timed: bool) -> dict[str, Any]:
    """The fields that a point shares with a prediction."""
    return {
        **{name: getattr(one, name) for name in (*Spent.model_fields, "trained_parameters", "cache_bytes")},
        "seconds": one.seconds if timed else None,
        "optimizer_bytes": one.memory.moments,
        "gradient_bytes": one.memory.gradients,
        "activation_bytes": one.memory.activations,
    }


def _efficient(costs: Sequence[int], remaining: Sequence[float | None]) -> list[bool]:
    """Pareto-efficient points: no other is at least as good in both and better in one."""
    points = [(cost, -math.inf if left is None else left) for cost, left in zip(costs, remaining, strict=True)]
    return [not any(c <= cost and r >= left and (c, r) != (cost, left) for c, r in points) for cost, left in points]
