"""Attention over packed sequences that share a beginning, registered with transformers by name.

The rows of a pass lie end to end in one sequence, without padding, so that every linear map of a
layer is one product over all of them. Only attention needs to know where a sequence ends. This
function takes the place of transformers' own inside the model's own layers: it cuts the packed
queries, keys and values into sequences, lets each attend to itself and to the shared beginning, and
hands everything else (scaling, dropout, grouped heads) to transformers' ``sdpa`` attention.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Self

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

PACKED: Final = "salf_packed"

KeysValues = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Packing:
    """How the rows of a pass form sequences.

    The rows are, in this order: the P tokens of the shared beginning where it is ``joined``, then the
    sequences' own tokens, end to end.

    Attributes:
        past: P, tokens that every sequence attends to before its own.
        joined: the beginning's own rows are in this pass; else its keys and values are in ``memory``.
        sequences: B.
        longest: T, tokens of the longest sequence.
        slots: where each of the N own tokens lies in a padded [B, T] grid, [N].
        memory: keys and values of the beginning by layer, each [1, key-value heads, P, head size].
        remember: where this pass leaves its keys and values, by layer.
    """

    past: int
    joined: bool
    sequences: int
    longest: int
    slots: Tensor
    memory: dict[int, KeysValues] = field(default_factory=dict)
    remember: dict[int, KeysValues] | None = None

    @classmethod
    def of(
        cls,
        lengths: Sequence[int],
        device: torch.device,
        *,
        past: int = 0,
        memory: dict[int, KeysValues] | None = None,
        remember: dict[int, KeysValues] | None = None,
    ) -> Self:
        """Sequences of so many own tokens each, behind a beginning of ``past`` tokens.

        The beginning is part of the pass unless ``memory`` holds it.
        """
        longest = max(lengths)
        slots = torch.cat([row * longest + torch.arange(length) for row, length in enumerate(lengths)])
        joined = past > 0 and memory is None
        return cls(past, joined, len(lengths), longest, slots.to(device), memory or {}, remember)

    @property
    def beginning_rows(self) -> int:
        """Rows of this pass that belong to the beginning."""
        return self.past if self.joined else 0

    def position_ids(self) -> Tensor:
        """The position of every row inside its prompt, [1, rows]."""
        beginning = torch.arange(self.beginning_rows, device=self.slots.device)
        return torch.cat([beginning, self.past + self.slots % self.longest])[None]

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, kernel: Any, window: int) -> Tensor:
        """Attention of packed [1, heads, rows, head size]; returns [1, rows, heads, head size]."""
        layer: Any = module.layer_idx  # transformers numbers its attention modules from 0
        if self.remember is not None:
            self.remember[layer] = (key, value)
        start = self.beginning_rows
        # Split, not sliced: the gradient is then one concatenation instead of two padded sums.
        halves = [x.split([start, len(self.slots)], dim=2) for x in (query, key, value)]
        beginning, own = zip(*halves, strict=True)
        queries, keys, values = (self._unpack(x) for x in own)
        if self.past:
            past = beginning[1:] if self.joined else self.memory[layer]
            keys, values = (
                torch.cat([known.expand(self.sequences, -1, -1, -1), new], dim=2)
                for known, new in zip(past, (keys, values), strict=True)
            )
        attended = self._pack(kernel(queries, keys, values, self._mask(self.past, self.longest, window)))
        if not start:
            return attended
        first = kernel(*beginning, self._mask(0, start, window))
        return torch.cat([first, attended], dim=1)

    def _unpack(self, packed: Tensor) -> Tensor:
        """[1, heads, N, head size] to [B, heads, T, head size], zeros behind a sequence's end."""
        rows = packed[0].transpose(0, 1)
        if len(self.slots) < self.sequences * self.longest:
            grid = rows.new_zeros(self.sequences * self.longest, *rows.shape[1:])
            rows = grid.index_copy(0, self.slots, rows)
        return rows.reshape(self.sequences, self.longest, *rows.shape[1:]).transpose(1, 2)

    def _pack(self, padded: Tensor) -> Tensor:
        """[B, T, heads, head size] to [1, N, heads, head size]."""
        rows = padded.flatten(0, 1)
        if len(self.slots) < len(rows):
            rows = rows.index_select(0, self.slots)
        return rows[None]

    def _mask(self, past: int, tokens: int, window: int) -> Tensor | None:
        """What ``tokens`` queries behind ``past`` keys may see, [1, 1, tokens, past + tokens]."""
        if not past and tokens <= window:
            return None  # plain causal attention has a faster kernel of its own
        columns = torch.arange(past + tokens, device=self.slots.device)
        rows = columns[past:, None]
        return ((columns <= rows) & (columns > rows - window))[None, None]


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    packing: Packing | None = None,
    sliding_window: int | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention by transformers' interface; without a packing it is transformers' ``sdpa``."""
    if packing is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, sliding_window=sliding_window, **options
        )

    def kernel(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        return sdpa_attention_forward(module, queries, keys, values, mask, **options)[0]

    return packing.attend(module, query, key, value, kernel, sliding_window or query.shape[2] + packing.past), None


AttentionInterface.register(PACKED, packed_attention)
AttentionMaskInterface.register(PACKED, sdpa_mask)
