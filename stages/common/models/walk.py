"""Runs a model layer by layer, over the answer's own tokens only, with the shared beginning run once.

All prompts of a task begin alike (an instruction, the choices, a few examples). With causal
attention, what happens in that beginning does not depend on what follows: its keys and values are
computed once, at batch size one, and every example of a batch attends to them. This is exact, with
gradients too (they add up over the batch, as they would if every example carried its own copy).

Examples are padded on the right. A real token never sees the padding behind it, so the mask is the
same for the whole batch and no padding mask is needed.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from stages.common.models.adapter import CausalModel


@dataclass(frozen=True)
class Beginning:
    """The shared beginning of P tokens on its way through the layers.

    Attributes:
        states: for every space of the walked range, its hidden states [1, P, hidden].
        keys_values: for every layer of the walked range, (keys, values), each
            [1, key-value heads, P, head size].
        first: the space that the range starts at.
    """

    states: list[Tensor]
    keys_values: list[tuple[Tensor, Tensor]]
    first: int

    @property
    def length(self) -> int:
        """P, in tokens."""
        return self.states[0].shape[1]

    def of_layer(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values inside ``layer`` (counted from 1)."""
        return self.keys_values[layer - 1 - self.first]


class _Recorder:
    """Stands in for a key-value cache: remembers what a layer hands it."""

    def __init__(self) -> None:
        self.keys_values: tuple[Tensor, Tensor] | None = None

    def update(self, keys: Tensor, values: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        self.keys_values = (keys, values)
        return keys, values


@dataclass(frozen=True)
class _Prepender:
    """Stands in for a key-value cache: puts the beginning's keys and values before a batch's own."""

    keys_values: tuple[Tensor, Tensor]

    def update(self, keys: Tensor, values: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        joined = [
            torch.cat([past.expand(own.shape[0], -1, -1, -1), own], dim=2)
            for past, own in zip(self.keys_values, (keys, values), strict=True)
        ]
        return joined[0], joined[1]


def embed(model: CausalModel, ids: Tensor) -> Tensor:
    """Space 0 of token ids [batch, tokens]: [batch, tokens, hidden]."""
    return model.embedding(ids)


def walk_beginning(model: CausalModel, states: Tensor | None, first: int, last: int) -> Beginning | None:
    """Run the beginning's states [1, P, hidden] of space ``first`` through layers first+1..last."""
    if states is None:
        return None
    positions = torch.arange(states.shape[1], device=states.device)[None]
    rotary = model.rotary(states, position_ids=positions)
    walked, keys_values = [states], []
    for layer in model.layers[first:last]:
        recorder = _Recorder()
        states = layer(
            states, attention_mask=None, position_ids=positions, past_key_values=recorder, position_embeddings=rotary
        )
        assert recorder.keys_values is not None, "the layer never asked for a cache"
        keys_values.append(recorder.keys_values)
        walked.append(states)
    return Beginning(states=walked, keys_values=keys_values, first=first)


@dataclass(frozen=True)
class Positions:
    """What attention needs to know of a batch of T tokens behind a beginning of P tokens."""

    ids: Tensor
    mask: Tensor | None
    rotary: tuple[Tensor, Tensor]

    @classmethod
    def behind(cls, model: CausalModel, states: Tensor, beginning: Beginning | None) -> Self:
        """Positions P..P+T-1 of hidden states [batch, T, hidden]."""
        past = beginning.length if beginning else 0
        tokens = states.shape[1]
        ids = torch.arange(past, past + tokens, device=states.device)[None]
        mask = None  # plain causal attention has a faster kernel of its own
        if past:
            columns = torch.arange(past + tokens, device=states.device)
            mask = (columns[None] <= ids[0][:, None])[None, None]
        return cls(ids, mask, model.rotary(states, position_ids=ids))


def walk(
    model: CausalModel, states: Tensor, first: int, last: int, beginning: Beginning | None = None
) -> Iterator[Tensor]:
    """Yield the spaces first+1..last of a batch, layer by layer; O(batch) memory without gradients.

    Args:
        model: the model.
        states: space ``first`` of the batch's own tokens, [batch, T, hidden].
        first: the space to start from; 0 is the embedding output.
        last: the space to end at, at most L.
        beginning: the shared beginning, walked over the same layers (or more).
    """
    positions = Positions.behind(model, states, beginning)
    for number, layer in enumerate(model.layers[first:last], start=first + 1):
        cache = _Prepender(beginning.of_layer(number)) if beginning else None
        states = layer(
            states,
            attention_mask=positions.mask,
            position_ids=positions.ids,
            past_key_values=cache,
            position_embeddings=positions.rotary,
        )
        yield states


def run(model: CausalModel, states: Tensor, first: int, last: int, beginning: Beginning | None = None) -> Tensor:
    """The space ``last`` of a batch whose space ``first`` is ``states``: see :func:`walk`."""
    for space in walk(model, states, first, last, beginning):
        states = space
    return states
