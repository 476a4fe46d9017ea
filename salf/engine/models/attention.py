"""Attention over packed sequences that share a beginning, registered with transformers by name.

A pass's rows follow each other without padding, so every linear map of a layer is one product over all of them. Only
attention needs to know where a sequence ends. This function replaces transformers' own: it cuts packed queries, keys
and values into sequences, lets each attend to itself and to the shared prefix, and leaves the rest to ``sdpa``.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any, Final, Self

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

PACKED: Final = "salf_packed"

KeysValues = tuple[Tensor, Tensor]
Parts = tuple[list[Tensor], list[Tensor]]  # keys and values that sequences see, one part after the other

# 16 sequences of 6 queries and 600 keys: 0.61 of the fused kernel's time, forwards and backwards; of 64 queries: 3.7.
_KEYS_TO_A_QUERY: Final = 16
_NOWHERE: Final = sys.maxsize  # the position of a key that no query sees


@dataclass(frozen=True)
class Beginning:
    """A shared prefix of P tokens that has been walked."""

    states: Tensor  # its last space, [P, hidden]
    keys_values: dict[int, KeysValues]  # by layer from 0, each [1, key-value heads, P, head size]; none if padded
    spaces: dict[int, Tensor]  # by number, each [P, hidden]: all where layers run padded, else some


@dataclass(frozen=True)
class Prompts:
    """Keys and values of the prompts of B sequences: of a shared prefix of P rows, then at most T' rows of each."""

    shared: int  # P
    lengths: Tensor  # rows of each sequence after the shared prefix, [B]
    # Of a layer, from 0: the shared prefix's, [1, heads, P, head size], and the own, [B, heads, T', head size].
    of_layer: Callable[[int], tuple[KeysValues, KeysValues]]

    @property
    def firsts(self) -> Tensor:
        """The position after each prompt, [B]."""
        return self.shared + self.lengths

    def columns(self, longest: int) -> Tensor:
        """The position of every key, [B, P + T' + T], with T own tokens after each prompt."""
        steps = torch.arange(int(self.lengths.max()), device=self.lengths.device).expand(len(self.lengths), -1)
        past = torch.where(steps < self.lengths[:, None], self.shared + steps, _NOWHERE)
        own = torch.arange(longest, device=self.lengths.device)
        beginning = torch.arange(self.shared, device=self.lengths.device).expand(len(self.lengths), -1)
        return torch.cat([beginning, past, self.firsts[:, None] + own], dim=1)


@dataclass(frozen=True)
class Packing:
    """A pass's rows, divided into sequences: the shared prefix, if it is part of the pass, then each one's own.

    What the sequences attend to before their own tokens is a prefix of P tokens in the same pass, one that was walked
    before, or prompts that another pass computed.
    """

    past: int  # P; 0 with prompts
    sequences: int  # B
    longest: int  # T, tokens of the longest sequence
    slots: Tensor  # where each of the N own tokens is in a padded [B, T] grid, [N]
    walked: Beginning | None = None
    prompts: Prompts | None = None
    remember: dict[int, KeysValues] | None = None  # where this pass leaves its keys and values, by layer
    leaves: bool = False  # leaves a layer with its keys and values (``KeysValuesReady``) instead of attending
    masks: dict[int, Tensor | None] = field(default_factory=dict, repr=False)  # of the own tokens, by window

    @classmethod
    def of(
        cls,
        lengths: Sequence[int],
        device: torch.device,
        *,
        past: int = 0,
        walked: Beginning | None = None,
        prompts: Prompts | None = None,
    ) -> Self:
        """Sequences of ``lengths`` own tokens each, after one of: ``past`` tokens of this pass, ``walked``, prompts."""
        longest = max(lengths)
        slots = torch.cat([row * longest + torch.arange(length) for row, length in enumerate(lengths)])
        past = past if walked is None else len(walked.states)
        return cls(past, len(lengths), longest, slots.to(device), walked, prompts)

    @property
    def beginning_rows(self) -> int:
        """Rows of this pass that belong to the beginning."""
        return self.past if self.walked is None else 0

    @property
    def firsts(self) -> Tensor:
        """The position of each sequence's first own token, [B], or [1] if it is the same in all."""
        return self.prompts.firsts if self.prompts else torch.full((1,), self.past, device=self.slots.device)

    def position_ids(self) -> Tensor:
        """The position of every row inside its prompt, [1, rows]."""
        beginning = torch.arange(self.beginning_rows, device=self.slots.device)
        firsts = self.firsts.expand(self.sequences)
        return torch.cat([beginning, firsts[self.slots // self.longest] + self.slots % self.longest])[None]

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, kernel: Any, window: int) -> Tensor:
        """Attention of packed [1, heads, rows, head size]; returns [1, rows, heads, head size]."""
        keys, values = self._keys_values(module, key, value)
        if self.leaves:
            raise KeysValuesReady(keys, values)
        start = self.beginning_rows
        first, own = query.split([start, len(self.slots)], dim=2)
        attended = _from_grid(kernel(self.grid(own), keys, values, self._own_mask(window)), self.slots)
        if not start:
            return attended
        places = torch.arange(start, device=query.device)[None]
        mask = None if start <= window else _visible(places, places, window)
        beginning = kernel(first, [key[:, :, :start]], [value[:, :, :start]], mask)
        return torch.cat([beginning, attended], dim=1)

    def _keys_values(self, module: nn.Module, key: Tensor, value: Tensor) -> Parts:
        """[1, heads, rows, head size] to those that each sequence sees, [B, heads, keys, head size] in parts, twice.

        Prompts are a part of their own: they are constants, so no gradient is computed of them, and none is copied.
        """
        number: Any = module.layer_idx  # transformers numbers its attention modules from 0
        if self.remember is not None:
            self.remember[number] = (key, value)
        given = (
            self.prompts.of_layer(number) if self.prompts else [self.walked.keys_values[number]] if self.walked else []
        )
        both = []
        for at, rows in enumerate((key, value)):
            # Split, not sliced: the gradient is then one concatenation instead of two padded sums.
            beginning, own = rows.split([self.beginning_rows, len(self.slots)], dim=2)
            before = [one[at] for one in given] or [beginning]
            parts = [part.expand(self.sequences, -1, -1, -1) for part in before]
            both.append([_joined(parts), self.grid(own)] if self.prompts else [torch.cat([*parts, self.grid(own)], 2)])
        return both[0], both[1]

    def grid(self, own: Tensor) -> Tensor:
        """The sequences' own rows, [1, heads, N, head size] to [B, heads, T, head size], zeros after their ends."""
        return _to_grid(own, self.slots, self.sequences, self.longest)

    def visible(self, steps: Tensor, window: int) -> Tensor:
        """Mask of the keys that own tokens see, by their numbers in their sequences, [B or 1, n]: [.., 1, n, keys]."""
        if self.prompts:
            columns = self.prompts.columns(self.longest)
        else:
            columns = torch.arange(self.past + self.longest, device=steps.device)[None]
        return _visible(self.firsts[:, None] + steps, columns, window)

    def _own_mask(self, window: int) -> Tensor | None:
        if window not in self.masks:
            # Plain causal attention has a faster kernel of its own.
            plain = not (self.past or self.prompts) and self.longest <= window
            steps = torch.arange(self.longest, device=self.slots.device)[None]
            self.masks[window] = None if plain else self.visible(steps, window)
        return self.masks[window]


class KeysValuesReady(Exception):  # noqa: N818 (nothing went wrong: the rest of the layer is not wanted)
    """Leaves a layer as soon as its keys and values are there, each [B, heads, keys, head size] in parts."""


@dataclass(frozen=True)
class ChosenRows:
    """In place of a packing: M chosen rows attend to the keys and values of all rows."""

    packing: Packing  # how all rows form sequences
    chosen: Tensor  # the M rows among the sequences' N own tokens, ascending
    keys_values: Parts  # of all rows, each [B, heads, keys, head size] in parts

    def attend(self, _module: nn.Module, query: Tensor, _k: Tensor, _v: Tensor, kernel: Any, window: int) -> Tensor:
        """Attention of the rows' queries [1, heads, M, head size]; returns [1, M, heads, head size]."""
        packing, slots = self.packing, self.packing.slots[self.chosen]
        sequence, step = slots // packing.longest, slots % packing.longest
        counts = torch.bincount(sequence, minlength=packing.sequences)
        most = int(counts.max())
        # The number of each chosen row inside its sequence gives its place in a grid of queries.
        firsts = counts.cumsum(0) - counts
        places = sequence * most + torch.arange(len(slots), device=slots.device) - firsts[sequence]
        steps = step.new_zeros(packing.sequences * most).index_copy(0, places, step)
        mask = packing.visible(steps.view(packing.sequences, most), window)
        attended = kernel(_to_grid(query, places, packing.sequences, most), *self.keys_values, mask)
        return _from_grid(attended, places)


def _visible(positions: Tensor, columns: Tensor, window: int) -> Tensor:
    """Mask of the keys at ``columns`` [B, keys] that queries at ``positions`` [B, n] see, [B, 1, n, keys]."""
    queries, keys = positions[:, None, :, None], columns[:, None, None]
    return (keys <= queries) & (keys > queries - window)


def _to_grid(packed: Tensor, places: Tensor, sequences: int, longest: int) -> Tensor:
    """[1, heads, N, head size] to [sequences, heads, longest, head size], zeros where no row has its place."""
    rows = packed[0].transpose(0, 1)
    if len(places) < sequences * longest:
        rows = rows.new_zeros(sequences * longest, *rows.shape[1:]).index_copy(0, places, rows)
    return rows.reshape(sequences, longest, *rows.shape[1:]).transpose(1, 2)


def _from_grid(padded: Tensor, places: Tensor) -> Tensor:
    """[sequences, longest, heads, head size] to [1, N, heads, head size]."""
    rows = padded.flatten(0, 1)
    return (rows.index_select(0, places) if len(places) < len(rows) else rows)[None]


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    packing: Packing | ChosenRows | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention by transformers' interface; without a packing it is transformers' ``sdpa``.

    Soft-capped scores (Gemma 2) are computed as transformers' ``eager`` does: ``sdpa`` knows no cap. So are short
    sequences on a CPU, whose fused kernel is slow there when it goes backwards.
    """
    rows = packing.packing if isinstance(packing, ChosenRows) else packing

    def kernel(queries: Tensor, keys: list[Tensor], values: list[Tensor], mask: Tensor | None) -> Tensor:
        if softcap is not None or (rows is not None and _short(keys, queries.shape[2] if rows.prompts else None)):
            return _by_products(module, queries, keys, values, mask, softcap, **options)
        return sdpa_attention_forward(module, queries, _joined(keys), _joined(values), mask, **options)[0]

    if packing is None:
        return kernel(query, [key], [value], attention_mask), None
    return packing.attend(module, query, key, value, kernel, sliding_window or sys.maxsize), None


def _joined(parts: list[Tensor]) -> Tensor:
    """Keys or values end to end; parts without any are left out, and one alone is not copied."""
    parts = [part for part in parts if part.shape[2]] or parts[:1]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


def _short(keys: list[Tensor], few: int | None = None) -> bool:
    """Whether plain products are faster than the fused kernel, and their weights [queries, keys] small.

    ``few``: the number of queries where these are the rows after long prompts.

    16 sequences of 40 queries and 130 keys, 9 heads of 64 and 3 for keys, two cores with AVX512_BF16, forwards and
    backwards: 4.9 ms in place of 17.1 in bfloat16, 5.0 in place of 8.3 in float32.
    """
    if keys[0].device.type != "cpu":
        return False
    count = sum(part.shape[2] for part in keys)
    return count <= 4 * keys[0].shape[3] or (few is not None and _KEYS_TO_A_QUERY * few <= count)


def _by_products(
    module: nn.Module,
    query: Tensor,
    keys: list[Tensor],
    values: list[Tensor],
    mask: Tensor | None,
    softcap: float | None = None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> Tensor:
    """softmax(QKᵀ·scaling)V, with a cap c softmax(c·tanh(QKᵀ·scaling / c))V.

    Without a mask the queries are the last of the keys' positions, and causal. The queries that share a head of
    keys are adjacent, so that no keys and values are copied.

    Queries are [B, heads, queries, head size], keys and values [B, key-value heads, keys, head size] in parts, and the
    mask says what may be seen, [B or 1, 1, queries, keys]; returns [B, queries, heads, head size].
    """
    (sequences, heads, queries, size), shared = query.shape, keys[0].shape[1]
    counts = [part.shape[2] for part in keys]
    scaled = (query * (size**-0.5 if scaling is None else scaling)).reshape(sequences, shared, -1, size)
    products = [scaled @ part.transpose(2, 3) for part in keys]
    scores = products[0] if len(products) == 1 else torch.cat(products, dim=-1)
    scores = scores.view(sequences, shared, heads // shared, queries, -1)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if mask is None:
        seen = sum(counts)
        mask = torch.ones(1, 1, queries, seen, dtype=torch.bool, device=query.device).tril(seen - queries)
    scores = scores.masked_fill(~mask[:, :, None], torch.finfo(scores.dtype).min)
    weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, dropout, module.training)
    shares = weights.view(sequences, shared, scaled.shape[2], -1).split(counts, dim=-1)
    attended = reduce(torch.add, (share @ part for share, part in zip(shares, values, strict=True)))
    return attended.view(sequences, heads, queries, -1).transpose(1, 2).contiguous()


AttentionInterface.register(PACKED, packed_attention)
AttentionMaskInterface.register(PACKED, sdpa_mask)
