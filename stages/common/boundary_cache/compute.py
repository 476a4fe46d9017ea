"""The frozen layers' one pass over a split."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from stages.common.answers import Embeddings, Start
from stages.common.batches import Batch, Example
from stages.common.boundary_cache.layout import Layout
from stages.common.boundary_cache.states import BoundaryStates
from stages.common.models.adapter import CausalModel
from stages.common.models.walk import behind, run, walk_beginning
from stages.common.runtime import Runtime


def frozen_states(
    model: CausalModel,
    runtime: Runtime,
    examples: Sequence[Example],
    layout: Layout,
    start: Start,
    boundary: int,
    advance: Callable[[int], None] = lambda _: None,
) -> Iterator[Tensor]:
    """Yield the states of space ``boundary`` in the order of ``layout``'s rows, on the host.

    First the beginning's, [P, hidden], where there is one; then each group's, [rows, hidden].

    Args:
        model: the model.
        runtime: device and precision.
        examples: the split.
        layout: its groups.
        start: where the pass begins: at the embeddings, or at a shallower boundary's states. Groups are the
            same either way, and so are the states, bit by bit.
        boundary: the last frozen layer.
        advance: called with the number of examples done.
    """
    with torch.no_grad(), runtime.autocast():
        beginning = walk_beginning(model, start.beginning(), start.space, boundary)
    if beginning is not None:
        yield beginning.states.cpu()
    for group in layout.groups:
        batch = Batch.of(examples, group, layout.shared).to(model.device)
        with torch.no_grad(), runtime.autocast():
            packing = behind(batch.lengths, model.device, beginning)
            rows = run(model, start.states(batch), start.space, boundary, packing).cpu()
        advance(len(group))
        yield rows


class Timed(Iterator[Tensor]):
    """Parts as they are computed, and the seconds that computing them took: writing them is not in it.

    Attributes:
        seconds: so far.
    """

    def __init__(self, parts: Iterator[Tensor], seconds: float = 0.0) -> None:
        """Begin the count at ``seconds``."""
        self.parts, self.seconds = parts, seconds

    def __next__(self) -> Tensor:
        began = time.perf_counter()
        try:
            return next(self.parts)
        finally:
            self.seconds += time.perf_counter() - began


def gather(parts: Iterable[Tensor], rows: int) -> Tensor:
    """Parts [n, hidden] one below the other in one tensor [rows, hidden], which is allocated once."""
    whole = torch.empty(0)
    filled = 0
    for part in parts:
        if not filled:
            whole = torch.empty(rows, part.shape[1], dtype=part.dtype)
        whole[filled : filled + len(part)] = part
        filled += len(part)
    return whole


def cache_boundary(
    model: CausalModel,
    runtime: Runtime,
    examples: Sequence[Example],
    shared: int,
    boundary: int,
    batch_tokens: int,
    advance: Callable[[int], None] = lambda _: None,
) -> BoundaryStates:
    """Run ``examples`` through layers 1..boundary once and keep the result in memory."""
    layout = Layout.of(examples, shared, batch_tokens)
    start = Embeddings.behind(model, examples[0].prompt_ids[:shared])
    parts = frozen_states(model, runtime, examples, layout, start, boundary, advance)
    return BoundaryStates(boundary, layout, gather(parts, layout.rows), model.device)
