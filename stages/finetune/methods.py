"""Methods: which selector's scope is trained, and how. One training loop serves them all.

What trains of embedding and head follows from the plan. A head with weights of its own always trains.
A tied head *is* the embedding matrix: at boundary 0 that one matrix trains, with the gradients of both
its uses; from boundary 1 on it is frozen, as embedding and as head, and of what reads the last layer
the final norm alone trains. Methods with adapters leave embedding, norm and head as they are. A tied
matrix is saved once, so that both stay equal.
"""

from dataclasses import dataclass
from typing import Final

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from stages.common.command import UserError
from stages.common.freeze_plan import FreezePlan
from stages.common.models.adapter import CausalModel
from stages.common.params import Finetune, MethodName, SelectorName
from stages.common.training.trainable import Trainable, train_mode


@dataclass(frozen=True)
class Method:
    """A scope (the boundary of a selector) and whether adapters are trained in it instead of weights."""

    scope: SelectorName
    lora: bool = False


METHODS: Final[dict[MethodName, Method]] = {
    "full": Method("full"),
    "salf": Method("salf"),
    "lora": Method("full", lora=True),
    "salf+lora": Method("salf", lora=True),
    "none": Method("none"),
    "last-n": Method("last-n"),
    "random": Method("random"),
}


def make_trainable(model: CausalModel, plan: FreezePlan, name: MethodName, params: Finetune, seed: int) -> Trainable:
    """Freeze and unfreeze ``model`` as the plan and the method say.

    Raises:
        UserError: the plan is for another model, or leaves the method nothing to train.
    """
    method = METHODS[name]
    boundary = plan.boundary_of(method.scope)
    parameters = plan.apply(model.network, scope=method.scope)
    if not method.lora:
        train_mode(model, boundary)
        return Trainable(model, parameters, boundary, None)
    if boundary == model.depth:
        raise UserError(f"method {name}: the plan freezes all {model.depth} layers, nothing is left to adapt")
    model.network.requires_grad_(False)
    torch.manual_seed(seed)  # adapters start at random
    settings = LoraConfig(
        r=params.lora_rank,
        lora_alpha=params.lora_alpha,
        target_modules=_linear_maps(model.layers[0]),
        layers_to_transform=list(range(boundary, model.depth)),
        layers_pattern=model.family.layers.rsplit(".", 1)[-1],
        fan_in_fan_out=any(isinstance(part, Conv1D) for part in model.layers[0].modules()),  # GPT-2's layout
    )
    try:
        adapters = get_peft_model(model.network, settings)
    except ValueError as error:  # Mamba's output projection cannot be adapted
        raise UserError(f"method {name}: {' '.join(str(error).split())}") from None
    train_mode(model, boundary)
    trained = [parameter for parameter in model.network.parameters() if parameter.requires_grad]
    return Trainable(model, trained, boundary, adapters)


def _linear_maps(layer: nn.Module) -> list[str]:
    """Names of a decoder layer's linear maps: what adapters sit beside."""
    linear = (nn.Linear, Conv1D)  # not a mixture's experts, which transformers keeps in one tensor of three dimensions
    return sorted({name.rsplit(".", 1)[-1] for name, part in layer.named_modules() if isinstance(part, linear)})
