"""A causal language model taken apart, and what it hands to its own layers, recorded from its own forward pass.

Embeddings, positions and rotary angles differ between architectures. None of it is written a second time here: the
model's own trunk runs with its layers left out, and what it would have given to each of them is kept.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from salf.engine.models.attention import PACKED
from salf.errors import UserError
from salf.families import Family


@dataclass(frozen=True)
class LayerCall:
    """One layer, and what the trunk gives it in addition to the states."""

    layer: nn.Module  # the decoder layer
    states: Tensor  # what the trunk gives it as states: space 0 for the first layer
    options: dict[str, Any]  # everything else, by name

    def run(self, states: Tensor, **options: Any) -> Tensor:
        """The layer's output for other states; some layers return it as the first of a tuple."""
        output = self.layer(states, **{**self.options, **options})
        return output[0] if isinstance(output, tuple) else output


class _EnoughRecorded(Exception):  # noqa: N818 (nothing went wrong: the rest of the trunk is not wanted)
    """Leaves the trunk at the last layer of interest."""


def layer_calls(trunk: nn.Module, layers: nn.ModuleList, last: int, **inputs: Any) -> list[LayerCall]:
    """The calls of layers 1..last (1 at least), none of them run; positions are left out if the trunk takes none."""
    calls: list[LayerCall] = []
    recorders = {number: _Recorder(layer, calls=calls, last=last) for number, layer in layers.named_children()}
    if "position_ids" not in parameter_names(type(trunk).forward):
        inputs.pop("position_ids", None)
    own = vars(layers)["_modules"]
    vars(layers)["_modules"] = recorders
    # Or transformers would hook the recorders to collect these, and never again the layers.
    collected = [
        name for name in ("output_router_logits", "output_hidden_states") if getattr(trunk.config, name, False)
    ]
    try:
        vars(trunk.config).update(dict.fromkeys(collected, False))
        trunk(**inputs, use_cache=False)
    except _EnoughRecorded:
        return calls
    finally:
        vars(layers)["_modules"] = own
        vars(trunk.config).update(dict.fromkeys(collected, True))
    raise RuntimeError(f"the model called {len(calls)} of its layers instead of {last}")


class StandIn(nn.Module):
    """In a layer's place, with the layer's own attributes: the layer's hooks and its forward pass do not run."""

    def __init__(self, layer: nn.Module, **own: Any) -> None:
        super().__init__()
        vars(self).update(layer=layer, **own)  # not registered: the layer's parameters stay out of the module tree

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self)["layer"], name)


class _Recorder(StandIn):
    """Keeps what the layer would have been given."""

    def forward(self, *values: Any, **options: Any) -> Tensor:
        name, *names = parameter_names(type(self.layer).forward)
        states, *rest = values or (options.pop(name),)
        self.calls.append(LayerCall(self.layer, states, {**dict(zip(names, rest, strict=False)), **options}))
        if len(self.calls) == self.last:
            raise _EnoughRecorded
        return self.calls[0].states


def apply(part: Callable[..., Tensor], *inputs: Any, recompute: bool) -> Tensor:
    """Run a part of the model; where it is to be recomputed, back-propagation keeps its inputs alone.

    It runs again in the context (:mod:`contextvars`) in which it ran first.
    """
    return checkpoint(copy_context().run, part, *inputs, use_reentrant=False) if recompute else part(*inputs)


@contextmanager
def in_eval_mode(network: nn.Module) -> Iterator[None]:
    """Switch dropout off for a while, in whichever modules it was on."""
    training = [module for module in network.modules() if module.training]
    network.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@cache
def parameter_names(forward: Callable[..., Any]) -> tuple[str, ...]:
    """Names of what a forward pass takes by position or by name."""
    _, *parameters = inspect.signature(forward).parameters.values()
    return tuple(p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD)


class ClassHead(nn.Linear):
    """A head with a row for each class, [classes, hidden], in the place of a language model's."""

    before: nn.Linear  # the language model's
    labels: Sequence[str]  # of the classes; none where a folder names them

    def __init__(self, before: nn.Linear, rows: Tensor, labels: Sequence[str] = ()) -> None:
        weight = before.weight
        super().__init__(rows.shape[1], rows.shape[0], bias=False, device=weight.device, dtype=weight.dtype)
        vars(self).update(before=before, labels=labels)  # not registered: it is no part of the network now
        with torch.no_grad():
            self.weight.copy_(rows)


class CausalModel:
    """A causal LM taken apart: ``network`` is Hugging Face's model, the rest are its own modules."""

    def __init__(self, network: PreTrainedModel, family: Family) -> None:
        """Find the parts by the family's paths; packed families attend by :mod:`salf.engine.models.attention`."""
        if family.packed:
            network.set_attn_implementation(PACKED)
        part: Callable[[str], Any] = network.get_submodule
        self.network, self.family = network, family
        self.trunk: nn.Module = part(family.trunk)  # runs embedding, layers and final norm
        self.embedding: nn.Embedding = part(family.embedding)  # of tokens, weight [vocabulary, hidden]
        self.layers: nn.ModuleList = part(family.layers)  # the L decoder layers
        self.norm: nn.Module = part(family.norm)  # the final norm n(·), by which the head reads every space
        self.head: nn.Linear = part(family.head)  # weight [vocabulary, hidden]; see also :meth:`read`

    @property
    def depth(self) -> int:
        """L, the number of decoder layers."""
        return len(self.layers)

    @property
    def device(self) -> torch.device:
        """The embedding's device."""
        return self.embedding.weight.device

    @property
    def state_bytes(self) -> int:
        """Bytes of one token's state."""
        width: int = self.network.config.get_text_config().hidden_size
        return width * self.embedding.weight.element_size()

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

    def set_head(self, head: nn.Linear) -> None:
        """Put another head in the network."""
        self.network.set_submodule(self.family.head, head)
        self.head = head

    def logits(self, states: Tensor) -> Tensor:
        """Head of the final norm: raw states [N, hidden] of space L to logits [N, vocabulary]."""
        return self.read(self.norm(states))

    def read(self, normed: Tensor) -> Tensor:
        """Normed states [N, hidden] to logits [N, vocabulary]: the head, its bias, a soft cap or scale.

        The model's own forward pass does it, with the states in place of its trunk's. A class head has neither.
        """
        if isinstance(self.head, ClassHead):
            return self.head(normed)
        own = vars(self.trunk).get("forward")  # accelerate's, where weights are offloaded
        vars(self.trunk)["forward"] = lambda *_, **__: _TrunkOutput(normed[None])
        try:
            return self.network().logits[0]
        finally:
            del vars(self.trunk)["forward"]
            if own is not None:
                vars(self.trunk)["forward"] = own

    def calls(self, last: int, positions: Tensor) -> list[LayerCall]:
        """The arguments of layers 1..last for rows at ``positions``, [sequences, rows]; packed ones get no mask.

        A ``UserError`` says that so far a position's rotary angles depend on the other prompts of the batch.
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
            # A mask of four dimensions is taken as it is; None would have the trunk build one over all packed rows.
            inputs["attention_mask"] = torch.zeros(1, 1, 1, 1, device=positions.device)
        return layer_calls(self.trunk, self.layers, last, **inputs)

    def embed(self, ids: Tensor, positions: Tensor) -> Tensor:
        """Space 0 of tokens [N] at their places in their prompts [N], each a sequence of its own: [N, hidden]."""
        (first,) = layer_calls(self.trunk, self.layers, 1, input_ids=ids[:, None], position_ids=positions[:, None])
        return first.states[:, 0]


class _TrunkOutput(NamedTuple):
    """A trunk's output of any kind: the last hidden state, and nothing else."""

    last_hidden_state: Tensor

    def __getattr__(self, name: str) -> None:
        return None
