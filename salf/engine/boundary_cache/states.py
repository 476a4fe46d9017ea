"""Boundary states: the order of a split's rows, the start of a pass, and the frozen layers' one pass."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Self
from weakref import finalize

import torch
from torch import Tensor

from salf.engine.answers import Embeddings, begin
from salf.engine.batches import Batch, Example, Start, inference_batches
from salf.engine.models.adapter import CausalModel
from salf.engine.models.attention import Beginning, Packing
from salf.engine.models.walk import run, walk_beginning
from salf.engine.progress import progress
from salf.engine.runtime import Runtime
from salf.engine.training.processes import ALONE, Processes


@dataclass(frozen=True)
class Layout:
    """The rows of a split: the shared prefix's, then group after group, in the order of writing."""

    examples: Sequence[Example] = field(repr=False)
    shared: int  # P, rows of the prefix that all prompts share
    batch_tokens: int  # tokens of a pass after the shared prefix, padding included, at most
    groups: list[list[int]]  # the examples of each pass through the frozen layers, of similar length
    firsts: Tensor  # the first row of every example, [examples]
    lengths: Tensor  # how many rows each has, [examples]

    @classmethod
    def of(
        cls, examples: Sequence[Example], shared: int, batch_tokens: int, groups: list[list[int]] | None = None
    ) -> Self:
        """Passes over examples that share their first ``shared`` tokens; ``groups``: those of longer examples."""
        tokens = [len(example.inputs) - shared for example in examples]
        groups = groups or inference_batches(tokens, batch_tokens)
        order = torch.tensor([i for group in groups for i in group])
        lengths = torch.tensor(tokens)
        ends = shared + lengths[order].cumsum(0)
        firsts = torch.empty_like(lengths).index_copy_(0, order, ends - lengths[order])
        return cls(examples, shared, batch_tokens, groups, firsts, lengths)

    @property
    def prefix(self) -> tuple[int, ...]:
        """The shared tokens."""
        return self.examples[0].prompt_ids[: self.shared]

    @property
    def rows(self) -> int:
        """All rows."""
        return self.shared + int(self.lengths.sum())

    def rows_of(self, index: Tensor, *, joined: bool) -> Tensor:
        """Row numbers of the examples ``index``, end to end, [N]; ``joined``: the shared prefix's P before them."""
        lengths = self.lengths[index]
        ends = lengths.cumsum(0)
        own = torch.arange(int(ends[-1])) + torch.repeat_interleave(self.firsts[index] - ends + lengths, lengths)
        return torch.cat([torch.arange(self.shared), own]) if joined else own


@dataclass(frozen=True)
class BoundaryStates:
    """States at a boundary, of the shared prefix and of every example: a ``Start``."""

    space: int  # the boundary
    layout: Layout  # where every example's rows are
    rows: Tensor  # [layout.rows, hidden], in memory or mapped, in the type in which the layer below left them
    device: torch.device  # where the suffix runs

    def beginning(self) -> Tensor | None:
        """See :class:`Start`."""
        return take_rows(self.rows, torch.arange(self.layout.shared), self.device) if self.layout.shared else None

    def states(self, batch: Batch, *, joined: bool = False) -> Tensor:
        """See :class:`Start`."""
        return take_rows(self.rows, self.layout.rows_of(batch.index.cpu(), joined=joined), self.device)


def take_rows(rows: Tensor, numbers: Tensor, device: torch.device) -> Tensor:
    """Some rows on a device: a copy, never a view. A mapped file may begin at any address, and products mind that."""
    if device.type != "cuda":
        return rows.index_select(0, numbers).to(device)
    pinned = torch.empty(len(numbers), rows.shape[1], dtype=rows.dtype, pin_memory=True)
    torch.index_select(rows, 0, numbers, out=pinned)
    return pinned.to(device, non_blocking=True)


@dataclass(frozen=True)
class FrozenLayers:
    """Layers 1..space, which run for every batch without gradients: a ``Start`` that keeps nothing."""

    model: CausalModel
    runtime: Runtime
    space: int
    below: Embeddings  # where the frozen layers' own pass begins
    walked: Beginning | None = field(repr=False)  # the shared prefix after these layers; it is walked once
    known: dict[int, Tensor] = field(default_factory=dict, repr=False)  # of batches in use, for further passes

    @classmethod
    def of_model(cls, model: CausalModel, runtime: Runtime, space: int, beginning: Sequence[int]) -> Self:
        """Layers 1..space and the token ids that all prompts begin with."""
        below = Embeddings.after(model, beginning)
        with torch.no_grad(), runtime.autocast():
            return cls(model, runtime, space, below, walk_beginning(model, below.beginning(), 0, space))

    def beginning(self) -> Tensor | None:
        """See :class:`Start`."""
        return self.walked.states if self.walked else None

    def states(self, batch: Batch, *, joined: bool = False) -> Tensor:
        """See :class:`Start`."""
        if id(batch) not in self.known:
            with torch.no_grad(), self.runtime.autocast():
                states, packing = begin(self.below, batch, self.walked)
                self.known[id(batch)] = run(self.model, states, 0, self.space, packing)
            finalize(batch, self.known.pop, id(batch), None)
        own = self.known[id(batch)]
        return torch.cat([self.walked.states, own]) if joined and self.walked else own


class Timed(Iterator[Tensor]):
    """Parts of states, and the seconds of computing them; writing is not counted."""

    def __init__(self, parts: Iterator[Tensor], seconds: float = 0.0) -> None:
        self.parts, self.seconds = parts, seconds

    def __next__(self) -> Tensor:
        began = time.perf_counter()
        try:
            return next(self.parts)
        finally:
            self.seconds += time.perf_counter() - began


def frozen_states(
    model: CausalModel, runtime: Runtime, layout: Layout, boundary: int, processes: Processes = ALONE
) -> Iterator[Tensor]:
    """Yield the states of space ``boundary``, [rows, hidden]: see :func:`passes`."""
    work = Pass(
        f"layers 1–{boundary} once",
        boundary,
        lambda states, packing, _: run(model, states, 0, boundary, packing),
        lambda beginning: beginning.states,
    )
    return passes(model, runtime, layout, None, work, processes)


@dataclass(frozen=True)
class Pass:
    """The quantities that are computed once per row."""

    name: str  # for the progress line
    last: int  # the last layer
    through: Callable[[Tensor, Packing, Sequence[int]], Tensor]  # a group's states at the start, to rows [n, width]
    of_beginning: Callable[[Beginning], Tensor]  # the shared prefix after the last layer, to rows [P, width]
    tap: int = 0  # a space of the shared prefix that is wanted, too


def passes(
    model: CausalModel, runtime: Runtime, layout: Layout, start: Start | None, work: Pass, processes: Processes
) -> Iterator[Tensor]:
    """Yield the rows of a pass in the order of ``layout``'s, on the host, and show progress; ``None``: from space 0.

    First the shared prefix's, where there is one; then each group's. Processes share the groups; each one gets all.
    """
    start = start or Embeddings.after(model, layout.prefix)

    def through(group: Sequence[int]) -> Tensor:
        batch = Batch.of(layout.examples, group, layout.shared).to(model.device)
        return work.through(*begin(start, batch, beginning), group)

    def through_together(groups: Sequence[Sequence[int]]) -> Sequence[Tensor]:
        """The rows of a group for every process at most: each computes one, and all get all."""
        sizes = [int(layout.lengths[group].sum()) for group in groups]
        mine = through(groups[min(processes.rank, len(groups) - 1)])
        whole = mine.new_zeros(sum(sizes), mine.shape[1])
        if processes.rank < len(groups):
            whole.split(sizes)[processes.rank].copy_(mine)
        return processes.add_up(whole).cpu().split(sizes)

    with progress(work.name, len(layout.examples), "examples") as advance:
        with torch.no_grad(), runtime.autocast():
            beginning = walk_beginning(model, start.beginning(), start.space, work.last, work.tap)
        if beginning is not None:
            yield work.of_beginning(beginning).cpu()
        for at in range(0, len(layout.groups), processes.count):
            groups = layout.groups[at : at + processes.count]
            # Not around the yield: the mode would hold for whoever takes the states.
            with torch.no_grad(), runtime.autocast():
                states = through_together(groups) if processes.count > 1 else [through(groups[0]).cpu()]
            yield from states
            advance(sum(map(len, groups)), "")


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
    model: CausalModel, runtime: Runtime, examples: Sequence[Example], shared: int, boundary: int, batch_tokens: int
) -> BoundaryStates:
    """Run ``examples`` through layers 1..boundary once and keep the states in memory."""
    layout = Layout.of(examples, shared, batch_tokens)
    rows = gather(frozen_states(model, runtime, layout, boundary), layout.rows)
    return BoundaryStates(boundary, layout, rows, model.device)
