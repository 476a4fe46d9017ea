"""What a method trains: which layers, whether what lies before and behind them, and where back-propagation ends.

What trains of embedding and head follows from it. A head with weights of its own trains with the final
norm. A tied head *is* the embedding matrix: at boundary 0 that one matrix trains, with the gradients of
both its uses; from boundary 1 on it is frozen, as embedding and as head, and of what reads the last layer
the final norm alone trains. Methods with adapters leave embedding, norm and head as they are. A tied
matrix is saved once, so that both stay equal.

Two methods train something else than all that lies above a boundary. ``first-n`` is a control: embeddings
and layers 1..n train, the rest is frozen; it trains few parameters and saves next to nothing, because
back-propagation passes through all layers on its way down. ``lisa`` draws layers anew as it goes: see
:mod:`salf.engine.training.draws`.
"""

from dataclasses import dataclass

from salf.engine.training.draws import LayerDraws
from salf.errors import UserError
from salf.families import layer_unit
from salf.methods import FIRST_N, LISA, method_of
from salf.plan import FreezePlan
from salf.settings import Finetune


@dataclass(frozen=True)
class Scope:
    """What trains of a model.

    Attributes:
        depth: L.
        boundary: nothing before layer boundary+1 trains; with 0 the embeddings do, unless adapters are trained.
        layers: numbers, from 1, of those that may train.
        final: the final norm trains, and a head with weights of its own.
        lora: adapters are trained beside the layers' weights, and nothing else.
        draws: which of ``layers`` train at which step; ``None``: all of them.
    """

    depth: int
    boundary: int
    layers: tuple[int, ...]
    final: bool = True
    lora: bool = False
    draws: LayerDraws | None = None

    def layers_at(self, step: int) -> tuple[int, ...]:
        """The layers that train at a step, from 0."""
        return self.draws.at(step) if self.draws else self.layers

    def layers_within(self, steps: int) -> tuple[int, ...]:
        """The layers that train in a run of so many steps, at one step or at all."""
        return self.draws.within(steps) if self.draws else self.layers

    def units(self, steps: int) -> list[str]:
        """The shards that a run of so many steps changes, in the order of the model."""
        layers = [layer_unit(layer, self.depth) for layer in self.layers_within(steps)]
        if self.lora:
            return layers
        return ["embedding"] * (self.boundary == 0) + layers + ["final"] * self.final


def scope_of(name: str, plan: FreezePlan, params: Finetune, seed: int, first_n: int | None) -> Scope:
    """The scope of a method for the planned model.

    Args:
        name: the method.
        plan: gives the selectors' boundaries and the model's depth.
        params: ``lisa_layers`` and ``lisa_steps``.
        seed: of the layers that ``lisa`` draws.
        first_n: the layers that ``first-n`` trains, as far as there are so many; ``None``: as many as the plan trains.

    Raises:
        UserError: the plan has no such boundary, or leaves the method nothing to train; there are too few layers.
    """
    method, depth = method_of(name), plan.model.layers
    if method.scope == FIRST_N:
        trained = max(1, depth - plan.boundary) if first_n is None else min(first_n, depth)
        return Scope(depth, 0, tuple(range(1, trained + 1)), final=False)
    if method.scope == LISA:
        if params.lisa_layers > depth:
            raise UserError(f"params.yaml: finetune.lisa_layers = {params.lisa_layers}: the model has {depth} layers")
        draws = LayerDraws(depth, params.lisa_layers, params.lisa_steps, seed)
        return Scope(depth, 0, tuple(range(1, depth + 1)), draws=draws)
    boundary = plan.boundary_of(method.scope)
    if method.lora and boundary == depth:
        raise UserError(f"method {name}: the plan freezes all {depth} layers, nothing is left to adapt")
    return Scope(depth, boundary, tuple(range(boundary + 1, depth + 1)), lora=method.lora)
