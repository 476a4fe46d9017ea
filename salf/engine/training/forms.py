"""Forms: which numbers train, and how they enter the forward pass. A model with a form attached is ready to train."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from salf.engine.models.adapter import CausalModel
from salf.engine.models.shards import group_by_unit
from salf.engine.training.scope import Scope
from salf.errors import UserError
from salf.families import layer_unit
from salf.files import read_json, write_json
from salf.methods import Method
from salf.parameters import trained_names
from salf.settings import Finetune

if TYPE_CHECKING:
    from salf.engine.batches import Batch
    from salf.engine.training.checkpoint import Training
    from salf.engine.training.step import Job

ADAPTER: Final = "adapter"  # the folder for PEFT inside a model's folder


class Form:
    """A form attached to a model; all parameters that are to train require gradients."""

    def __init__(self, model: CausalModel, scope: Scope, settings: Finetune, seed: int) -> None:
        """Attach to the layers of ``scope``, which all train at some step; ``seed``: of random first values."""
        raise NotImplementedError

    def decided(self) -> dict[str, Tensor]:
        """What :meth:`begin` decides, by name: kept with the parameters, and filled in place when a run resumes."""
        return {}

    def begin(self, job: "Job", loss: "Callable[[Batch], Tensor]", done: "Training") -> None:
        """Look at the training data before the first step; add to ``done`` what that costs and what it finds.

        ``loss`` is the objective of a part, on the job's device.
        """

    def fold(self) -> set[str]:
        """Fold what was added into the network's weights; return the names of the parameters that changed."""
        raise NotImplementedError

    def opened(self, network: PreTrainedModel) -> Any:
        """The trained ``network`` for use in memory."""
        self.fold()
        return network

    def save(self, folder: Path, base: str, revision: str | None) -> None:
        """Write what a model's folder holds in addition to folded weights; ``base``, ``revision``: the base model's."""

    def stored(self) -> dict[str, Tensor]:
        """Weights for the folder's shards that the network has no place for once all is folded."""
        return {}


class Weights(Form):
    """The network's own weights."""

    def __init__(self, model: CausalModel, scope: Scope, _settings: Finetune, _seed: int) -> None:
        self.model, named = model, dict(model.network.named_parameters())
        above = trained_names(named, model.family, scope.boundary, tied_head=model.tied_head)
        units = {*["embedding"] * scope.embeddings, *(layer_unit(layer, model.depth) for layer in scope.layers)}
        units |= {"final"} if scope.final else set()
        self.names = {name for name in above if model.family.unit_of(name, model.depth) in units}
        for name, parameter in named.items():
            parameter.requires_grad = name in self.names

    def fold(self) -> set[str]:
        """Nothing was added."""
        return self.names


class Lora(Form):
    """Low-rank adapters (PEFT) at all linear maps of the layers; nothing else trains."""

    def __init__(self, model: CausalModel, scope: Scope, settings: Finetune, seed: int) -> None:
        from peft import LoraConfig, get_peft_model  # a second's import that no other form needs

        self.network = model.network
        model.network.requires_grad_(False)
        adapted = _linear_maps(model.layers[max(scope.layers) - 1]).values()  # a quantised frozen one has another shape
        if settings.lora_rank > (most := max((min(part.weight.shape) for part in adapted), default=settings.lora_rank)):
            raise UserError(f"a LoRA rank of {settings.lora_rank} is above {most}, the highest that a matrix has")
        torch.manual_seed(seed)
        config = LoraConfig(
            r=settings.lora_rank,
            lora_alpha=settings.lora_alpha,
            target_modules=sorted(_linear_maps(model.layers[0])),
            layers_to_transform=[layer - 1 for layer in scope.layers],
            layers_pattern=model.family.layers.rsplit(".", 1)[-1],
            task_type="CAUSAL_LM",
            fan_in_fan_out=any(isinstance(part, Conv1D) for part in model.layers[0].modules()),  # GPT-2's layout
        )
        try:
            self.adapters = get_peft_model(model.network, config)
        except ValueError as error:  # Mamba's output projection cannot be adapted
            raise UserError(f"adapters do not fit this model: {' '.join(str(error).split())}") from None

    def fold(self) -> set[str]:
        """Add the adapters' products to the weights that they adapt."""
        names = (name for name, _ in self.network.named_parameters())
        changed = {
            name.replace(".base_layer.", ".") for name in names if ".base_layer." in name and name.endswith("weight")
        }
        self.adapters.merge_and_unload()
        return changed

    def opened(self, _network: PreTrainedModel) -> Any:
        """PEFT's wrapper around the network."""
        return self.adapters

    def save(self, folder: Path, base: str, revision: str | None) -> None:
        """Write PEFT's folder."""
        save_adapter(self.adapters, folder / ADAPTER, base, revision)


def save_adapter(model: Any, folder: Path, base: str, revision: str | None) -> dict[str, Any]:
    """Write the folder of PEFT's wrapper ``model``, with the base's name and revision; return its configuration."""
    model.save_pretrained(folder, save_embedding_layers=False)  # or PEFT asks the Hub for a vocabulary
    file = folder / "adapter_config.json"
    config: dict[str, Any] = {**read_json(file), "base_model_name_or_path": base, "revision": revision}
    if isinstance(config["target_modules"], list):  # PEFT writes a set
        config["target_modules"].sort()
    write_json(file, config)
    return config


@dataclass(frozen=True)
class Trainable:
    """A model made ready to train."""

    model: CausalModel  # only ``parameters`` require gradients; where layers are drawn, some of them at a time
    method: Method
    scope: Scope
    form: Form
    parameters: list[nn.Parameter] = field(repr=False)  # for the optimizer, and nothing else for the optimizer
    units: list[str]  # the shards that they change, in the order of the model

    @classmethod
    def of(
        cls, model: CausalModel, method: Method, scope: Scope, settings: Finetune, seed: int, steps: int
    ) -> "Trainable":
        """Freeze and unfreeze a model for a run of ``steps`` steps: layers that it never draws stay frozen.

        ``seed`` decides a form's random first values. A ``UserError`` says that the form does not fit the model.
        """
        layers = scope.layers_within(steps)
        form = method.form.implementation()(model, replace(scope, layers=layers), settings, seed)
        model.network.eval()  # dropout is for trained layers: frozen ones compute one fixed function
        for number in layers:
            model.layers[number - 1].train()
        trained = {name: p for name, p in model.network.named_parameters() if p.requires_grad}
        units = list(group_by_unit(trained, model.family, model.depth))
        return cls(model, method, scope, form, list(trained.values()), units)

    @property
    def count(self) -> int:
        """Number of trained parameters."""
        return sum(parameter.numel() for parameter in self.parameters)

    def let_train(self, layers: Collection[int]) -> None:
        """Let these layers train and no other; parameters outside the layers keep their state."""
        for number, layer in enumerate(self.model.layers, 1):
            layer.train(number in layers)
            layer.requires_grad_(number in layers)
            if number not in layers:
                layer.zero_grad(set_to_none=True)


def _linear_maps(layer: nn.Module) -> dict[str, nn.Linear | Conv1D]:
    """A decoder layer's linear maps by name, which take adapters."""
    linear = (nn.Linear, Conv1D)  # not a mixture's experts, which transformers keeps in one tensor of three dimensions
    return {name.rsplit(".", 1)[-1]: part for name, part in layer.named_modules() if isinstance(part, linear)}
