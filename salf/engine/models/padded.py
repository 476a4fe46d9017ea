"""Layers that take no packing: sequences in a grid, each behind its own copy of the beginning.

Sequences are padded on the right, where a causal layer never looks back from: the model's own masks
for unpadded sequences of the grid's length do. It holds for attention and recurrences alike.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from salf.engine.models.attention import Packing
from salf.engine.models.calls import apply
from salf.engine.models.causal_model import CausalModel


def walk(
    model: CausalModel, states: Tensor, first: int, last: int, packing: Packing, *, recompute: bool = False
) -> Iterator[Tensor]:
    """Yield the spaces first+1..last of packed rows, [rows, hidden] each."""
    grid = to_grid(states, packing, first)
    positions = torch.arange(grid.shape[1], device=grid.device).expand(grid.shape[:2])
    for call in model.calls(last, positions)[first:]:
        grid = apply(call.run, grid, recompute=recompute)
        yield from_grid(grid, packing)


def to_grid(rows: Tensor, packing: Packing, space: int) -> Tensor:
    """Packed rows [rows, hidden] of a space to [B, P + T, hidden], zeros behind a sequence's end."""
    beginning, own = rows.split([packing.beginning_rows, len(packing.slots)])
    if packing.before:
        beginning = packing.before[space]
    empty = own.new_zeros(packing.sequences * packing.longest, own.shape[1])
    grid = empty.index_copy(0, packing.slots, own).view(packing.sequences, packing.longest, -1)
    return torch.cat([beginning.expand(packing.sequences, -1, -1), grid], dim=1)


def from_grid(grid: Tensor, packing: Packing) -> Tensor:
    """[B, P + T, hidden] to packed rows; the beginning's, where they are in the pass, are the first copy's."""
    own = grid[:, packing.past :].flatten(0, 1).index_select(0, packing.slots)
    return torch.cat([grid[0, : packing.beginning_rows], own])
