"""Trains once per learning rate of a method's grid and keeps the best on the validation split."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from salf.cost import ModelShape
from salf.engine.answers import Reader
from salf.engine.batches import Example
from salf.engine.boundary_cache.cache import Opened
from salf.engine.models.adapter import CausalModel, open_model
from salf.engine.runtime import Runtime
from salf.engine.training.checkpoint import Checkpoint, Training
from salf.engine.training.costs import Costs
from salf.engine.training.loop import DivergedError, train
from salf.engine.training.processes import ALONE, Processes
from salf.engine.training.starts import Splits, begun, open_states
from salf.engine.training.trainable import Trainable
from salf.engine.training.validation import Split, validate
from salf.plan import FreezePlan
from salf.rate_choice import Tried, choose
from salf.records import GridRate
from salf.settings import Finetune
from stages.finetune.epochs import epochs_for_as_much
from stages.finetune.methods import make_trainable
from stages.finetune.scope import Scope, scope_of


@dataclass(frozen=True)
class Bench:
    """All that the candidates of a grid have in common.

    Attributes:
        first_n: layers that the method ``first-n`` trains; ``None``: as many as the plan.
        test: scored with every rate of a grid, for the record; no choice depends on it.
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
    test: Sequence[Example]
    shared: int
    unfinished: Path
    make_reader: Callable[[CausalModel], Reader]
    processes: Processes = ALONE

    def splits(self, rates: int) -> Splits:
        """What is trained on, what training is judged by, and what every rate of a grid of several is scored on."""
        splits = {"training": self.training, "validation": self.validation}
        return {**splits, "test": self.test} if rates > 1 else splits


@dataclass(frozen=True)
class Candidate:
    """A finished training run at one learning rate, and the split that its rate is scored on if the grid has others."""

    rate: float
    trainable: Trainable
    training: Training
    test: Split | None = None

    @property
    def tried(self) -> Tried:
        """Its results on the validation split."""
        last = self.training.curve[-1]
        return Tried(self.rate, last.validation_loss, last.validation_accuracy)


@dataclass(frozen=True)
class Search:
    """The result of a grid.

    Attributes:
        scope: what was trained.
        epochs: of every candidate.
        best: the one that won on the validation split (see :func:`salf.rate_choice.choose`).
        grid: every rate with its final loss and accuracy on the validation split and, where the grid has several rates,
            on the test split; ``None``: training diverged.
        states: where the passes over each split began; empty where nothing is frozen.
    """

    scope: Scope
    epochs: int
    best: Candidate
    grid: list[GridRate]
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

    The choice is made once, when all rates are trained. Until then the trained parameters of every candidate are on
    disk: memory holds one model. A rate at which training diverges has lost, which is told. Scoring the test split
    counts neither as FLOPs nor as seconds of training.

    Raises:
        UserError: the method cannot be trained here, has no learning rate, or diverges at all of them; says why.
    """
    scope = scope_of(bench.method, bench.plan, bench.params, seed, bench.first_n)
    rates = bench.params.rates(bench.method, scope.boundary)
    model = _open(bench, scope)
    states = _open_states(bench, model, scope, len(rates), seed) if scope.boundary else {}
    costs = _costs(bench, scope, anew=bool(states) and states["training"].origin == "off")
    epochs = _epochs(bench, scope, costs, seed)

    def candidate_at(rate: float, model: CausalModel) -> Candidate:
        return _train_one(bench, scope, model, states, costs, rate, seed, epochs, len(rates))

    candidate: Candidate | None = None
    tried: list[Tried] = []
    grid: list[GridRate] = []
    for number, rate in enumerate(rates):
        if number:
            candidate = None
            del model  # before the next one is opened
            model = _open(bench, scope)
        try:
            candidate = candidate_at(rate, model)
        except DivergedError as fault:
            if not tried and rate == rates[-1]:
                raise
            print(f"{fault}; the other rates of the grid decide")
            grid.append(_outcome(bench, rate, None))
            continue
        tried.append(candidate.tried)
        grid.append(_outcome(bench, rate, candidate))
    best = choose(tried, len(bench.validation))
    if candidate is None or candidate.rate != best.rate:
        candidate = None
        del model
        candidate = candidate_at(best.rate, _open(bench, scope))
    if len(rates) > 1 and best.rate in (rates[0], rates[-1]):
        print(f"{bench.method}: {best.rate:g} won, an end of the grid: beyond it a better rate may lie")
    return Search(scope, epochs, candidate, grid, states)


def _outcome(bench: Bench, rate: float, candidate: Candidate | None) -> GridRate:
    """A rate's entry in the grid; ``None``: training diverged."""
    if candidate is None:
        return GridRate(rate=rate, validation_loss=None, validation_accuracy=None, test_loss=None, test_accuracy=None)
    tried = candidate.tried
    found: dict[str, float | None] = {"validation_loss": tried.loss, "validation_accuracy": tried.accuracy}
    if candidate.test is not None:
        reader = bench.make_reader(candidate.trainable.model)
        found["test_loss"], found["test_accuracy"] = validate(reader, candidate.test, bench.processes)
    return GridRate(rate=rate, **found)


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
    rates: int,
) -> Candidate:
    """Train at one of so many rates; one that was trained before is read back."""
    steps = epochs * math.ceil(len(bench.training) / bench.params.batch_size)
    trainable = make_trainable(model, bench.plan, scope, bench.params, seed, steps)
    learned_from, judged_by, *test = begun(model, bench.splits(rates), states, bench.shared)
    kept = bench.unfinished / f"rate-{rate!r}.safetensors"
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
        kept,
        bench.processes,
        epochs,
    )
    if not test:
        return Candidate(rate, trainable, training)
    Checkpoint(kept, trainable.parameters, writes=bench.processes.main).save(training)
    return Candidate(rate, trainable, training, test[0])


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
    passes = {"training": rates * epochs, "validation": rates * looks, "test": rates}
    return open_states(
        bench.base,
        model,
        bench.runtime,
        params,
        scope.boundary,
        bench.splits(rates),
        passes,
        bench.shared,
        bench.processes,
    )
