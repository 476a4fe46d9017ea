"""Makes a model ready for a method. One training loop serves them all."""

from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from salf.engine.models.adapter import CausalModel
from salf.engine.training.trainable import Trainable, train_mode
from salf.errors import UserError
from salf.plan import FreezePlan
from salf.settings import Finetune
from stages.finetune.scope import Scope

if TYPE_CHECKING:
    from peft import PeftModel


def make_trainable(
    model: CausalModel, plan: FreezePlan, scope: Scope, params: Finetune, seed: int, steps: int
) -> Trainable:
    """Freeze and unfreeze ``model`` as the scope says.

    Args:
        model: the model.
        plan: the plan that the scope is of.
        scope: what trains.
        params: rank and alpha of adapters.
        seed: of the adapters' first values.
        steps: of the whole training; of layers that are drawn, those are left alone that none of them draws.

    Raises:
        UserError: the plan is for another model, or the model cannot be adapted.
    """
    layers = scope.layers_within(steps)
    plan.apply(model.network, scope=f"freeze-{scope.boundary}")
    adapters = _adapted(model, layers, params, seed) if scope.lora else None
    if not scope.lora:
        units = set(scope.units(steps))
        for name, parameter in model.network.named_parameters():
            parameter.requires_grad = model.family.unit_of(name, model.depth) in units
    train_mode(model, layers)
    trained = [parameter for parameter in model.network.parameters() if parameter.requires_grad]
    return Trainable(model, trained, scope.boundary, adapters, layers, scope.draws)


def _adapted(model: CausalModel, layers: tuple[int, ...], params: Finetune, seed: int) -> "PeftModel":
    """Adapters beside all linear maps of these layers; nothing else requires gradients then."""
    from peft import LoraConfig, get_peft_model  # a second's import that no other method needs

    model.network.requires_grad_(False)
    torch.manual_seed(seed)  # adapters start at random
    settings = LoraConfig(
        r=params.lora_rank,
        lora_alpha=params.lora_alpha,
        target_modules=_linear_maps(model.layers[0]),
        layers_to_transform=[layer - 1 for layer in layers],
        layers_pattern=model.family.layers.rsplit(".", 1)[-1],
        task_type="CAUSAL_LM",
        fan_in_fan_out=any(isinstance(part, Conv1D) for part in model.layers[0].modules()),  # GPT-2's layout
    )
    try:
        return get_peft_model(model.network, settings)
    except ValueError as error:  # Mamba's output projection cannot be adapted
        raise UserError(f"adapters do not fit this model: {' '.join(str(error).split())}") from None


def _linear_maps(layer: nn.Module) -> list[str]:
    """Names of a decoder layer's linear maps: what adapters sit beside."""
    linear = (nn.Linear, Conv1D)  # not a mixture's experts, which transformers keeps in one tensor of three dimensions
    return sorted({name.rsplit(".", 1)[-1] for name, part in layer.named_modules() if isinstance(part, linear)})
