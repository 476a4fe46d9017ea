"""What every boundary costs and leaves to be learned, and the budget's cut through it."""

import math
from collections.abc import Sequence
from typing import Final

from stages.common.artifacts import significant
from stages.common.command import UserError
from stages.common.cost import (
    FLOAT32_BYTES,
    ModelShape,
    activation_bytes_per_token,
    gradient_bytes,
    optimizer_bytes,
)
from stages.common.freeze_plan import CostModel, FrontierPoint
from stages.plan.evidence import BaseFacts, DepthLaw, PreparedSizes
from stages.plan.flops import BoundaryFlops

_FORMULA: Final = (
    "FLOPs of E epochs, cached: flops_frozen + E * flops_epoch; uncached: E * (flops_frozen + flops_epoch); "
    "the share of E epochs: many + (one - many) / E, with many = flops_share_many_epochs and "
    "one = flops_share_uncached"
)

COUNTED: Final = (
    "the scope's own weights train (no LoRA); matrix products only, 2 operations per multiply-add",
    "every row has the mean length; no padding; the head and most of the last layer at answer positions only",
)

_RECOMPUTED: Final = (
    "gradient checkpointing: each trained layer keeps its input alone, and runs again for back-propagation"
)


def cost_model(
    sizes: PreparedSizes,
    epochs: int,
    batch_rows: int,
    *,
    parts: int = 1,
    packed: bool = True,
    recompute: bool = False,
) -> CostModel:
    """The sums over the training split that the costs are counted from.

    The tokens that all prompts begin with go through trained layers once for every part of a batch, and through
    frozen ones once in all: no step changes what comes of them there. Layers that run padded take them with every
    row. Rows are taken at their mean length: the attention's share is a little more when they vary.

    Args:
        sizes: the prepared splits'.
        epochs: over the training split.
        batch_rows: of a batch.
        parts: that a batch is computed in, one after the other or on several devices.
        packed: the model's layers run without padding.
        recompute: trained layers run a second time for back-propagation.
    """
    train, shared = sizes.splits["train"], sizes.shared_prefix_tokens
    whole, rest = divmod(train.rows, batch_rows)
    walked = whole * min(parts, batch_rows) + min(parts, rest) if packed else train.rows
    frozen_walked = 1 if packed else train.rows
    own = train.tokens / train.rows - shared
    answer = train.answer_tokens / train.rows
    own_tokens, own_attended = train.tokens - train.rows * shared, round(train.rows * own * (shared + (own + 1) / 2))
    shared_attended = shared * (shared + 1) // 2
    return CostModel(
        epochs=epochs,
        batch_rows=batch_rows,
        value_bytes=FLOAT32_BYTES,
        rows=train.rows,
        parts=parts,
        shared=shared,
        queries=own_tokens + walked * shared,
        attended=own_attended + walked * shared_attended,
        positions=train.answer_tokens,
        seen=round(train.answer_tokens * (shared + own - (answer - 1) / 2)),
        frozen_queries=own_tokens + frozen_walked * shared,
        frozen_attended=own_attended + frozen_walked * shared_attended,
        recompute=recompute,
        formula=_FORMULA,
        assumptions=[
            f"flops and shares are those of finetune.epochs = {epochs} epochs; for others see the formula",
            beginning(batch_rows, shared, parts, packed),
            *COUNTED,
            *([_RECOMPUTED] if recompute else []),
            "AdamW with float32 moments, float32 gradients and activations; weights themselves not counted",
        ],
    )


def beginning(batch_rows: int, shared: int, parts: int, packed: bool) -> str:
    """How often what all prompts begin with is computed, in words."""
    batches = f"batches of {batch_rows} rows" + (f" in {parts} parts" if parts > 1 else "")
    if not packed:
        return f"{batches}: the {shared} tokens that all prompts begin with are computed in every row"
    often = "a part" if parts > 1 else "a batch"
    return (
        f"{batches}: the {shared} tokens that all prompts begin with are computed once {often}, once in frozen layers"
    )


def frontier(base: BaseFacts, work: CostModel, law: DepthLaw) -> list[FrontierPoint]:
    """Cost and remaining reduction of every boundary 0..L.

    Args:
        base: the model.
        work: one epoch's sums.
        law: the plan's quantity over the spaces.
    """
    layers = base.shape.layers
    costs = [BoundaryFlops.of(base.shape, work, boundary) for boundary in range(layers + 1)]
    remaining = [_remaining_reduction(law.mean, boundary) for boundary in range(layers + 1)]
    efficient = _efficient([cost.cached(work.epochs) for cost in costs], remaining)
    return [
        _point(base, work, law, boundary, costs, remaining[boundary], efficient[boundary])
        for boundary in range(layers + 1)
    ]


def within_budget(boundary: int, points: Sequence[FrontierPoint], budget: float) -> int:
    """The smallest boundary from ``boundary`` on that costs at most ``budget`` of full fine-tuning.

    Raises:
        UserError: not even training nothing but the final norm does.
    """
    for point in points[boundary:]:
        if point.flops_share <= budget:
            return point.boundary
    least = min(point.flops_share for point in points[boundary:])  # L's frozen pass may cost more than L-1's training
    raise UserError(
        f"params.yaml: plan.budget = {budget}: with every layer frozen, {least:.3f} of full fine-tuning's cost "
        f"remains; allowed here: {math.ceil(least * 1000) / 1000} to 1"
    )


def _point(
    base: BaseFacts,
    work: CostModel,
    law: DepthLaw,
    boundary: int,
    costs: Sequence[BoundaryFlops],
    remaining: float | None,
    efficient: bool,
) -> FrontierPoint:
    cost, whole, trained = costs[boundary], costs[0], base.trained_parameters(boundary)
    depth = base.shape.layers - boundary
    part_tokens = work.queries / work.parts_per_epoch
    return FrontierPoint(
        boundary=boundary,
        trained_layers=depth,
        trained_parameters=trained,
        flops=cost.cached(work.epochs),
        flops_uncached=cost.uncached(work.epochs),
        flops_frozen=cost.frozen,
        flops_epoch=cost.epoch,
        flops_share=significant(cost.cached(work.epochs) / whole.cached(work.epochs)),
        flops_share_uncached=significant(cost.uncached(1) / whole.uncached(1)),
        flops_share_many_epochs=significant(cost.epoch / whole.epoch),
        optimizer_bytes=optimizer_bytes(trained),
        gradient_bytes=gradient_bytes(trained, work.value_bytes),
        activation_bytes=round(part_tokens * _kept_bytes_per_token(base.shape, work, depth)),
        cache_bytes=work.frozen_queries * base.shape.hidden * work.value_bytes if boundary else 0,
        observed=significant(law.mean[boundary]),
        predicted=significant(law.predicted(boundary)),
        remaining_reduction=remaining,
        efficient=efficient,
    )


def _kept_bytes_per_token(shape: ModelShape, work: CostModel, depth: int) -> int:
    """What back-propagation through so many layers keeps; recomputed ones are there one at a time."""
    layer = activation_bytes_per_token(shape, work.value_bytes)
    if not work.recompute:
        return depth * layer
    return depth * shape.hidden * work.value_bytes + (layer if depth else 0)


def _remaining_reduction(mean: Sequence[float], boundary: int) -> float | None:
    whole = mean[1] - mean[-1]
    if whole <= 0:
        return None
    return significant((mean[max(boundary, 1)] - mean[-1]) / whole)


def _efficient(costs: Sequence[int], remaining: Sequence[float | None]) -> list[bool]:
    """Pareto-efficient points: none other is at least as good in both and better in one."""
    points = [(cost, -math.inf if left is None else left) for cost, left in zip(costs, remaining, strict=True)]
    return [not any(c <= cost and r >= left and (c, r) != (cost, left) for c, r in points) for cost, left in points]
