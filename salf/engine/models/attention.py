"""Attention over packed sequences that share a beginning, registered with transformers by name.

A pass's rows follow each other without padding, so every linear map of a layer is one product over all of them. Only
attention needs to know where a sequence ends. This function replaces transformers' own: it cuts packed queries, keys
and values into sequences, lets each attend to itself and to the shared prefix, and leaves the rest to ``sdpa``.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Self

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

PACKED: Final = "salf_packed"

KeysValues = tuple[Tensor, Tensor]

# 16 sequences of 6 queries and 600 keys: 0.61 of the fused kernel's time, forwards and backwards; of 64 queries: 3.7.
_KEYS_TO_A_QUERY: Final = 16
_NOWHERE: Final = sys.maxsize  # the position of a key that no query sees


@dataclass(frozen=True)
class Beginning:
    """A shared prefix of P tokens that has been walked."""

    states: Tensor  # its last space, [P, hidden]
    keys_values: dict[int, KeysValues]  # by layer from 0, each [1, key-value heads, P, head size]; none if padded
    spaces: dict[int, Tensor]  # for a model that runs padded, its spaces by number, each [P, hidden]


@dataclass(frozen=True)
class Packing:
    """A pass's rows, divided into sequences: the shared prefix, if it is part of the pass, then each one's own."""

    past: int  # P, tokens that every sequence attends to before its own
    sequences: int  # B
    longest: int  # T, tokens of the longest sequence
    slots: Tensor  # where each of the N own tokens is in a padded [B, T] grid, [N]
    walked: Beginning | None  # the shared prefix, if it was walked before; else its P rows are part of the pass
    remember: dict[int, KeysValues] | None  # where this pass leaves its keys and values, by layer

    @classmethod
    def of(
        cls,
        lengths: Sequence[int],
        device: torch.device,
        *,
        past: int = 0,
        walked: Beginning | None = None,
        remember: dict[int, KeysValues] | None = None,
    ) -> Self:
        """Sequences of ``lengths`` own tokens each, after a prefix of ``past`` tokens or one that was ``walked``."""
        longest = max(lengths)
        slots = torch.cat([row * longest + torch.arange(length) for row, length in enumerate(lengths)])
        past = past if walked is None else len(walked.states)
        return cls(past, len(lengths), longest, slots.to(device), walked, remember)

    @property
    def beginning_rows(self) -> int:
        """Rows of this pass that belong to the beginning."""
        return self.past if self.walked is None else 0

    def position_ids(self) -> Tensor:
        """The position of every row inside its prompt, [1, rows]."""
        beginning = torch.arange(self.beginning_rows, device=self.slots.device)
        return torch.cat([beginning, self.past + self.slots % self.longest])[None]

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, kernel: Any, window: int) -> Tensor:
        """Attention of packed [1, heads, rows, head size]; returns [1, rows, heads, head size]."""
        start = self.beginning_rows
        first, own = query.split([start, len(self.slots)], dim=2)
        keys, values = self.keys_values(module, key, value)
        attended = _from_grid(kernel(self.grid(own), keys, values, self._own_mask(window)), self.slots)
        if not start:
            return attended
        beginning = kernel(first, key[:, :, :start], value[:, :, :start], self._mask(0, start, window))
        return torch.cat([beginning, attended], dim=1)

    def keys_values(self, module: nn.Module, key: Tensor, value: Tensor) -> KeysValues:
        """Keys and values of each sequence: [1, heads, rows, head size] to [B, heads, P + T, head size], twice."""
        if self.remember is not None:
            self.remember[_number(module)] = (key, value)
        both = []
        for number, rows in enumerate((key, value)):
            # Split, not sliced: the gradient is then one concatenation instead of two padded sums.
            beginning, own = rows.split([self.beginning_rows, len(self.slots)], dim=2)
            if self.walked is not None:
                beginning = self.walked.keys_values[_number(module)][number]
            both.append(torch.cat([beginning.expand(self.sequences, -1, -1, -1), self.grid(own)], dim=2))
        return both[0], both[1]

    def grid(self, own: Tensor) -> Tensor:
        """The sequences' own rows, [1, heads, N, head size] to [B, heads, T, head size], zeros after their ends."""
        return _to_grid(own, self.slots, self.sequences, self.longest)

    def visible(self, steps: Tensor, most: int, window: int) -> Tensor:
        """Mask of the keys that ``most`` own tokens a sequence see, at ``steps`` [B · most]; [B, 1, most, keys]."""
        positions = steps + self.past
        return _visible(positions, self.past + self.longest, window).view(self.sequences, 1, most, -1)

    def _own_mask(self, window: int) -> Tensor | None:
        return self._mask(self.past, self.longest, window)

    def _mask(self, past: int, tokens: int, window: int) -> Tensor | None:
        """Mask of the keys that ``tokens`` queries after ``past`` keys see, [1, 1, tokens, past + tokens]."""
        if not past and tokens <= window:
            return None  # plain causal attention has a faster kernel of its own
        rows = torch.arange(past, past + tokens, device=self.slots.device)
        return _visible(rows, past + tokens, window)[None, None]


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
class AfterPrompts(Packing):
    """Sequences that go on where prompts end: their keys and values, which another pass computed, come first."""

    prompts: Prompts
    masks: dict[int, Tensor] = field(default_factory=dict, repr=False)  # of the own tokens, by window

    @classmethod
    def after(cls, prompts: Prompts, lengths: Sequence[int]) -> Self:
        """Sequences of ``lengths`` own tokens each."""
        made = Packing.of(lengths, prompts.lengths.device)
        return cls(0, made.sequences, made.longest, made.slots, None, None, prompts)

    def position_ids(self) -> Tensor:
        """See :class:`Packing`."""
        return (self.prompts.firsts[self.slots // self.longest] + self.slots % self.longest)[None]

    def keys_values(self, module: nn.Module, key: Tensor, value: Tensor) -> KeysValues:
        """[1, heads, rows, head size] to [B, heads, P + T' + T, head size], twice."""
        both = []
        for own, shared, past in zip((key, value), *self.prompts.of_layer(_number(module)), strict=True):
            both.append(torch.cat([shared.expand(self.sequences, -1, -1, -1), past, self.grid(own)], dim=2))
        return both[0], both[1]

    def visible(self, steps: Tensor, most: int, window: int) -> Tensor:
        """See :class:`Packing`; [B, 1, most, P + T' + T]."""
        positions = self.prompts.firsts[:, None] + steps.view(self.sequences, most)
        return _between(positions[:, :, None], self.prompts.columns(self.longest)[:, None], window)[:, None]

    def _own_mask(self, window: int) -> Tensor:
        if window not in self.masks:
            steps = torch.arange(self.longest, device=self.slots.device).repeat(self.sequences)
            self.masks[window] = self.visible(steps, self.longest, window)
        return self.masks[window]


class KeysValuesReady(Exception):  # noqa: N818 (nothing went wrong: the rest of the layer is not wanted)
    """Leaves a layer as soon as its keys and values are there."""

    def __init__(self, keys_values: KeysValues) -> None:
        self.keys_values = keys_values


@dataclass(frozen=True)
class KeysValuesOnly:
    """In place of a packing: leaves the layer with what its sequences would attend to."""

    packing: Packing

    def attend(self, module: nn.Module, _query: Tensor, key: Tensor, value: Tensor, *_: Any) -> Tensor:
        """Never returns: raises ``KeysValuesReady`` with keys and values, each [B, heads, P + T, head size]."""
        raise KeysValuesReady(self.packing.keys_values(module, key, value))


@dataclass(frozen=True)
class ChosenRows:
    """In place of a packing: M chosen rows attend to the keys and values of all rows."""

    packing: Packing  # how all rows form sequences
    chosen: Tensor  # the M rows among the sequences' N own tokens, ascending
    keys_values: KeysValues  # of all rows, each [B, heads, P + T, head size]

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
        mask = packing.visible(steps, most, window)
        attended = kernel(_to_grid(query, places, packing.sequences, most), *self.keys_values, mask)
        return _from_grid(attended, places)


def _visible(positions: Tensor, keys: int, window: int) -> Tensor:
    """Mask of the ``keys`` keys that a query at each position sees, [positions, keys]."""
    return _between(positions[:, None], torch.arange(keys, device=positions.device), window)


def _between(positions: Tensor, columns: Tensor, window: int) -> Tensor:
    return (columns <= positions) & (columns > positions - window)


def _to_grid(packed: Tensor, places: Tensor, sequences: int, longest: int) -> Tensor:
    """[1, heads, N, head size] to [sequences, heads, longest, head size], zeros where no row has its place."""
    rows = packed[0].transpose(0, 1)
    if len(places) < sequences * longest:
        rows = rows.new_zeros(sequences * longest, *rows.shape[1:]).index_copy(0, places, rows)
    return rows.reshape(sequences, longest, *rows.shape[1:]).transpose(1, 2)


def _from_grid(padded: Tensor, places: Tensor) -> Tensor:
    """[sequences, longest, heads, head size] to [1, N, heads, head size]."""
    rows = padded.flatten(0, 1)
    if len(places) < len(rows):
        rows = rows.index_select(0, places)
    return rows[None]


def _number(module: nn.Module) -> int:
    number: Any = module.layer_idx  # transformers numbers its attention modules from 0
    return number


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    packing: Packing | KeysValuesOnly | ChosenRows | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention by transformers' interface; without a packing it is transformers' ``sdpa``.

    Soft-capped scores (Gemma 2) are computed as transformers' ``eager`` does: ``sdpa`` knows no cap. So are short
    sequences on a CPU, whose fused kernel is slow there when it goes backwards.
    """
    few = isinstance(packing.packing if isinstance(packing, ChosenRows) else packing, AfterPrompts)

    def kernel(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        if softcap is not None or (packing is not None and _short(keys, queries.shape[2] if few else None)):
            return _by_products(module, queries, keys, values, mask, softcap, **options)
        return sdpa_attention_forward(module, queries, keys, values, mask, **options)[0]

    if packing is None:
        return kernel(query, key, value, attention_mask), None
    return packing.attend(module, query, key, value, kernel, sliding_window or sys.maxsize), None


def _short(keys: Tensor, few: int | None = None) -> bool:
    """Whether plain products are faster than the fused kernel, and their weights [queries, keys] small.

    ``few``: the number of queries where these are the rows after long prompts.

    16 sequences of 40 queries and 130 keys, 9 heads of 64 and 3 for keys, two cores with AVX512_BF16, forwards and
    backwards: 4.9 ms in place of 17.1 in bfloat16, 5.0 in place of 8.3 in float32.
    """
    if keys.device.type != "cpu":
        return False
    return keys.shape[2] <= 4 * keys.shape[3] or (few is not None and _KEYS_TO_A_QUERY * few <= keys.shape[2])


def _by_products(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
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

    Queries are [B, heads, queries, head size], keys and values [B, key-value heads, keys, head size], and the mask
    says what may be seen, [B or 1, 1, queries, keys]; returns [B, queries, heads, head size].
    """
    (sequences, heads, queries, size), (shared, keys) = query.shape, key.shape[1:3]
    scaled = query * (size**-0.5 if scaling is None else scaling)
    scores = scaled.reshape(sequences, shared, -1, size) @ key.transpose(2, 3)
    scores = scores.view(sequences, shared, heads // shared, queries, keys)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if mask is None:
        mask = _visible(torch.arange(keys - queries, keys, device=query.device), keys, sys.maxsize)[None, None]
    scores = scores.masked_fill(~mask[:, :, None], torch.finfo(scores.dtype).min)
    weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, dropout, module.training)
    attended = weights.view(sequences, shared, -1, keys) @ value
    return attended.view(sequences, heads, queries, -1).transpose(1, 2).contiguous()


AttentionInterface.register(PACKED, packed_attention)
AttentionMaskInterface.register(PACKED, sdpa_mask)
