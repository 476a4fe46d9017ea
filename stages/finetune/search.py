"""Trains once per learning rate of a method's grid and keeps the best on the validation split."""

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from salf.engine.answers import Reader
from salf.engine.batches import Split
from salf.engine.boundary_cache.cache import Opened
from salf.engine.models.adapter import CausalModel
from salf.engine.rules import Rule
from salf.engine.training.checkpoint import Checkpoint, Training
from salf.engine.training.costs import equal_compute_epochs
from salf.engine.training.forms import Trainable
from salf.engine.training.loop import READ_TOKENS, DivergedError, train, validate
from salf.engine.training.scope import Scope, scope_of
from salf.engine.training.step import Job
from salf.engine.training.workbench import Splits, Workbench, begin_at
from salf.methods import Method
from salf.plan import FreezePlan
from salf.rate_choice import Tried, choose
from salf.records import GridRate


@dataclass(frozen=True, kw_only=True)
class Search:
    """A method with one seed, to be trained at every rate of its grid."""

    bench: Workbench
    plan: FreezePlan
    method: Method
    name: str  # for messages
    seed: int
    first_n: int | None  # number of layers that the method ``first-n`` trains; ``None``: as many as the plan
    training: Split  # the examples to learn from
    validation: Split  # the examples that decide between the rates
    test: Split  # scored with every rate of a grid, for the record; no choice depends on it
    rule: Rule  # how answers are scored
    unfinished: Path  # where training that was stopped is kept, to resume from

    @cached_property
    def scope(self) -> Scope:
        """The trained scope."""
        return scope_of(self.method, self.plan, self.bench.settings, self.seed, self.first_n)

    @cached_property
    def rates(self) -> list[float]:
        """The grid, ascending."""
        return self.bench.settings.rates(self.method.name, self.scope.boundary)

    @property
    def splits(self) -> Splits:
        """The splits that a training reads; a grid of several rates is scored on the test split."""
        splits = {"training": self.training, "validation": self.validation}
        return {**splits, "test": self.test} if len(self.rates) > 1 else splits

    def epochs(self, *, uncached: bool) -> int:
        """The epochs in the settings, or with ``equal_compute`` as many as the FLOPs of full fine-tuning pay for."""
        bench = self.bench
        if not bench.settings.equal_compute:
            return bench.settings.epochs
        full = bench.costs(Scope.above(0, self.scope.depth))
        ours = bench.costs(self.scope, self.method.form.counted_as, uncached=uncached)
        return equal_compute_epochs(full, ours, self.training, bench.settings, self.seed, bench.processes.count)

    def open_states(self, model: CausalModel) -> dict[str, Opened]:
        """The boundary states of the splits; none where nothing is frozen."""
        if self.scope.boundary == 0:
            return {}
        return self.bench.open_states(model, self.scope.boundary, self.splits)


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
class Found:
    """The candidate that won, and every rate's results; ``states`` tells where passes over a split began, if frozen."""

    epochs: int
    best: Candidate
    grid: list[GridRate]
    states: dict[str, Opened]

    @property
    def seconds_cache(self) -> float:
        """Seconds of the frozen pass over the training split, whoever ran it: a method pays for it, as with FLOPs."""
        return self.states["training"].seconds_computing if self.states else 0.0


def best_of_grid(search: Search) -> Found:
    """Train at every rate of the grid, from the lowest on; keep the one that wins on the validation split.

    The choice is made once, when all rates are trained; until then all candidates but one are on disk. A rate at which
    training diverges has lost. Scoring the test split counts neither as FLOPs nor as seconds of training.

    Raises:
        UserError: the method cannot be trained here, has no learning rate, or diverges at all of them; says why.
    """
    rates, model = search.rates, search.bench.open(search.scope.boundary)
    states = search.open_states(model)
    epochs = search.epochs(uncached=_uncached(states))
    candidate: Candidate | None = None
    tried: list[Tried] = []
    grid: list[GridRate] = []
    for number, rate in enumerate(rates):
        if number:
            candidate = None
            del model  # before the next one is opened
            model = search.bench.open(search.scope.boundary)
        try:
            candidate = _train_one(search, model, states, rate, epochs)
        except DivergedError as fault:
            if not tried and rate == rates[-1]:
                raise
            print(f"{fault}; the other rates of the grid decide")
            grid.append(_outcome(search, rate, None))
            continue
        tried.append(candidate.tried)
        grid.append(_outcome(search, rate, candidate))
    best = choose(tried, len(search.validation))
    if candidate is None or candidate.rate != best.rate:
        candidate = None
        del model
        candidate = _train_one(search, search.bench.open(search.scope.boundary), states, best.rate, epochs)
    if len(rates) > 1 and best.rate in (rates[0], rates[-1]):
        print(
            f"{search.name}: the best learning rate, {best.rate:g}, is at the edge of its grid; "
            "widen finetune.learning_rate"
        )
    return Found(epochs, candidate, grid, states)


def _outcome(search: Search, rate: float, candidate: Candidate | None) -> GridRate:
    """A rate's entry in the grid; ``None``: training diverged."""
    if candidate is None:
        return GridRate(rate=rate, validation_loss=None, validation_accuracy=None, test_loss=None, test_accuracy=None)
    tried = candidate.tried
    found: dict[str, float | None] = {"validation_loss": tried.loss, "validation_accuracy": tried.accuracy}
    if candidate.test is not None:
        reader = Reader(candidate.trainable.model, search.bench.runtime, search.rule, READ_TOKENS)
        _, found["test_loss"], found["test_accuracy"] = validate(reader, candidate.test, search.bench.processes)
    return GridRate(rate=rate, **found)


def _train_one(search: Search, model: CausalModel, states: dict[str, Opened], rate: float, epochs: int) -> Candidate:
    """Train at one rate; one that was trained before is read back."""
    bench, scope = search.bench, search.scope
    search.plan.check(model.network)
    steps = epochs * math.ceil(len(search.training) / bench.settings.batch_size)
    trainable = Trainable.of(model, search.method, scope, bench.settings, search.seed, steps)
    splits = begin_at(states, search.splits, model)
    job = Job(
        name=f"{search.name} at rate {rate:g}",
        trainable=trainable,
        runtime=bench.runtime,
        training=splits["training"],
        validation=splits["validation"],
        rule=search.rule,
        costs=bench.costs(scope, search.method.form.counted_as, uncached=_uncached(states)),
        settings=bench.settings,
        rate=rate,
        seed=search.seed,
        epochs=epochs,
        checkpoint=search.unfinished / f"rate-{rate!r}.safetensors",
        processes=bench.processes,
    )
    training = train(job)
    if len(search.rates) > 1:
        Checkpoint(job.checkpoint, trainable.parameters, writes=bench.processes.main).save(training)
    return Candidate(rate, trainable, training, splits.get("test"))


def _uncached(states: dict[str, Opened]) -> bool:
    return bool(states) and states["training"].origin == "off"
