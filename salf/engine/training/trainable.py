"""A model made ready for training: what trains of it, above which boundary."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from salf.engine.models.adapter import CausalModel
from salf.engine.training.draws import LayerDraws

if TYPE_CHECKING:
    from peft import PeftModel


@dataclass(frozen=True)
class Trainable:
    """A model made ready: what trains, above which boundary.

    Attributes:
        model: the model; only ``parameters`` require gradients (with ``draws``: some of them at a time).
        parameters: for the optimizer, and nothing else for the optimizer.
        boundary: back-propagation ends there: layers 1..boundary are frozen, with 0 the embeddings train.
        adapters: PEFT's wrapper around the same network, or ``None``.
        layers: numbers, from 1, of those that train at some time; ``None``: all above the boundary.
        draws: which of these train at which step, where not all do.
    """

    model: CausalModel
    parameters: list[nn.Parameter]
    boundary: int
    adapters: "PeftModel | None"
    layers: Collection[int] | None = None
    draws: LayerDraws | None = None

    @property
    def count(self) -> int:
        """Trained parameters."""
        return sum(parameter.numel() for parameter in self.parameters)

    def layers_at(self, step: int) -> Collection[int] | None:
        """The layers that train at a step, from 0; ``None``: all above the boundary."""
        return self.draws.at(step) if self.draws else self.layers

    def let_train(self, layers: Collection[int]) -> None:
        """Let these layers train, and no other; what lies before and behind the layers stays as it is."""
        for number, layer in enumerate(self.model.layers, 1):
            layer.train(number in layers)
            layer.requires_grad_(number in layers)
            if number not in layers:
                layer.zero_grad(set_to_none=True)

    def merged(self) -> set[str]:
        """Fold adapters into the weights they sit beside; return the names of changed parameters."""
        if self.adapters is None:
            trained = set(map(id, self.parameters))
            return {name for name, parameter in self.model.network.named_parameters() if id(parameter) in trained}
        changed = {name.replace(".base_layer.", ".") for name in _adapted_weights(self.model.network)}
        self.adapters.merge_and_unload()
        return changed


def train_mode(model: CausalModel, layers: Collection[int]) -> None:
    """Dropout, where a model has any, is for trained layers: frozen ones compute one fixed function."""
    model.network.eval()
    for number in layers:
        model.layers[number - 1].train()


def _adapted_weights(network: nn.Module) -> list[str]:
    return [name for name, _ in network.named_parameters() if ".base_layer." in name and name.endswith("weight")]
