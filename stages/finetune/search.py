"""Trains once per learning rate of a method's grid and keeps the best on the validation split."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from stages.common.answers import Reader
from stages.common.batches import Example
from stages.common.boundary_cache.opened import Opened
from stages.common.cost import ModelShape
from stages.common.freeze_plan import FreezePlan
from stages.common.models.adapter import CausalModel, open_model
from stages.common.params import Finetune
from stages.common.rate_choice import Tried, beats
from stages.common.runtime import Runtime
from stages.common.training.checkpoint import Training
from stages.common.training.costs import Costs
from stages.common.training.loop import DivergedError, train
from stages.common.training.processes import ALONE, Processes
from stages.common.training.starts import Splits, begun, open_states
from stages.common.training.trainable import Trainable
from stages.finetune.epochs import epochs_for_as_much
from stages.finetune.methods import make_trainable
from stages.finetune.scope import Scope, scope_of


@dataclass(frozen=True)
class Bench:
    """All that the candidates of a grid have in common.

    Attributes:
        first_n: layers that the method ``first-n`` trains; ``None``: as many as the plan.
        shared: tokens of the beginning that all prompts share.
        unfinished: where training that was stopped is kept, to go on from.
        make_reader: gives what scores a model on the validation split.
        processes: those that train together.
    """

    base: Path
    plan: FreezePlan
    method: str
    runtime: Runtime
    params: Finetune
    first_n: int | None
    shape: ModelShape
    training: Sequence[Example]
    validation: Sequence[Example]
    shared: int
    unfinished: Path
    make_reader: Callable[[CausalModel], Reader]
    processes: Processes = ALONE

    @property
    def splits(self) -> Splits:
        """What is trained on, and what the course of training is judged by."""
        return {"training": self.training, "validation": self.validation}


@dataclass(frozen=True)
class Candidate:
    """A finished training run at one learning rate."""

    rate: float
    trainable: Trainable
    training: Training

    @property
    def stood(self) -> Tried:
        """How it stood on the validation split in the end."""
        last = self.training.curve[-1]
        return Tried(last["validation_loss"], last["validation_accuracy"])


@dataclass(frozen=True)
class Search:
    """What a grid came to.

    Attributes:
        scope: what was trained.
        epochs: of every candidate.
        best: the one that won on the validation split (see :func:`stages.common.rate_choice.beats`).
        grid: every rate, and its final validation loss and accuracy; ``None``: training diverged.
        states: where the passes of training and validation began, by split; empty where nothing is frozen.
    """

    scope: Scope
    epochs: int
    best: Candidate
    grid: list[dict[str, float | None]]
    states: dict[str, Opened]

    @property
    def seconds_cache(self) -> float:
        """What the frozen layers' pass over the training split took, when it was done: for this run or for another.

        As with FLOPs, a method pays for its frozen pass even where a run before it left the states, and reading the
        validation split is left out, of which the other methods' seconds have no part either.
        """
        return self.states["training"].seconds_computing if self.states else 0.0


def best_of_grid(bench: Bench, seed: int) -> Search:
    """Train at every rate of the grid, from the lowest on; the one that wins on the validation split is kept.

    A rate at which training diverges has lost, which is told.

    Raises:
        UserError: the method cannot be trained here, has no learning rate, or diverges at all of them; says why.
    """
    scope = scope_of(bench.method, bench.plan, bench.params, seed, bench.first_n)
    rates = bench.params.rates(bench.method, scope.boundary)
    model = _open(bench, scope)
    states = _open_states(bench, model, scope, len(rates), seed) if scope.boundary else {}
    costs = _costs(bench, scope, anew=bool(states) and states["training"].origin == "off")
    epochs = _epochs(bench, scope, costs, seed)
    best: Candidate | None = None
    highest = 0.0
    grid: list[dict[str, float | None]] = []
    for number, rate in enumerate(rates):
        model = _open(bench, scope) if number else model
        try:
            candidate = _train_one(bench, scope, model, states, costs, rate, seed, epochs)
        except DivergedError as fault:
            if best is None and rate == rates[-1]:
                raise
            print(f"{fault}; the other rates of the grid decide")
            grid.append({"rate": rate, "validation_loss": None, "validation_accuracy": None})
            continue
        stood = candidate.stood
        grid.append({"rate": rate, "validation_loss": stood.loss, "validation_accuracy": stood.accuracy})
        if best is None or beats(stood, best.stood, len(bench.validation), highest):
            best = candidate
        highest = max(highest, stood.accuracy or 0.0)
    assert best is not None, "a grid holds one rate at least"
    if len(rates) > 1 and best.rate in (rates[0], rates[-1]):
        print(f"{bench.method}: {best.rate:g} won, an end of the grid: beyond it a better rate may lie")
    return Search(scope, epochs, best, grid, states)


def _open(bench: Bench, scope: Scope) -> CausalModel:
    return open_model(bench.base, bench.runtime.device, frozen=bench.runtime.frozen(scope.boundary))


def _train_one(
    bench: Bench,
    scope: Scope,
    model: CausalModel,
    states: dict[str, Opened],
    costs: Costs,
    rate: float,
    seed: int,
    epochs: int,
) -> Candidate:
    """Train at one rate."""
    steps = epochs * math.ceil(len(bench.training) / bench.params.batch_size)
    trainable = make_trainable(model, bench.plan, scope, bench.params, seed, steps)
    learned_from, judged_by = begun(model, bench.splits, states, bench.shared)
    training = train(
        trainable,
        bench.runtime,
        learned_from,
        judged_by,
        bench.make_reader(model),
        costs,
        bench.params,
        rate,
        seed,
        f"{bench.method} at rate {rate:g}",
        bench.unfinished / f"rate-{rate:g}.safetensors",
        bench.processes,
        epochs,
    )
    return Candidate(rate, trainable, training)


def _costs(bench: Bench, scope: Scope, *, anew: bool) -> Costs:
    """What counts a method's operations; ``anew``: the frozen layers run for every batch."""
    return Costs(
        bench.shape,
        scope.boundary,
        "lora" if scope.lora else "weights",
        bench.params.lora_rank,
        frozen_anew=anew,
        recompute=bench.params.gradient_checkpointing,
        own_head_frozen=not scope.final,
    )


def _epochs(bench: Bench, scope: Scope, costs: Costs, seed: int) -> int:
    """Those of the parameters, or with ``equal_compute`` as many as full fine-tuning's operations pay for."""
    if not bench.params.equal_compute:
        return bench.params.epochs
    full = Costs(bench.shape, 0, "weights", bench.params.lora_rank, recompute=bench.params.gradient_checkpointing)
    count = bench.processes.count
    return epochs_for_as_much(full, costs, scope, bench.training, bench.shared, bench.params, seed, count)


def _open_states(bench: Bench, model: CausalModel, scope: Scope, rates: int, seed: int) -> dict[str, Opened]:
    """The frozen layers' states of both splits, for so many rates of a grid."""
    params = bench.params
    epochs = _epochs(bench, scope, _costs(bench, scope, anew=False), seed)
    looks = max(1, params.epochs * params.evaluations_per_epoch)
    passes = {"training": rates * epochs, "validation": rates * looks}
    return open_states(
        bench.base,
        model,
        bench.runtime,
        params,
        scope.boundary,
        bench.splits,
        passes,
        bench.shared,
        bench.processes,
    )
