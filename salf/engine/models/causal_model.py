"""A causal language model taken apart, by the row of its family."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from salf.engine.models.attention import PACKED
from salf.engine.models.calls import LayerCall, computing, layer_calls, unmasked
from salf.errors import UserError
from salf.families import Family


@dataclass(frozen=True)
class CausalModel:
    """A causal LM taken apart: ``network`` is Hugging Face's model, the rest are its own modules."""

    network: PreTrainedModel
    family: Family

    def __post_init__(self) -> None:
        if self.family.packed:
            self.network.set_attn_implementation(PACKED)

    @cached_property
    def embedding(self) -> nn.Embedding:
        """Token embedding, weight [vocabulary, hidden]."""
        return self.network.get_submodule(self.family.embedding)

    @cached_property
    def trunk(self) -> nn.Module:
        """What runs embedding, layers and final norm."""
        return self.network.get_submodule(self.family.trunk)

    @cached_property
    def layers(self) -> nn.ModuleList:
        """The L decoder layers."""
        return self.network.get_submodule(self.family.layers)

    @cached_property
    def norm(self) -> nn.Module:
        """The final norm n(·), shared by every space when it is read as the head reads it."""
        return self.network.get_submodule(self.family.norm)

    @cached_property
    def head(self) -> nn.Linear:
        """The LM head, weight [vocabulary, hidden]; :meth:`read` adds what the model does to its output."""
        return self.network.get_submodule(self.family.head)

    @property
    def depth(self) -> int:
        """L, the number of decoder layers."""
        return len(self.layers)

    @property
    def device(self) -> torch.device:
        """Where the embedding lives."""
        return self.embedding.weight.device

    @property
    def tied_head(self) -> bool:
        """Whether head and embedding are one tensor."""
        return self.head.weight is self.embedding.weight

    @cached_property
    def steady_positions(self) -> int | None:
        """Positions whose rotary angles are theirs alone: transformers changes others by a batch's longest prompt."""
        config = self.network.config
        told = getattr(config, "rope_parameters", None) or {}
        entries = [told] if "rope_type" in told else [entry for entry in told.values() if isinstance(entry, dict)]
        kinds = {str(entry.get("rope_type")): entry for entry in entries}
        limits = [config.max_position_embeddings for kind in kinds if "dynamic" in kind]
        limits += [entry["original_max_position_embeddings"] for kind, entry in kinds.items() if kind == "longrope"]
        return min(limits, default=None)

    def logits(self, states: Tensor) -> Tensor:
        """Head of the final norm: raw states [N, hidden] of space L to logits [N, vocabulary]."""
        return self.read(self.norm(states))

    def read(self, normed: Tensor) -> Tensor:
        """Normed states [N, hidden] to logits [N, vocabulary]: the head, its bias, a soft cap or scale.

        The model's own forward pass does it, with the states in place of its trunk's.
        """
        with computing(self.trunk, lambda *_, **__: _TrunkOutput(normed[None])):
            return self.network().logits[0]

    def calls(self, last: int, positions: Tensor) -> list[LayerCall]:
        """What layers 1..last are given for rows at ``positions``, [sequences, rows]; packed ones get no mask.

        Raises:
            UserError: the rotary angles of a position so far depend on the other prompts of the batch.
        """
        limit = self.steady_positions
        if limit and int(positions.max()) >= limit:
            raise UserError(
                f"model type {self.network.config.model_type!r}: beyond {limit} tokens the longest prompt of a batch "
                f"changes the rotary angles of all; set prepare.max_tokens to {limit} at most"
            )
        embedded = self.embedding.weight.new_zeros(1).expand(*positions.shape, self.embedding.weight.shape[1])
        inputs: dict[str, Any] = {"inputs_embeds": embedded, "position_ids": positions}
        if self.family.packed:
            inputs["attention_mask"] = unmasked(positions)
        return layer_calls(self.trunk, self.layers, last, **inputs)

    def embed(self, ids: Tensor, positions: Tensor) -> Tensor:
        """Space 0 of tokens [N] at their places in their prompts [N], each a sequence of its own: [N, hidden]."""
        (first,) = layer_calls(self.trunk, self.layers, 1, input_ids=ids[:, None], position_ids=positions[:, None])
        return first.states[:, 0]


class _TrunkOutput:
    """Stands for a trunk's output of any kind: the last hidden state, and nothing else."""

    def __init__(self, states: Tensor) -> None:
        self.last_hidden_state = states

    def __getitem__(self, index: int) -> Tensor:
        return (self.last_hidden_state,)[index]

    def __getattr__(self, name: str) -> None:
        return None
