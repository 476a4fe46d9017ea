"""Trains once per learning rate of a method's grid and keeps the best on the validation split."""

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final, NamedTuple

from salf.answer_folder import AnswerSideRecord
from salf.engine.answer_model import describe
from salf.engine.batches import Split
from salf.engine.boundary_cache.cache import Opened
from salf.engine.models.adapter import CausalModel
from salf.engine.rules import Rule
from salf.engine.training.checkpoint import Checkpoint, Training
from salf.engine.training.costs import Costs, equal_compute_epochs
from salf.engine.training.forms import Trainable
from salf.engine.training.loop import DivergedError, train
from salf.engine.training.scope import Scope, scope_of
from salf.engine.training.step import Job
from salf.engine.training.workbench import Splits, Workbench, begin_after, begin_at
from salf.errors import UserError
from salf.methods import Method
from salf.plan import FreezePlan
from salf.rate_choice import Tried, choose
from salf.records import GridRate, KeptWeights

_RESULTS: Final = ("validation_loss", "validation_accuracy", "test_loss", "test_accuracy")


class Caches(NamedTuple):
    """The caches computed before the first step, by split."""

    states: dict[str, Opened]  # boundary states, if layers are frozen
    prompts: dict[str, Opened]  # the prompts' keys and values, for methods that train answers alone


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

    @cached_property
    def splits(self) -> Splits:
        """The splits that a training reads; where there is something to choose from, it is scored on the test split."""
        splits = {"training": self.training, "validation": self.validation}
        splits |= {"test": self.test} if max(len(self.rates), len(self.bench.settings.keep)) > 1 else {}
        side = self.bench.settings.answer_side
        return (
            {name: split.after_prompts(side) for name, split in splits.items()} if self.method.answer_side else splits
        )

    def epochs(self, ours: Costs) -> int:
        """The epochs in the settings, or with ``equal_compute`` as many as the FLOPs of full fine-tuning pay for."""
        bench, split = self.bench, self.splits["training"]
        if not bench.settings.equal_compute:
            return bench.settings.epochs
        full = bench.costs(Scope.above(0, self.scope.depth))
        return equal_compute_epochs(full, ours, split, bench.settings, self.seed, bench.processes.count)

    def steps(self, epochs: int) -> int:
        """Optimizer steps of so many epochs."""
        return epochs * math.ceil(len(self.training) / self.bench.settings.batch_size)

    def open_caches(self, model: CausalModel) -> Caches:
        """The boundary states of the splits, none where nothing is frozen; and their prompts, for answers alone."""
        bench, boundary = self.bench, self.scope.boundary
        if self.method.answer_side and (held := bench.runtime.frozen_weights) != "whole":
            raise UserError(f"method {self.name}: it needs device.frozen_weights = whole, which is {held}")
        states = bench.open_states(model, boundary, self.splits) if boundary else {}
        prompts = bench.open_prompts(model, boundary, self.splits, states) if self.method.answer_side else {}
        return Caches(states, prompts)

    def costs(self, caches: Caches) -> Costs:
        """The counter of a training's FLOPs."""
        off = {
            name: bool(opened) and opened["training"].origin == "off"
            for name, opened in (("uncached", caches.states), ("prompts_uncached", caches.prompts))
        }
        return self.bench.costs(self.scope, self.method.form.counted_as, **off)

    def describe(self, model: CausalModel) -> AnswerSideRecord:
        """The record of the base model before training, and of the prompts that it reads."""
        split = self.splits["training"]
        prompts = zip((example.prompt_ids for example in split.examples), split.base_rows or (), strict=True)
        return describe(model.network, self.scope.boundary, list(prompts))

    def begun(self, caches: Caches, model: CausalModel) -> Splits:
        """The splits with their starts."""
        if not caches.prompts:
            return begin_at(caches.states, self.splits, model)
        return begin_after(caches.prompts, caches.states, self.splits, model, self.bench.runtime, self.scope.boundary)


@dataclass(frozen=True)
class Candidate:
    """A finished training run at one learning rate."""

    rate: float
    trainable: Trainable
    training: Training

    @property
    def results(self) -> KeptWeights:
        """The results of its weights."""
        return self.training.kept[0]


@dataclass(frozen=True)
class Found:
    """The candidate that won, and every rate's results."""

    epochs: int
    best: Candidate
    grid: list[GridRate]
    caches: Caches
    answer_side: AnswerSideRecord | None  # what the folder of a model says whose weights act on answers alone

    @property
    def seconds_cache(self) -> float:
        """Seconds of the passes over the training split before training, whoever ran them: a method pays for them."""
        return sum(opened["training"].seconds_computing for opened in self.caches if opened)


def best_of_grid(search: Search) -> Found:
    """Train at every rate of the grid, from the lowest on; keep the one that wins on the validation split.

    The choice is made once, when all rates are trained; until then all candidates but one are on disk. A rate at which
    training diverges has lost. Scoring the test split counts neither as FLOPs nor as seconds of training.

    Raises:
        UserError: the method cannot be trained here, has no learning rate, or diverges at all of them; says why.
    """
    rates, model = search.rates, search.bench.open(search.scope.boundary)
    caches = search.open_caches(model)
    epochs = search.epochs(search.costs(caches))
    record = search.describe(model) if search.method.answer_side else None
    candidate: Candidate | None = None
    tried: list[Tried] = []
    grid: list[GridRate] = []
    for number, rate in enumerate(rates):
        if number:
            candidate = None
            del model  # before the next one is opened
            model = search.bench.open(search.scope.boundary)
        try:
            candidate = _train_one(search, model, caches, rate, epochs)
        except DivergedError as fault:
            if not tried and rate == rates[-1]:
                raise
            print(f"{fault}; the other rates of the grid decide")
            grid.append(GridRate(rate=rate, **dict.fromkeys(_RESULTS)))
            continue
        results = candidate.results
        tried.append(Tried(rate, results.validation_loss, results.validation_accuracy))
        grid.append(GridRate(rate=rate, **results.model_dump(exclude={"keep", "step"}, exclude_unset=True)))
    best = choose(tried, len(search.validation))
    if candidate is None or candidate.rate != best.rate:
        candidate = None
        del model
        candidate = _train_one(search, search.bench.open(search.scope.boundary), caches, best.rate, epochs)
    if len(rates) > 1 and best.rate in (rates[0], rates[-1]):
        print(
            f"{search.name}: the best learning rate, {best.rate:g}, is at the edge of its grid; "
            "widen finetune.learning_rate"
        )
    return Found(epochs, candidate, grid, caches, record)


def _train_one(search: Search, model: CausalModel, caches: Caches, rate: float, epochs: int) -> Candidate:
    """Train at one rate; one that was trained before is read back."""
    bench, scope = search.bench, search.scope
    search.plan.check(model.network)
    trainable = Trainable.of(model, search.method, scope, bench.settings, search.seed, search.steps(epochs))
    splits = search.begun(caches, model)
    job = Job(
        name=f"{search.name} at rate {rate:g}",
        trainable=trainable,
        runtime=bench.runtime,
        training=splits["training"],
        validation=splits["validation"],
        test=splits.get("test"),
        rule=search.rule,
        costs=search.costs(caches),
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
    return Candidate(rate, trainable, training)
