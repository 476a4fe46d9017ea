"""The hidden states at the boundary, computed once: frozen layers need no second look at the same data."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from stages.common.answers import Start
from stages.common.batches import Batch, Example, inference_batches
from stages.common.models.adapter import CausalModel
from stages.common.models.walk import embed, run, walk_beginning
from stages.common.runtime import Runtime


@dataclass(frozen=True)
class BoundaryCache:
    """States of space ``boundary``: of the shared beginning, and of every example behind it.

    Attributes:
        boundary: the space.
        shared: P, tokens of the beginning that all prompts share.
        beginning: [1, P, hidden], or ``None`` where P is 0.
        states: per example [tokens, hidden], without padding.
    """

    boundary: int
    shared: int
    beginning: Tensor | None
    states: list[Tensor]

    def start(self, device: torch.device) -> Start:
        """A pass that begins at the cached states."""
        beginning = None if self.beginning is None else self.beginning.to(device)
        return Start(self.boundary, self.shared, lambda: beginning, lambda batch: self.gather(batch).to(device))

    def gather(self, batch: Batch) -> Tensor:
        """The batch's states, padded on the right with zeros: [B, T, hidden]."""
        return pad_sequence([self.states[i] for i in batch.index.tolist()], batch_first=True)


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
    ids = torch.tensor([examples[0].prompt_ids[:shared]], dtype=torch.long, device=model.device)
    states: list[Tensor] = [torch.empty(0)] * len(examples)
    with runtime.autocast():
        beginning = walk_beginning(model, embed(model, ids) if shared else None, 0, boundary)
        for index in inference_batches([len(e.inputs) - shared for e in examples], batch_tokens):
            batch = Batch.of(examples, index, shared).to(model.device)
            ends = run(model, embed(model, batch.ids), 0, boundary, beginning).cpu()
            for row, i in enumerate(index):
                states[i] = ends[row, : int(batch.lengths[row])].clone()
            advance(len(index))
    return BoundaryCache(boundary, shared, beginning.states[-1].cpu() if beginning else None, states)
