"""The frozen layers' one pass over a split."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from salf.engine.answers import Embeddings, Start
from salf.engine.batches import Batch, Example
from salf.engine.boundary_cache.layout import Layout
from salf.engine.boundary_cache.states import BoundaryStates
from salf.engine.models.adapter import CausalModel
from salf.engine.models.walk import behind, run, walk_beginning
from salf.engine.runtime import Runtime


class Team(Protocol):
    """Processes that compute together: each calls the same functions with the same arguments."""

    @property
    def rank(self) -> int:
        """Of this process, from 0."""

    @property
    def count(self) -> int:
        """How many there are."""

    def add_up(self, tensor: Tensor) -> Tensor:
        """``tensor`` with the sum over all processes in place of its values."""


def frozen_states(
    model: CausalModel,
    runtime: Runtime,
    examples: Sequence[Example],
    layout: Layout,
    start: Start,
    boundary: int,
    advance: Callable[[int], None] = lambda _: None,
    team: Team | None = None,
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
        team: processes that share the groups out among them; each gets the states of all.
    """
    with torch.no_grad(), runtime.autocast():
        beginning = walk_beginning(model, start.beginning(), start.space, boundary)
    if beginning is not None:
        yield beginning.states.cpu()

    def through(group: Sequence[int]) -> Tensor:
        batch = Batch.of(examples, group, layout.shared).to(model.device)
        with torch.no_grad(), runtime.autocast():
            packing = behind(batch.lengths, model.device, beginning)
            return run(model, start.states(batch), start.space, boundary, packing)

    size = team.count if team else 1
    for first in range(0, len(layout.groups), size):
        groups = layout.groups[first : first + size]
        yield from _through_together(groups, layout, through, team) if team else [through(groups[0]).cpu()]
        advance(sum(map(len, groups)))


def _through_together(
    groups: Sequence[Sequence[int]], layout: Layout, through: Callable[[Sequence[int]], Tensor], team: Team
) -> Sequence[Tensor]:
    """States of a group for every process at most: each computes one, and all get all."""
    sizes = [int(layout.lengths[group].sum()) for group in groups]
    mine = through(groups[min(team.rank, len(groups) - 1)])
    whole = mine.new_zeros(sum(sizes), mine.shape[1])
    if team.rank < len(groups):
        whole.split(sizes)[team.rank].copy_(mine)
    return team.add_up(whole).cpu().split(sizes)


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
