"""Counts the operations of training: what is computed, not what would have to be."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from salf.cost import (
    ModelShape,
    Technique,
    forward_flops,
    head_forward_flops,
    last_map_flops,
    reading_flops,
    training_flops,
    weight_gradient_flops,
)
from salf.engine.batches import Batch, Example


@dataclass(frozen=True)
class Costs:
    """Counts the operations of one pass over a batch.

    The frozen layers' pass counts as if this run had computed it, whoever did: what a method costs does
    not depend on which run came first.

    Attributes:
        rank: of the adapters, where there are any.
        frozen_anew: the frozen layers run for every batch instead of once for all epochs.
        recompute: the suffix's layers run a second time for back-propagation (gradient checkpointing).
        own_head_frozen: a head with weights of its own does not train.
    """

    shape: ModelShape
    boundary: int
    technique: Technique
    rank: int
    frozen_anew: bool = False
    recompute: bool = False
    own_head_frozen: bool = False

    def step(self, parts: Sequence[Batch], shared: int, layers: Collection[int] | None = None) -> int:
        """One optimizer step above the boundary; the shared beginning goes through once with every part.

        ``layers``: those that train, from 1, where back-propagation passes others on its way to the boundary.
        """
        return sum(self._pass(batch, shared) - self._spared(batch, shared, layers) for batch in parts)

    def frozen(self, examples: Sequence[Example], shared: int) -> int:
        """The frozen layers before the first step: over all examples, or over the shared beginning alone."""
        if self.frozen_anew:
            return forward_flops(self.shape, self.boundary, shared, shared * (shared + 1) // 2)
        queries, attended, _, _ = self._whole(examples, shared)
        return forward_flops(self.shape, self.boundary, queries, attended)

    def reading(self, examples: Sequence[Example], shared: int) -> int:
        """One look at the answers of all examples above the boundary, as validation takes it."""
        queries, attended, positions, seen = self._whole(examples, shared)
        flops = 0
        if self.shape.packed:  # the beginning is walked by itself, through all of the last layer too
            square = shared * (shared + 1) // 2
            flops += forward_flops(self.shape, self.shape.layers - self.boundary, shared, square)
            queries, attended = queries - shared, attended - square
        if self.frozen_anew:
            flops += forward_flops(self.shape, self.boundary, queries, attended)
        return flops + reading_flops(self.shape, self.boundary, queries, attended, positions, seen)

    def _whole(self, examples: Sequence[Example], shared: int) -> tuple[int, int, int, int]:
        """The four sums of a pass over all examples, the beginning walked once; padded ones each by itself."""
        together = [examples] if self.shape.packed else [[example] for example in examples]
        batches = [Batch.of(some, range(len(some)), shared) for some in together]
        rows = [(*_sums(self.shape, batch, shared), len(batch.targets), batch.seen(shared)) for batch in batches]
        queries, attended, positions, seen = (sum(column) for column in zip(*rows, strict=True))
        return queries, attended, positions, seen

    def _pass(self, batch: Batch, shared: int) -> int:
        queries, attended = _sums(self.shape, batch, shared)
        positions, seen = len(batch.targets), batch.seen(shared)
        flops = training_flops(
            self.shape,
            self.boundary,
            queries,
            attended,
            positions,
            seen,
            method=self.technique,
            rank=self.rank,
            recompute=self.recompute,
        )
        if self.frozen_anew:  # a packed beginning was walked before
            own = (batch.ids.numel(), batch.attended(shared)) if self.shape.packed else (queries, attended)
            flops += forward_flops(self.shape, self.boundary, *own)
        return flops

    def _spared(self, batch: Batch, shared: int, layers: Collection[int] | None) -> int:
        """The gradients of weights above the boundary that do not train, and what dropout there would recompute."""
        depth, positions = self.shape.layers, len(batch.targets)
        idle = set(range(self.boundary + 1, depth + 1)) - set(layers) if layers is not None else set()
        queries, _ = _sums(self.shape, batch, shared)
        counts = len(idle - {depth}), len(idle & {depth})
        spared = weight_gradient_flops(self.shape, *counts, queries, positions)
        if self.recompute and self.shape.layer.ends_in_map and self.shape.layer.drops:
            spared += last_map_flops(self.shape, *counts, queries, positions)
        head = self.own_head_frozen and not self.shape.tied_head
        return spared + head * head_forward_flops(self.shape, positions)


def _sums(shape: ModelShape, batch: Batch, shared: int) -> tuple[int, int]:
    """Tokens, and the keys that they see; a padded batch has a copy of the beginning in every row."""
    if not shape.packed:
        rows, longest = len(batch.lengths), shared + max(batch.lengths)
        return rows * longest, rows * longest * (longest + 1) // 2
    return batch.ids.numel() + shared, batch.attended(shared) + shared * (shared + 1) // 2
