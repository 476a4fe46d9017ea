"""Where a pass through the suffix begins: at kept boundary states, or behind frozen layers that run again."""

from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor

from salf.engine.answers import Embeddings
from salf.engine.batches import Batch
from salf.engine.boundary_cache.layout import Layout
from salf.engine.models.adapter import CausalModel
from salf.engine.models.walk import Beginning, behind, run, walk_beginning
from salf.engine.runtime import Runtime


@dataclass(frozen=True)
class BoundaryStates:
    """States of space ``space``, of the shared beginning and of every example behind it: a ``Start``.

    They are kept in the type in which the layer below left them, which is the one that the layer above
    reads: nothing is rounded.

    Attributes:
        space: the boundary.
        layout: where every example's rows lie.
        rows: the states, [layout.rows, hidden], in memory or mapped from a file.
        device: where the suffix runs.
    """

    space: int
    layout: Layout
    rows: Tensor
    device: torch.device

    @property
    def shared(self) -> int:
        """P, tokens of the beginning that all prompts share."""
        return self.layout.shared

    def beginning(self) -> Tensor | None:
        """The shared beginning's states, [P, hidden]; ``None`` where P is 0."""
        return self._rows(torch.arange(self.shared)) if self.shared else None

    def states(self, batch: Batch, *, joined: bool = False) -> Tensor:
        """The batch's states, [N, hidden]; ``joined``: the beginning's before them."""
        return self._rows(self.layout.rows_of(batch.index.cpu(), joined=joined))

    def _rows(self, numbers: Tensor) -> Tensor:
        """A fresh copy, never a view: a mapped file may begin at any address, and products mind alignment."""
        if self.device.type != "cuda":
            return self.rows.index_select(0, numbers).to(self.device)
        pinned = torch.empty(len(numbers), self.rows.shape[1], dtype=self.rows.dtype, pin_memory=True)
        torch.index_select(self.rows, 0, numbers, out=pinned)
        return pinned.to(self.device, non_blocking=True)


@dataclass(frozen=True)
class FrozenLayers:
    """Start behind layers 1..space, which run for every batch, without gradients: a ``Start`` that keeps nothing.

    Attributes:
        below: where the frozen layers' own pass begins.
        walked: the beginning that all prompts share, behind these layers; it is walked once.
    """

    model: CausalModel
    runtime: Runtime
    space: int
    below: Embeddings
    walked: Beginning | None = field(repr=False)

    @classmethod
    def of(cls, model: CausalModel, runtime: Runtime, space: int, beginning: tuple[int, ...]) -> Self:
        """Behind layers 1..space and the token ids that all prompts begin with."""
        below = Embeddings.behind(model, beginning)
        with torch.no_grad(), runtime.autocast():
            return cls(model, runtime, space, below, walk_beginning(model, below.beginning(), 0, space))

    @property
    def shared(self) -> int:
        """P, tokens of the beginning that all prompts share."""
        return self.below.shared

    def beginning(self) -> Tensor | None:
        """The shared beginning's states, [P, hidden]; ``None`` where P is 0."""
        return self.walked.states if self.walked else None

    def states(self, batch: Batch, *, joined: bool = False) -> Tensor:
        """The batch's states, [N, hidden]; ``joined``: the beginning's before them."""
        with torch.no_grad(), self.runtime.autocast():
            packing = behind(batch.lengths, self.model.device, self.walked)
            own = run(self.model, self.below.states(batch), 0, self.space, packing)
        return torch.cat([self.walked.states, own]) if joined and self.walked else own
