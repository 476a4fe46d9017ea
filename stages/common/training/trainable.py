"""A model made ready for training: what trains of it, above which boundary."""

from dataclasses import dataclass

from peft import PeftModel
from torch import nn

from stages.common.models.adapter import CausalModel


@dataclass(frozen=True)
class Trainable:
    """A model made ready: what trains, above which boundary.

    Attributes:
        model: the model; only ``parameters`` require gradients.
        parameters: for the optimizer, and nothing else for the optimizer.
        boundary: layers 1..boundary are frozen.
        adapters: PEFT's wrapper around the same network, or ``None``.
    """

    model: CausalModel
    parameters: list[nn.Parameter]
    boundary: int
    adapters: PeftModel | None

    @property
    def count(self) -> int:
        """Trained parameters."""
        return sum(parameter.numel() for parameter in self.parameters)

    def merged(self) -> set[str]:
        """Fold adapters into the weights they sit beside; return the names of changed parameters."""
        if self.adapters is None:
            return {name for name, parameter in self.model.network.named_parameters() if parameter.requires_grad}
        changed = {name.replace(".base_layer.", ".") for name in _adapted_weights(self.model.network)}
        self.adapters.merge_and_unload()
        return changed


def train_mode(model: CausalModel, boundary: int) -> None:
    """Dropout, where a model has any, is for trained layers: frozen ones compute one fixed function."""
    model.network.eval()
    for layer in model.layers[boundary:]:
        layer.train()


def _adapted_weights(network: nn.Module) -> list[str]:
    return [name for name, _ in network.named_parameters() if ".base_layer." in name and name.endswith("weight")]
