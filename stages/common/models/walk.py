"""Runs a model layer by layer over packed rows, the shared beginning once.

All prompts of a task begin alike (an instruction, the choices, a few examples). With causal
attention, what happens in that beginning does not depend on what follows, so it need not be
computed for every example. Where gradients are wanted, its rows join the batch's own in one pass:
every weight is used once, and the gradients of all examples meet in the beginning's rows, as they
would add up if each example carried its own copy. Without gradients it is walked once, and the
batches attend to the keys and values that it left. Both are exact.

Where a pass is to be recomputed, back-propagation keeps the input of each layer alone and runs the
layer again when its turn comes (Chen et al. 2016, arXiv 1604.06174): a forward pass more, for memory
of one layer instead of all. Non-reentrant, so that gradients arrive whether or not the input of the
lowest layer wants one.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from stages.common.models.adapter import CausalModel
from stages.common.models.attention import ChosenRows, KeysValues, KeysValuesOnly, KeysValuesReady, Packing


@dataclass(frozen=True)
class Beginning:
    """A shared beginning of P tokens that has been walked.

    Attributes:
        length: P.
        states: its last space, [P, hidden].
        keys_values: by layer (from 0, as transformers counts), each [1, key-value heads, P, head size].
    """

    length: int
    states: Tensor
    keys_values: dict[int, KeysValues]


def embed(model: CausalModel, ids: Tensor) -> Tensor:
    """Space 0 of token ids [tokens]: [tokens, hidden]."""
    return model.embedding(ids)


def walk_beginning(model: CausalModel, states: Tensor | None, first: int, last: int) -> Beginning | None:
    """Run the beginning's states [P, hidden] of space ``first`` through layers first+1..last."""
    if states is None:
        return None
    remembered: dict[int, KeysValues] = {}
    packing = Packing.of([len(states)], states.device, remember=remembered)
    return Beginning(len(states), run(model, states, first, last, packing), remembered)


def behind(lengths: Sequence[int], device: torch.device, beginning: Beginning | None) -> Packing:
    """Sequences of so many tokens each, behind a beginning that was walked before."""
    if beginning is None:
        return Packing.of(lengths, device)
    return Packing.of(lengths, device, past=beginning.length, memory=beginning.keys_values)


def walk(
    model: CausalModel, states: Tensor, first: int, last: int, packing: Packing, *, recompute: bool = False
) -> Iterator[Tensor]:
    """Yield the spaces first+1..last, layer by layer, [rows, hidden] each; O(rows) memory without gradients.

    Args:
        model: the model.
        states: space ``first`` of the pass's rows, [rows, hidden].
        first: the space to start from; 0 is the embedding output.
        last: the space to end at, at most L.
        packing: how the rows form sequences.
        recompute: back-propagation keeps each layer's input alone.
    """
    positions = packing.position_ids()
    rotary = model.rotary(states[None], position_ids=positions)
    for layer in model.layers[first:last]:
        states = _apply(_through, layer, states, positions, rotary, packing, recompute=recompute)
        yield states


def run(
    model: CausalModel, states: Tensor, first: int, last: int, packing: Packing, *, recompute: bool = False
) -> Tensor:
    """The space ``last`` of rows whose space ``first`` is ``states``: see :func:`walk`."""
    for space in walk(model, states, first, last, packing, recompute=recompute):
        states = space
    return states


def run_to_answers(
    model: CausalModel, states: Tensor, first: int, packing: Packing, answers: Tensor, *, recompute: bool = False
) -> Tensor:
    """Space L of chosen rows alone, [M, hidden]: the last layer sees all rows and computes only these.

    Nothing reads the other rows of space L. Of them the last layer computes keys and values, and for
    the chosen ones all the rest: queries, feed-forward part, norms.

    Args:
        model: the model.
        states: space ``first`` of the pass's rows, [rows, hidden].
        first: the space to start from.
        packing: how the rows form sequences.
        answers: the rows that are wanted, among the sequences' own tokens, ascending, [M].
        recompute: back-propagation keeps each layer's input alone.
    """
    if first == model.depth:
        return states[packing.beginning_rows + answers]
    states = run(model, states, first, model.depth - 1, packing, recompute=recompute)
    positions = packing.position_ids()
    rotary = model.rotary(states[None], position_ids=positions)
    return _apply(
        _through_at_answers, model.layers[-1], states, positions, rotary, packing, answers, recompute=recompute
    )


def _apply(part: Callable[..., Tensor], *inputs: Any, recompute: bool) -> Tensor:
    return checkpoint(part, *inputs, use_reentrant=False) if recompute else part(*inputs)


def _through_at_answers(
    layer: nn.Module,
    states: Tensor,
    positions: Tensor,
    rotary: tuple[Tensor, Tensor],
    packing: Packing,
    answers: Tensor,
) -> Tensor:
    """[rows, hidden] through one layer to [M, hidden]: keys and values of all rows, the rest of the chosen ones."""
    chosen = packing.beginning_rows + answers
    try:
        _through(layer, states, positions, rotary, KeysValuesOnly(packing))
    except KeysValuesReady as ready:
        queries = ChosenRows(packing, answers, ready.keys_values)
    rotary = (rotary[0][:, chosen], rotary[1][:, chosen])
    return _through(layer, states[chosen], positions[:, chosen], rotary, queries)


def _through(
    layer: nn.Module,
    states: Tensor,
    positions: Tensor,
    rotary: tuple[Tensor, Tensor],
    packing: Packing | KeysValuesOnly | ChosenRows,
) -> Tensor:
    """[rows, hidden] through one layer."""
    options = {"attention_mask": None, "position_ids": positions, "position_embeddings": rotary, "packing": packing}
    return layer(states[None], **options)[0]
