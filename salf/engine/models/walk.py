"""Runs a model layer by layer over rows that follow each other without padding, the shared prefix of all prompts once.

With gradients, the prefix's rows join the batch's own in one pass, and the gradients of all examples meet in them.
Without gradients it is walked once, and batches attend to its keys and values. Both are exact. Layers whose attention
cannot be packed run over a padded grid, with the model's own masks: as exact, and slower.

A recomputed pass keeps the input of each layer for back-propagation and runs the layer again when its turn comes
(Chen et al. 2016, arXiv 1604.06174). It is non-reentrant: gradients arrive even if the lowest input wants none.
"""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from salf.engine.models.attention import Beginning, ChosenRows, KeysValues, KeysValuesReady, Packing, Parts
from salf.engine.models.causal_model import CausalModel, LayerCall, apply


def walk_beginning(model: CausalModel, states: Tensor | None, first: int, last: int, tap: int = 0) -> Beginning | None:
    """Run the beginning's states [P, hidden] of space ``first`` through layers first+1..last; space ``tap`` is kept."""
    if states is None:
        return None
    remembered: dict[int, KeysValues] = {}
    packing = replace(Packing.of([len(states)], states.device), remember=remembered)
    wanted = {tap, last} if model.family.packed else range(last + 1)
    after = enumerate(walk(model, states, first, last, packing), first + 1)
    spaces = {first: states} | {number: space for number, space in after if number in wanted}
    return Beginning(spaces[last], remembered, spaces)


def walk(
    model: CausalModel, states: Tensor, first: int, last: int, packing: Packing, *, recompute: bool = False
) -> Iterator[Tensor]:
    """Yield the spaces first+1..last of rows whose space ``first`` is ``states``, [rows, hidden] each.

    Space 0 is the embedding output. ``recompute``: back-propagation keeps only each layer's input.
    """
    if first == last:
        return
    if not model.family.packed:
        yield from _walk_padded(model, states, first, last, packing, recompute=recompute)
        return
    for call in model.calls(last, packing.position_ids())[first:]:
        states = apply(_through, call, states, packing, recompute=recompute)
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
    """Space L of chosen rows, [M, hidden]: see :func:`walk`.

    The last layer computes keys and values of all rows, and queries, feed-forward part and norms of the chosen ones.
    A padded last layer computes all. ``answers`` [M] are chosen among the sequences' own tokens, ascending.
    """
    chosen = packing.beginning_rows + answers
    if first == model.depth or not model.family.packed:
        return run(model, states, first, model.depth, packing, recompute=recompute)[chosen]
    positions = packing.position_ids()
    *below, last = model.calls(model.depth, positions)[first:]
    for call in below:
        states = apply(_through, call, states, packing, recompute=recompute)
    at_answers = model.calls(model.depth, positions[:, chosen])[-1]
    return apply(_through_at_answers, last, at_answers, states, packing, answers, recompute=recompute)


def run_to_keys_values(
    model: CausalModel, states: Tensor, first: int, last: int, packing: Packing
) -> dict[int, KeysValues]:
    """Keys and values at layers first+1..last of rows whose space ``first`` is ``states``; packed layers only.

    By layer, from 0, each [1, heads, rows, head size]. The last of these layers computes nothing else.
    """
    found: dict[int, KeysValues] = {}
    packing = replace(packing, remember=found)
    *below, end = model.calls(last, packing.position_ids())[first:]
    for call in below:
        states = _through(call, states, packing)
    _keys_values(end, states, packing)
    return found


def _through_at_answers(
    call: LayerCall, at_answers: LayerCall, states: Tensor, packing: Packing, answers: Tensor
) -> Tensor:
    """[rows, hidden] through one layer to [M, hidden]: keys and values of all rows, the rest of the chosen ones."""
    queries = ChosenRows(packing, answers, _keys_values(call, states, packing))
    return _through(at_answers, states[packing.beginning_rows + answers], queries)


def _keys_values(call: LayerCall, states: Tensor, packing: Packing) -> Parts:
    """The keys and values that each sequence sees at a layer, of which nothing else is computed."""
    try:
        _through(call, states, replace(packing, leaves=True))
    except KeysValuesReady as ready:
        keys, values = ready.args
        return keys, values
    raise RuntimeError("the last layer does not hand the packing to its attention")


def _through(call: LayerCall, states: Tensor, packing: Packing | ChosenRows) -> Tensor:
    """Packed rows [rows, hidden] through one layer."""
    return call.run(states[None], attention_mask=None, packing=packing)[0]


def _walk_padded(
    model: CausalModel, states: Tensor, first: int, last: int, packing: Packing, *, recompute: bool = False
) -> Iterator[Tensor]:
    """:func:`walk` over a grid, for layers that take no packing: padded on the right, after copies of the beginning.

    A causal layer never looks back from there: the model's own masks for unpadded sequences of the grid's length do.
    It holds for attention and recurrences alike.
    """
    beginning, own = states.split([packing.beginning_rows, len(packing.slots)])
    if packing.walked is not None:
        beginning = packing.walked.spaces[first]
    copies = beginning.expand(packing.sequences, -1, -1)
    grid = torch.cat([copies, packing.grid(own[None, None])[:, 0]], dim=1)  # [B, P + T, hidden]
    positions = torch.arange(grid.shape[1], device=grid.device).expand(grid.shape[:2])
    for call in model.calls(last, positions)[first:]:
        grid = apply(call.run, grid, recompute=recompute)
        own = grid[:, packing.past :].flatten(0, 1).index_select(0, packing.slots)
        # Of a beginning that is in the pass, the first copy.
        yield torch.cat([grid[0, : packing.beginning_rows], own])
