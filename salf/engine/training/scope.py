"""The layers that a method trains, and when; :mod:`salf.parameters` decides which parameters train above a boundary.

Most methods train everything above their boundary. With answer positions alone (``+answer``) the embeddings, and a
head tied to them, stay the base's even where nothing else is frozen. Two scopes differ:

- ``first-n`` is a control. Embeddings and layers 1..n train. It trains few parameters and saves almost nothing,
  because back-propagation passes through all layers.
- ``lisa`` trains layers drawn at random: layerwise importance sampled AdamW (Pan et al. 2024, arXiv 2403.17919,
  Algorithm 1). Embeddings and head train all the time. Layers that end an interval lose AdamW's moments, as in the
  authors' experiments (github.com/OptimalScale/LMFlow, issue 729 and the trainer there).
"""

from dataclasses import dataclass, replace
from pkgutil import resolve_name
from typing import Self

import numpy as np

from salf.errors import UserError
from salf.methods import SCOPES, Method
from salf.plan import FreezePlan
from salf.settings import Finetune


@dataclass(frozen=True)
class LayerDraws:
    """The layers that train in each interval, drawn from the seed and the interval's number alone.

    Of ``depth`` layers, ``layers`` train at a time (the paper's gamma), for ``steps`` optimizer steps (its K).
    """

    depth: int
    layers: int
    steps: int
    seed: int

    def interval(self, step: int) -> int:
        """The number of a step's interval; both count from 0."""
        return step // self.steps

    def at(self, step: int) -> tuple[int, ...]:
        """The layers of a step, from 1, ascending."""
        rng = np.random.default_rng([abs(self.seed), self.interval(step)])
        return tuple(sorted(int(layer) + 1 for layer in rng.choice(self.depth, self.layers, replace=False)))


@dataclass(frozen=True)
class Scope:
    """The parts of a model that a method trains."""

    depth: int  # L
    boundary: int  # layers 1..boundary and the embeddings are frozen; with 0 the embeddings may train
    layers: tuple[int, ...]  # numbers, from 1, of the layers that may train
    final: bool = True  # the final norm may train, and a head with weights of its own
    embeddings: bool = True  # with boundary 0 the embeddings may train, and a head tied to them
    draws: LayerDraws | None = None  # which of ``layers`` train at which step; ``None``: all of them

    @classmethod
    def above(cls, boundary: int, depth: int) -> Self:
        """Everything above a boundary."""
        return cls(depth, boundary, tuple(range(boundary + 1, depth + 1)))

    def layers_at(self, step: int) -> tuple[int, ...]:
        """The layers that train at a step, from 0."""
        return self.draws.at(step) if self.draws else self.layers

    def layers_within(self, steps: int) -> tuple[int, ...]:
        """The layers that train at some step of a run."""
        if self.draws is None:
            return self.layers
        return tuple(sorted({layer for step in range(0, steps, self.draws.steps) for layer in self.draws.at(step)}))


def scope_of(method: Method, plan: FreezePlan, settings: Finetune, seed: int, first_n: int | None) -> Scope:
    """The scope of a method for the planned model; a ``UserError`` says that nothing or too little is left to train.

    ``seed`` decides which layers ``lisa`` draws. ``first_n`` is the number of layers that ``first-n`` trains, at most
    L; ``None``: as many as the plan trains.
    """
    depth = plan.model.layers
    if method.scope in SCOPES:
        trained = max(1, depth - plan.boundary) if first_n is None else min(first_n, depth)
        return resolve_name(SCOPES[method.scope].made_by)(depth, settings, seed, trained)
    return scope_above(method, plan.boundary_of(method.scope), depth)


def first_layers(depth: int, _settings: Finetune, _seed: int, trained: int) -> Scope:
    """The first ``trained`` layers, and the embeddings."""
    return Scope(depth, 0, tuple(range(1, trained + 1)), final=False)


def drawn_layers(depth: int, settings: Finetune, seed: int, _trained: int) -> Scope:
    """A few layers at a time, drawn at random; embeddings, final norm and head all the time."""
    if settings.lisa_layers > depth:
        raise UserError(f"params.yaml: finetune.lisa_layers = {settings.lisa_layers}: the model has {depth} layers")
    draws = LayerDraws(depth, settings.lisa_layers, settings.lisa_steps, seed)
    return Scope(depth, 0, tuple(range(1, depth + 1)), draws=draws)


def scope_above(method: Method, boundary: int, depth: int) -> Scope:
    """The scope of a method above a boundary; a ``UserError`` says that too little is left to train."""
    if boundary == depth and method.form.name in method.words:
        raise UserError(f"method {method.name}: the plan freezes all {depth} layers, so {method.form.name} has none")
    if boundary == depth and method.answer_side:
        raise UserError(f"method {method.name}: the plan freezes all {depth} layers; leave out +answer")
    # The base reads prompts with its own embeddings; answers that read others would need a second table of them.
    return replace(Scope.above(boundary, depth), embeddings=not method.answer_side)
