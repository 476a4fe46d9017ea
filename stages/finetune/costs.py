"""Counts the operations of training: what is computed, not what would have to be."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from stages.common.batches import Batch, Example
from stages.common.cost import ModelShape, Technique, forward_flops, layer_forward_flops, training_flops


@dataclass(frozen=True)
class Costs:
    """Counts the operations of one pass over a batch.

    The frozen layers' pass counts as if this run had computed it, whoever did: what a method costs does
    not depend on which run came first.

    Attributes:
        rank: of the adapters, where there are any.
        frozen_anew: the frozen layers run for every batch instead of once for all epochs.
        recompute: the suffix's layers run a second time for back-propagation (gradient checkpointing).
    """

    shape: ModelShape
    boundary: int
    technique: Technique
    rank: int
    frozen_anew: bool = False
    recompute: bool = False

    def step(self, parts: Sequence[Batch], shared: int) -> int:
        """One optimizer step above the boundary; the shared beginning goes through once with every part."""
        return sum(self._pass(batch, shared) for batch in parts)

    def frozen(self, examples: Sequence[Example], shared: int) -> int:
        """The frozen layers before the first step: over all examples, or over the shared beginning alone."""
        if self.frozen_anew:
            return forward_flops(self.shape, self.boundary, shared, shared * (shared + 1) // 2)
        queries, attended = _sums(Batch.of(examples, range(len(examples)), shared), shared)
        return forward_flops(self.shape, self.boundary, queries, attended)

    def _pass(self, batch: Batch, shared: int) -> int:
        queries, attended = _sums(batch, shared)
        positions, seen = len(batch.targets), batch.seen(shared)
        flops = training_flops(
            self.shape, self.boundary, queries, attended, positions, seen, method=self.technique, rank=self.rank
        )
        if self.frozen_anew:
            flops += forward_flops(self.shape, self.boundary, batch.ids.numel(), batch.attended(shared))
        return flops + (self._recomputed(queries, attended, positions, seen) if self.recompute else 0)

    def _recomputed(self, queries: int, attended: int, positions: int, seen: int) -> int:
        """The second forward pass of the suffix's layers.

        It ends as soon as all that back-propagation reads is there again: before the last product of
        each layer's last linear map (with adapters: of the adapter beside it).
        """
        if self.boundary == self.shape.layers:
            return 0
        below, maps = self.shape.layers - self.boundary - 1, self.shape.linear_maps
        in_qkv = [maps[f"{name}_proj"] for name in "qkv"]
        in_last_layer = 2 * (_weights(in_qkv) * queries + self.shape.linear_parameters * positions)
        flops = forward_flops(self.shape, below, queries, attended) + in_last_layer
        flops += layer_forward_flops(self.shape, 0, seen)
        ends = below * queries + positions  # rows that leave a layer
        if self.technique == "weights":
            return flops - 2 * _weights([maps["down_proj"]]) * ends
        adapters = _widths(maps.values()) * ends + _widths(in_qkv) * queries
        return flops + 2 * self.rank * (adapters - self.shape.hidden * ends)


def _weights(maps: Iterable[tuple[int, int]]) -> int:
    return sum(wide * high for wide, high in maps)


def _widths(maps: Iterable[tuple[int, int]]) -> int:
    return sum(wide + high for wide, high in maps)


def _sums(batch: Batch, shared: int) -> tuple[int, int]:
    return batch.ids.numel() + shared, batch.attended(shared) + shared * (shared + 1) // 2
