"""Counts the FLOPs of training: what is computed, not what would have to be."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, count, islice, takewhile

import numpy as np

from salf import cost
from salf.cost import PLAIN, Flops, Sums, Technique
from salf.engine.batches import Batch, Split, training_batches
from salf.engine.training.scope import Scope
from salf.settings import Finetune
from salf.shape import ModelShape


@dataclass(frozen=True)
class Costs:
    """Counts the FLOPs of passes over batches and splits.

    The frozen layers' pass counts as if this run had computed it, whoever did: what a method costs does
    not depend on which run came first.
    """

    shape: ModelShape
    scope: Scope
    technique: Technique = PLAIN  # what a step computes
    recompute: bool = False  # the trained layers run a second time for back-propagation (gradient checkpointing)
    uncached: bool = False  # the frozen layers run for every batch instead of once for all epochs
    prompts_uncached: bool = False  # so do all layers over the prompts that the base reads before answers
    teacher: int = 0  # FLOPs of a teacher's pass

    def step(self, parts: Sequence[Batch], number: int = 0, steps: int | None = None) -> Flops:
        """Optimizer step ``number`` of ``steps``, from 0, above the boundary; every part walks the shared prefix.

        Without ``steps``, passes that only some of the steps take count with their mean.
        """
        progress = None if steps is None else number / steps
        return sum((self._part(batch, number, progress) for batch in parts), Flops())

    def before(self, split: Split) -> int:
        """FLOPs before the first step on a training split."""
        return self.teacher + self.frozen(split)

    def frozen(self, split: Split) -> int:
        """FLOPs of the frozen layers before the first step: over all examples, or over the shared prefix alone.

        The frozen layers, where there are some; and where answers alone train, the others over their prompts.
        """
        return self.frozen_states(split) + self.frozen_prompts(split)

    def frozen_states(self, split: Split) -> int:
        """The part of :meth:`frozen` that boundary states cost."""
        boundary = self.scope.boundary
        if not boundary or self.uncached:
            square = split.shared * (split.shared + 1) // 2
            return cost.forward_flops(self.shape, boundary, split.shared, square)
        queries, attended, _, _ = self._whole(Split(split.examples, split.shared))
        return cost.forward_flops(self.shape, boundary, queries, attended)

    def frozen_prompts(self, split: Split, begun: int = 0) -> int:
        """The part of :meth:`frozen` that keys and values of prompts cost, above space ``begun`` at least."""
        if not split.base_rows:
            return 0
        every = self.prompts_uncached or self.uncached
        layers = self.shape.layers - (0 if every else max(self.scope.boundary, begun))
        flops = cost.forward_flops(self.shape, layers, split.shared, split.shared * (split.shared + 1) // 2)
        return flops if self.prompts_uncached else flops + self._prompts(split.batch(range(len(split))), layers)

    def _prompts(self, batch: Batch, layers: int) -> int:
        """Keys and values of a batch's prompts at the last ``layers`` layers, the shared prefix walked before."""
        prompts = batch.prompts
        if prompts is None:
            return 0
        return cost.keys_values_flops(self.shape, layers, prompts.ids.numel(), prompts.attended)

    def reading(self, split: Split) -> int:
        """Reading all answers above the boundary once, as validation does."""
        boundary = self.scope.boundary
        sums = self._whole(split)
        flops = 0
        # The prefix is walked by itself, through all of the last layer too.
        if self.shape.packed and not split.base_rows:
            square = split.shared * (split.shared + 1) // 2
            flops += cost.forward_flops(self.shape, self.shape.layers - boundary, split.shared, square)
            sums = sums._replace(queries=sums.queries - split.shared, attended=sums.attended - square)
        if self.uncached:
            flops += cost.forward_flops(self.shape, boundary, sums.queries, sums.attended)
        if self.prompts_uncached:
            flops += self._prompts(split.batch(range(len(split))), self.shape.layers)
        return flops + cost.reading_flops(self.shape, boundary, sums, self.technique)

    def comparing(self, asked: Split) -> int:
        """Reading answers that are not the example's own, which start at the embeddings, or after the prompts."""
        every, first = replace(self, uncached=True), 0
        if asked.base_rows and self.scope.boundary and not self.prompts_uncached:  # cached above the boundary alone
            first = self._prompts(asked.batch(range(len(asked))), self.scope.boundary)
        elif self.shape.packed and not asked.base_rows:
            first = every.frozen_states(asked)
        return first + every.reading(asked)

    def _whole(self, split: Split) -> Sums:
        """The sums of a pass over a split, the prefix walked once; padded examples each by itself."""
        everything = range(len(split.examples))
        batches = [split.batch(index) for index in ([everything] if self.shape.packed else [[i] for i in everything])]
        return Sums(*map(sum, zip(*(_sums(self.shape, batch) for batch in batches), strict=True)))

    def _part(self, batch: Batch, number: int, progress: float | None) -> Flops:
        sums = _sums(self.shape, batch)
        flops = cost.training_passes(
            self.shape,
            self.scope.boundary,
            sums,
            technique=self.technique,
            recompute=self.recompute,
            embeddings=self.scope.embeddings,
            progress=progress,
        )
        if self.technique.weights:
            flops += Flops(backward=-self._spared(batch, number)) * self.technique.passes_at(progress)
        frozen = 0
        if self.uncached:  # a packed prefix was walked before
            own = (batch.ids.numel(), batch.attended) if self.shape.packed else sums[:2]
            frozen += cost.forward_flops(self.shape, self.scope.boundary, *own)
        if self.prompts_uncached:
            frozen += self._prompts(batch, self.shape.layers)
        # Further passes of a step find boundary states again, but read prompts anew.
        again = self.technique.passes_at(progress) if batch.prompts is not None else 1
        return flops + Flops(frozen) * again

    def _spared(self, batch: Batch, number: int) -> int:
        """The gradients of weights above the boundary that do not train, and what dropout there would recompute."""
        depth, sums = self.shape.layers, _sums(self.shape, batch)
        idle = set(range(self.scope.boundary + 1, depth + 1)) - set(self.scope.layers_at(number))
        rows = cost.suffix_rows(self.shape, len(idle - {depth}), len(idle & {depth}), sums)
        spared = 2 * sum(part.products * used for part, _, used in rows)
        if self.recompute and self.shape.layer.ends_in_map and self.shape.layer.drops:
            end, _, used = rows[-1]
            spared += 2 * end.products * used
        own_head_frozen = not (self.scope.final or self.shape.tied_head or self.technique.matrices_alone)
        return spared + own_head_frozen * cost.head_forward_flops(self.shape, sums.positions)


def _sums(shape: ModelShape, batch: Batch) -> Sums:
    """Those of a batch's pass; a padded batch has a copy of the prefix in every row."""
    shared, queries, attended = batch.shared, batch.ids.numel(), batch.attended
    if batch.prompts is None and shape.packed:
        queries, attended = queries + shared, attended + shared * (shared + 1) // 2
    elif batch.prompts is None:
        rows, longest = len(batch.lengths), shared + max(batch.lengths)
        queries, attended = rows * longest, rows * longest * (longest + 1) // 2
    return Sums(queries, attended, len(batch.targets), batch.seen)


def epoch_batches(split: Split, settings: Finetune, seed: int, processes: int = 1) -> Iterator[Iterator[list[Batch]]]:
    """The parts of every batch of an epoch, epoch after epoch without end; take them in this order."""
    rng = np.random.default_rng(seed)
    while True:
        indices = training_batches(split.lengths, settings.batch_size, rng)
        yield ([split.batch(part) for part in cut(index, processes * settings.accumulate)] for index in indices)


def cut(index: Sequence[int], parts: int) -> list[list[int]]:
    """A batch's examples in at most ``parts`` parts, none empty; alike in size and, sorted by length, in tokens."""
    return [list(index[part::parts]) for part in range(min(parts, len(index)))]


def equal_compute_epochs(
    full: Costs, costs: Costs, split: Split, settings: Finetune, seed: int, processes: int = 1
) -> int:
    """The most whole epochs that cost no more FLOPs than full fine-tuning's ``settings.epochs``, but no fewer.

    ``full`` counts full fine-tuning, ``costs`` the method; ``seed`` orders the examples.
    """

    def per_epoch(counted: Costs, examples: Split) -> Iterator[int]:
        number = count()
        for epoch in epoch_batches(examples, settings, seed, processes):
            yield sum(counted.step(parts, next(number)).total for parts in epoch)

    allowed = sum(islice(per_epoch(full, Split(split.examples, split.shared)), settings.epochs))
    spent = accumulate(per_epoch(costs, split), initial=costs.before(split))  # after 0, 1, 2 … epochs
    affordable = sum(1 for _ in takewhile(lambda flops: flops <= allowed, spent)) - 1
    return max(affordable, settings.epochs)
