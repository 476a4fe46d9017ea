"""Keys and values of prompts, as the base model computes them: what the trained side of examples attends to."""

from collections.abc import Iterator, MutableSequence, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import torch
from torch import Tensor

from salf.engine.answers import AnswerSide, PromptSource
from salf.engine.batches import Batch, Split, Start
from salf.engine.boundary_cache.states import BoundaryStates, FrozenLayers, Layout, Pass, gather, passes, take_rows
from salf.engine.models.adapter import CausalModel
from salf.engine.models.attention import Beginning, KeysValues, Packing, Prompts
from salf.engine.models.walk import run, run_to_keys_values
from salf.engine.runtime import Runtime
from salf.engine.training.processes import ALONE, Processes
from salf.errors import UserError


@dataclass(frozen=True)
class Columns:
    """The columns of a row: keys and values of layers first+1..L, end to end.

    With ``int8`` they are rounded to 255 steps, and a float32 scale of each head follows all of them: an error of at
    most 1/254 of the greatest entry of a token's key or value in a head.
    """

    first: int
    shapes: tuple[tuple[int, int], ...]  # heads and head size: of a layer's keys, of its values, of the next one's keys
    dtype: torch.dtype
    int8: bool = False

    @classmethod
    def of(cls, model: CausalModel, runtime: Runtime, first: int) -> Self:
        """Learn them from a pass over one token; a ``UserError`` says that the model's layers run padded."""
        if not model.family.packed:
            kind = model.network.config.model_type
            raise UserError(f"{kind!r}: its layers take no keys and values of an earlier pass; leave out +answer")
        packing = Packing.of([1], model.device)
        with torch.no_grad(), runtime.autocast():
            states = model.embed(torch.zeros_like(packing.slots), packing.slots)
            parts = _in_order(run_to_keys_values(model, states, 0, model.depth, packing), first)
        return cls(first, tuple((part.shape[1], part.shape[3]) for part in parts), parts[0].dtype)

    @property
    def width(self) -> int:
        """Numbers in a row."""
        return sum(heads * size for heads, size in self.shapes)

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        heads = sum(heads for heads, _ in self.shapes)
        return self.width + 4 * heads if self.int8 else self.width * self.dtype.itemsize

    def join(self, found: dict[int, KeysValues]) -> Tensor:
        """Keys and values by layer, each [1, heads, n, head size], to rows [n, width], or bytes [n, row_bytes]."""
        parts = [part[0].transpose(0, 1) for part in _in_order(found, self.first)]  # [n, heads, head size]
        if not self.int8:
            return torch.cat([part.flatten(1) for part in parts], dim=1)
        scales = [part.abs().amax(-1).float().clamp(min=1e-30) / 127 for part in parts]  # [n, heads]
        steps = [(part / s[..., None]).round().to(torch.int8).flatten(1) for part, s in zip(parts, scales, strict=True)]
        return torch.cat([*steps, torch.cat(scales, dim=1).view(torch.int8)], dim=1)

    def split(self, rows: Tensor) -> dict[int, KeysValues]:
        """Rows [B, n, width] to keys and values by layer, each [B, heads, n, head size]; views, unless int8."""
        values, scales = rows.split([self.width, rows.shape[-1] - self.width], dim=-1)
        parts = values.split([heads * size for heads, size in self.shapes], dim=-1)
        shaped = [part.unflatten(-1, shape) for part, shape in zip(parts, self.shapes, strict=True)]
        if self.int8:
            by_part = scales.contiguous().view(torch.float32).split([heads for heads, _ in self.shapes], dim=-1)
            shaped = [(part * s[..., None]).to(self.dtype) for part, s in zip(shaped, by_part, strict=True)]
        shaped = [part.transpose(1, 2) for part in shaped]
        return dict(enumerate(zip(shaped[::2], shaped[1::2], strict=True), self.first))


def _in_order(found: dict[int, KeysValues], first: int) -> list[Tensor]:
    return [part for number in sorted(found) if number >= first for part in found[number]]


@dataclass(frozen=True)
class PromptRows:
    """Cached keys and values of the prompts of a split."""

    columns: Columns
    layout: Layout  # where every prompt's rows are
    rows: Tensor  # [layout.rows, width], in memory or mapped
    device: torch.device  # where the trained layers run

    def of(self, batch: Batch) -> Prompts:
        """The prompts of a batch; where one is shorter than the longest, its last row is repeated and not seen."""
        index = batch.index.cpu()
        lengths = self.layout.lengths[index]  # [B]
        steps = torch.arange(int(lengths.max())).expand(len(index), -1)
        numbers = self.layout.firsts[index][:, None] + torch.minimum(steps, lengths[:, None] - 1)  # [B, T']
        rows = take_rows(self.rows, numbers.flatten(), self.device).unflatten(0, numbers.shape)
        own = self.columns.split(rows)
        return Prompts(self.layout.shared, lengths.to(self.device), lambda number: (self._shared[number], own[number]))

    @cached_property
    def _shared(self) -> dict[int, KeysValues]:
        rows = take_rows(self.rows, torch.arange(self.layout.shared), self.device)
        return self.columns.split(rows[None])


class PromptLayers(FrozenLayers):
    """Layers 1..space, which read the prompts of every batch from the embeddings on.

    The model is the base, or one whose layers 1..space are the base's.
    """

    def of(self, batch: Batch) -> Prompts:
        """Keys and values of a batch's prompts at layers 1..space."""
        prompts = batch.prompts
        assert prompts is not None, "a batch of examples that were split at their prompts' ends"
        packing = Packing.of(prompts.lengths, self.model.device, walked=self.walked)
        with torch.no_grad(), self.runtime.autocast():
            found = run_to_keys_values(self.model, self.below.states(prompts), 0, self.space, packing)
        lengths = torch.tensor(prompts.lengths, device=self.model.device)
        empty = next(iter(found.values()))[0][:, :, :0]
        shared = self.walked.keys_values if self.walked else dict.fromkeys(found, (empty, empty))

        def of_layer(number: int) -> tuple[KeysValues, KeysValues]:
            key, value = map(packing.grid, found[number])
            return shared[number], (key, value)

        return Prompts(packing.past, lengths, of_layer)


@dataclass
class Tap:
    """Boundary states of whole examples, which one process computes on its way to the prompts' keys and values."""

    layout: Layout  # of the whole examples; the prompts' has the same groups
    space: int  # the boundary, below the last layer
    parts: MutableSequence[Tensor]  # takes the states in the layout's order; all of them when the pass has ended
    seconds: float = 0.0  # of computing them


def prompt_rows(
    model: CausalModel,
    runtime: Runtime,
    layout: Layout,
    columns: Columns,
    start: Start | None = None,
    processes: Processes = ALONE,
    tap: Tap | None = None,
) -> Iterator[Tensor]:
    """Yield keys and values of layers columns.first+1..L in the order of ``layout``'s rows: see :func:`passes`."""
    first = tap.space if tap else start.space if start else 0
    if tap:
        tap.parts.clear()

    def of_beginning(beginning: Beginning) -> Tensor:
        if tap:
            tap.parts.append(beginning.spaces[first].cpu())
        return columns.join(beginning.keys_values)

    def through(states: Tensor, packing: Packing, group: Sequence[int]) -> Tensor:
        below: dict[int, KeysValues] = {}
        if tap:  # whole examples go up to the boundary, and their prompts on
            states = run(model, states, 0, first, replace(packing, remember=below))  # [N, hidden]
            tap.parts.append(states.cpu())
            lengths, slots = layout.lengths[group].to(model.device), packing.slots  # [B], [N]
            own = (slots % packing.longest < lengths[slots // packing.longest]).nonzero()[:, 0]
            below = {number: (key[:, :, own], value[:, :, own]) for number, (key, value) in below.items()}
            states, packing = states[own], Packing.of(lengths.tolist(), model.device, walked=packing.walked)
        return columns.join(below | run_to_keys_values(model, states, first, model.depth, packing))

    work = Pass("prompts once", model.depth, through, of_beginning, first)
    return passes(model, runtime, tap.layout if tap else layout, start, work, processes)


def answer_side(
    model: CausalModel, runtime: Runtime, split: Split, source: PromptSource, states: BoundaryStates | None, space: int
) -> AnswerSide:
    """The start of passes over the trained side of a split.

    ``model`` is the one that trains, ``source`` gives keys and values of layers space+1..L. ``states``: those of whole
    examples at the boundary; ``None``: answers go through layers 1..space, which are the base's, for every batch.
    """
    rows = split.base_rows
    assert rows is not None, "examples that were split at their prompts' ends"
    cached = None
    if states:
        layout, read = states.layout, torch.tensor(rows) - split.shared
        cached = replace(states, layout=replace(layout, firsts=layout.firsts + read, lengths=layout.lengths - read))
    covers = space == 0 or isinstance(source, PromptLayers)
    below = source if covers else PromptLayers.of_model(model, runtime, space, split.prefix)
    return AnswerSide(model, runtime, space, source, below, cached)


def cache_prompts(
    model: CausalModel, runtime: Runtime, split: Split, batch_tokens: int, states: BoundaryStates | None = None
) -> PromptRows:
    """Run the prompts of a split through the base ``model`` once, from ``states`` on, and keep the rows in memory."""
    layout, start = laid_out(split, batch_tokens, states)
    columns = Columns.of(model, runtime, start.space if start else 0)
    parts = prompt_rows(model, runtime, layout, columns, start)
    return PromptRows(columns, layout, gather(parts, layout.rows), model.device)


def laid_out(split: Split, batch_tokens: int, states: BoundaryStates | None) -> tuple[Layout, BoundaryStates | None]:
    """The rows of a split's prompts, and where their pass starts, given the ``states`` of whole examples, if any."""
    rows = split.base_rows
    assert rows is not None, "examples that were split at their prompts' ends"
    start = states and replace(states, layout=replace(states.layout, lengths=torch.tensor(rows) - split.shared))
    prompts = [example.cut(tokens) for example, tokens in zip(split.examples, rows, strict=True)]
    return Layout.of(prompts, split.shared, batch_tokens), start
