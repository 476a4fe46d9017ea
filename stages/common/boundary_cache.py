"""The hidden states at the boundary, computed once: frozen layers need no second look at the same data."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stages.common.answers import Embeddings
from stages.common.batches import Batch, Example, inference_batches
from stages.common.models.adapter import CausalModel
from stages.common.models.walk import behind, run, walk_beginning
from stages.common.runtime import Runtime


@dataclass(frozen=True)
class BoundaryCache:
    """States of space ``space``, of the shared beginning and of every example behind it: where the suffix starts.

    Attributes:
        space: the boundary.
        shared: P, tokens of the beginning that all prompts share.
        start: the beginning's states, [P, hidden], or ``None`` where P is 0.
        examples: per example [tokens, hidden].
        device: where the suffix runs.
    """

    space: int
    shared: int
    start: Tensor | None
    examples: list[Tensor]
    device: torch.device

    def beginning(self) -> Tensor | None:
        """The shared beginning's states, [P, hidden]."""
        return None if self.start is None else self.start.to(self.device)

    def states(self, batch: Batch, *, joined: bool = False) -> Tensor:
        """The batch's states, [N, hidden]; ``joined``: the beginning's before them."""
        before = [self.start] if joined and self.start is not None else []
        return torch.cat([*before, *(self.examples[i] for i in batch.index.tolist())]).to(self.device)


@torch.no_grad()
def cache_boundary(
    model: CausalModel,
    runtime: Runtime,
    examples: Sequence[Example],
    shared: int,
    boundary: int,
    batch_tokens: int,
    advance: Callable[[int], None] = lambda _: None,
) -> BoundaryCache:
    """Run ``examples`` through layers 1..boundary once."""
    start = Embeddings.behind(model, examples[0].prompt_ids[:shared])
    states: list[Tensor] = [torch.empty(0)] * len(examples)
    with runtime.autocast():
        beginning = walk_beginning(model, start.beginning(), 0, boundary)
        for index in inference_batches([len(e.inputs) - shared for e in examples], batch_tokens):
            batch = Batch.of(examples, index, shared).to(model.device)
            ends = run(model, start.states(batch), 0, boundary, behind(batch.lengths, model.device, beginning))
            for i, rows in zip(index, ends.cpu().split(batch.lengths), strict=True):
                states[i] = rows.clone()
            advance(len(index))
    return BoundaryCache(boundary, shared, beginning.states.cpu() if beginning else None, states, model.device)
