"""The trained layers of a causal language model, as a model of its own that starts at boundary states.

The suffix is a shallow copy of the network: an object of the same class with the same modules, except that
stand-ins take the place of the frozen layers. A stand-in computes nothing; it hands on the boundary states. So
masks, positions, logits, loss and gradient checkpointing are the network's own code, and parameters keep their
names.
"""

import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from salf.engine.models.adapter import require_same_logits
from salf.engine.models.causal_model import StandIn, in_eval_mode
from salf.errors import UserError
from salf.families import Family, family_of
from salf.parameters import NetworkParameters
from salf.plan import FreezePlan


def suffix(model: nn.Module, plan_or_boundary: FreezePlan | int, scope: str | None = None) -> Any:
    """Return the layers above a boundary, with final norm and head, as a model that takes boundary states.

    The result is called like the Hugging Face model itself, with boundary states (`prefix_states`) as
    `inputs_embeds` [B, T, H]: `attention_mask`, `labels` (-100 is ignored), `num_items_in_batch`, `return_dict` and
    the rest mean the same. It shares the model's parameters, so training it trains the model; afterwards call
    `model.save_pretrained`. The suffix's own `save_pretrained` does that too, so checkpoints of a Trainer are whole
    models, or all adapters of a model that PEFT has wrapped. A mixture of experts adds its auxiliary loss, if its
    configuration asks for one, over the trained layers.

    `requires_grad` is set as by `FreezePlan.apply`. Adapters work both ways: `get_peft_model(suffix)`, or the suffix
    of a model that PEFT has wrapped.

    Args:
        model: a Hugging Face causal language model on one device, or PEFT's wrapper around one.
        plan_or_boundary: a freeze plan, or the last frozen layer (1 to L).
        scope: a selector or `freeze-<k>`, to use its boundary instead of the plan's own.

    Raises:
        UserError: nothing is frozen, the plan is for another model, the model is spread over several devices, or its
            layers cannot be run apart from the rest; or no adapter is above the boundary.
    """
    network = network_of(model)
    if len(set(getattr(network, "hf_device_map", None) or {"": ""}.values())) > 1:
        raise UserError("the model is spread over several devices (device_map); a suffix needs it on one")
    boundary = frozen_layers(network, plan_or_boundary, scope)
    parameters = NetworkParameters.of(model)
    family = family_of(network.config.model_type, parameters.own)
    twin, trunk = twin_of(network, family, boundary, Network, Trunk)
    require_twin(twin, family, lambda _, mask, states: {"inputs_embeds": states, "attention_mask": mask})
    _take_boundary(type(twin), trunk.entry)
    parameters.train_above(family, boundary)
    if network.is_activation_checkpointing:
        twin.activation_checkpointing_enable()
    return twin if network is model else wrapped_again(model, twin)


def network_of(model: Any) -> PreTrainedModel:
    """The Hugging Face model without PEFT's wrapper; a ``UserError`` says that it is no whole causal LM."""
    base = getattr(model, "get_base_model", None)
    network = base() if callable(base) else model
    if network is not model and model.active_peft_config.is_prompt_learning:
        raise UserError("PEFT's virtual tokens train below the frozen layers; use adapters in layers, such as LoRA")
    if isinstance(network, Network):
        raise UserError("this is a suffix, without frozen layers; pass the whole model")
    if not isinstance(network, PreTrainedModel) or network.get_output_embeddings() is None:
        kind = type(network).__name__
        raise UserError(f"{kind} is not a causal language model of transformers; pass it before compile or DDP does")
    return network


def frozen_layers(
    network: PreTrainedModel, plan_or_boundary: FreezePlan | int, scope: str | None, *, least: int = 1
) -> int:
    """The boundary; a ``UserError`` says that it is none, does not fit the model, or freezes less than ``least``."""
    boundary = plan_or_boundary
    if isinstance(boundary, FreezePlan):
        boundary.check(network)
        boundary = boundary.boundary_of(scope)
    if not isinstance(boundary, Integral):
        raise UserError(f"{boundary!r} is neither a number of layers nor a plan; open one with salf.FreezePlan.load")
    depth = network.config.get_text_config().num_hidden_layers
    if not least <= boundary <= depth:
        raise UserError(f"boundary {boundary}: cached states need {least} to {depth} frozen layers")
    return int(boundary)


@dataclass
class Entry:
    """Passes the boundary states from the trunk to the stand-ins."""

    boundary: int  # the last frozen layer
    states: Tensor | None = None  # of the pass that runs, [B, T, H]
    in_tuple: bool = False  # the network's layers return their states as the first of a tuple

    def require(self, boundary: Tensor | None) -> None:
        """Refuse boundary states of another layer; ``boundary`` [B] is that of a batch's rows."""
        if boundary is not None and (boundary != self.boundary).any():
            layers = ", ".join(map(str, boundary.unique().tolist()))
            raise UserError(f"boundary states of layer {layers}, and this suffix starts after layer {self.boundary}")


class _Frozen(StandIn):
    """In a frozen layer's place."""

    def forward(self, *_: Any, **__: Any) -> Any:
        """Hand on the boundary states."""
        return (self.entry.states, None) if self.entry.in_tuple else self.entry.states


class Trunk:
    """Methods that the suffix's trunk overrides."""

    entry: Entry
    width: int

    def forward(
        self,
        input_ids: Tensor | None = None,
        *,
        inputs_embeds: Tensor | None = None,
        boundary: Tensor | None = None,
        **options: Any,
    ) -> Any:
        """Run the trunk on placeholders, which the stand-ins replace by the states; TRL calls it by itself."""
        self.entry.require(boundary)
        if input_ids is not None or inputs_embeds is None:
            raise UserError("a suffix takes boundary states as inputs_embeds; for token ids call the model itself")
        self.entry.states = inputs_embeds
        embedded = inputs_embeds.new_zeros(1).expand(*inputs_embeds.shape[:2], self.width)  # [B, T, E], no memory
        try:
            return super().forward(inputs_embeds=embedded, **{**options, "use_cache": False})  # type: ignore[misc]
        finally:
            self.entry.states = None


class SavedWhole:
    """Methods that the suffix of a PEFT model overrides."""

    whole: Any

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> None:
        """Save the whole model, frozen layers included."""
        self.whole.save_pretrained(save_directory, **{**options, "state_dict": None})

    def generate(self, *_: Any, **__: Any) -> Any:
        """Refuse, always."""
        raise UserError("a suffix does not generate: the whole model does, or salf.AnswerSideModel of what it saves")


class Network(SavedWhole):
    """Methods that the whole suffix overrides."""

    main_input_name = "inputs_embeds"

    def activation_checkpointing_enable(
        self, activation_checkpointing_kwargs: dict[str, Any] | None = None, **options: Any
    ) -> None:
        """Recompute layers in the backward pass; always non-reentrant, because boundary states want no gradient."""
        chosen = {**(activation_checkpointing_kwargs or {}), "use_reentrant": False}
        super().activation_checkpointing_enable(chosen, **options)  # type: ignore[misc]


def twin_of(
    network: PreTrainedModel, family: Family, boundary: int, outer: type["Network"], inner: type["Trunk"], **own: Any
) -> tuple[Any, Any]:
    """A copy of the network down to its list of layers, and its trunk; everything else is shared.

    ``outer`` and ``inner`` say what is different in the two; the trunk also gets ``own``.
    """
    twin = _copied(network, outer, whole=network)
    *between, last = family.trunk.split(".")
    parent = twin
    for name in between:
        parent = _replace(parent, name, _copied(getattr(parent, name)))
    width, entry = network.get_input_embeddings().weight.shape[1], Entry(boundary)
    trunk = _replace(parent, last, _copied(getattr(parent, last), inner, entry=entry, width=width, **own))
    layers = network.get_submodule(family.layers)
    standins = [_Frozen(layer, entry=entry) for layer in layers[:boundary]]
    _replace(trunk, family.layers.rpartition(".")[2], nn.ModuleList([*standins, *layers[boundary:]]))
    return twin, trunk


def wrapped_again(model: Any, twin: Any, difference: type[SavedWhole] = SavedWhole, **own: Any) -> Any:
    """PEFT's wrapper around the twin instead of around the model, so that a Trainer sees adapters."""
    outer = _copied(model, difference, whole=model, **own)
    _replace(_replace(outer, "base_model", _copied(model.base_model)), "model", twin)
    return outer


def _take_boundary(kind: Any, entry: Entry) -> None:
    """Let the class of one suffix take the batch's `boundary`; its signature names it, so that Trainers keep it."""
    plain = kind.forward

    @wraps(plain)
    def forward(self: Any, *given: Any, boundary: Tensor | None = None, **options: Any) -> Any:
        entry.require(boundary)
        return plain(self, *given, **options)

    signature = inspect.signature(plain)
    named = inspect.Parameter("boundary", inspect.Parameter.KEYWORD_ONLY, default=None)
    parts = sorted([*signature.parameters.values(), named], key=lambda part: part.kind)
    vars(forward)["__signature__"] = signature.replace(parameters=parts)
    kind.forward = forward


def _copied(module: nn.Module, difference: type | None = None, **own: Any) -> nn.Module:
    """A shallow copy with a table of modules of its own; ``difference`` comes before its class."""
    twin = copy.copy(module)
    vars(twin).pop("forward", None)  # set on the instance, it would run the original
    vars(twin).update(_modules=dict(vars(module)["_modules"]), **own)
    if difference is not None:
        kind = type(module)
        twin.__class__ = type(kind.__name__, (difference, kind), {"__module__": kind.__module__})
    return twin


def _replace(parent: nn.Module, name: str, module: nn.Module) -> nn.Module:
    vars(parent)["_modules"][name] = module
    return module


def require_twin(twin: Any, family: Family, batch: Callable[[Tensor, Tensor, Tensor], dict[str, Tensor]]) -> None:
    """Learn how layers return their states, and compare the twin's logits with the model's on a few tokens.

    ``batch`` makes what the twin takes of token ids [B, T], their mask, and boundary states [B, T, H]; logits are of
    the last tokens. A ``UserError`` says that they differ.
    """
    network: PreTrainedModel = twin.whole
    entry: Entry = twin.get_submodule(family.trunk).entry
    device = network.get_input_embeddings().weight.device
    rows = [torch.arange(1, tokens + 1, device=device) for tokens in (3, 5)]
    ids, mask = (pad_sequence(part, batch_first=True) for part in (rows, [torch.ones_like(row) for row in rows]))

    def both() -> tuple[Tensor, Tensor]:
        outputs: list[Any] = []
        layer = network.get_submodule(family.layers)[max(entry.boundary, 1) - 1]
        handle = layer.register_forward_hook(lambda *given: outputs.append(given[-1]))
        try:
            theirs = network(input_ids=ids, attention_mask=mask, use_cache=False).logits
        finally:
            handle.remove()
        entry.in_tuple = isinstance(outputs[0], tuple)
        ours = twin(**batch(ids, mask, outputs[0][0] if entry.in_tuple else outputs[0])).logits
        last = mask[:, -ours.shape[1] :].bool()
        return ours[last], theirs[:, -ours.shape[1] :][last]

    with in_eval_mode(network):
        require_same_logits(network, both)
