"""Trains several arms on shared caches, and keeps the one that wins on the validation split (the race is ours).

An arm is a method at a learning rate. A grid of rates trains all its arms to the end and compares them once. A race
also looks at them after every epoch but the last, drops those that are significantly worse than the leader
(:func:`salf.rate_choice.standings`), and trains the others on. Its schedule is constant up to the last epoch, so that
what is compared are states of one and the same training, and all arms read the examples in the same order.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel
from torch import Tensor

from salf.answer_folder import AnswerSideRecord
from salf.engine.answer_model import describe
from salf.engine.batches import Split
from salf.engine.boundary_cache.cache import Opened
from salf.engine.boundary_cache.prompts import answer_side
from salf.engine.models.adapter import CausalModel
from salf.engine.rules import Rule
from salf.engine.techniques.distill import teacher_logits
from salf.engine.techniques.head import add_class_head, class_rule, class_shape, of_classes
from salf.engine.training.checkpoint import Training
from salf.engine.training.costs import Costs, equal_compute_epochs
from salf.engine.training.forms import Trainable
from salf.engine.training.loop import DivergedError, train
from salf.engine.training.scope import Scope, scope_above, scope_of
from salf.engine.training.step import Job
from salf.engine.training.workbench import Splits, Workbench, begin_at
from salf.errors import UserError
from salf.files import read_json, write_json
from salf.methods import Method, frozen_by_name
from salf.plan import FreezePlan
from salf.rate_choice import LEVEL, Tried, ranking, standings
from salf.records import CurvePoint, GridRate, KeptWeights, RaceArm, RaceLook, RaceRecord, RaceStanding
from salf.settings import Finetune


def race_settings(settings: Finetune) -> Finetune:
    """The schedule of a race's arms, whose validation split is read at the looks alone."""
    return settings.model_copy(update={"schedule": "warmup-stable-decay", "evaluations_per_epoch": 0})


class Arm(NamedTuple):
    """A method at a learning rate."""

    method: Method
    rate: float


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """Arms with one seed, of which one is to be kept."""

    bench: Workbench
    plan: FreezePlan | None  # whose selectors methods begin with; ``None``: full, half and freeze-<k> alone
    name: str  # for messages
    seed: int
    first_n: int | None  # number of layers that the method ``first-n`` trains; ``None``: as many as the plan
    training: Split  # the examples to learn from
    validation: Split  # the examples that decide between the arms
    test: Split | None  # scored where there is something to choose from, for the record; no choice depends on it
    rule: Rule  # how answers are scored
    facts: Mapping[str, str] = field(default_factory=dict)  # of the data: see :meth:`salf.settings.Finetune.unfit`
    arms: Sequence[Arm]
    keep: int | None  # most arms that survive the first epoch of a race; ``None``: all train to the end
    unfinished: Path  # where training that was stopped is kept, to resume from

    @property
    def tested(self) -> Split | None:
        """The test split where it is scored: with several arms or weights to keep."""
        return self.test if max(len(self.arms), len(self.bench.settings.keep)) > 1 else None

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of an epoch."""
        return self.bench.settings.steps_per_epoch(len(self.training))


class Setup:
    """A method's scope, and what its arms share: splits, caches and counters."""

    def __init__(self, tuning: Tuning, method: Method) -> None:
        """Find out what it trains; a ``UserError`` says why it cannot be trained here."""
        self.tuning, self.method, self.bench = tuning, method, tuning.bench
        if unfit := self.bench.settings.unfit(method.name, {**tuning.facts, **self.bench.shape.traits}):
            raise UserError(unfit)
        self.scope = self._scope()
        self.rule = class_rule(tuning.rule) if method.form.classes else tuning.rule
        if method.answer_side and (held := self.bench.runtime.frozen_weights) != "whole":
            raise UserError(f"method {method.name}: it needs device.frozen_weights = whole, which is {held}")
        self.states: dict[str, Opened] = {}  # boundary states by split, if layers are frozen
        self.prompts: dict[str, Opened] = {}  # the prompts' keys and values by split, where answers alone train
        self.taught: Tensor | None = None  # what the base says to whole prompts, where a method learns from that
        self.answer_side: AnswerSideRecord | None = None  # what the folder of a model says that acts on answers alone

    def _scope(self) -> Scope:
        tuning, name = self.tuning, self.method.scope
        if tuning.plan:
            return scope_of(self.method, tuning.plan, self.bench.settings, tuning.seed, tuning.first_n)
        depth = self.bench.shape.layers
        boundary = {"full": 0, "half": depth // 2}.get(name, frozen_by_name(name))
        if boundary is None or boundary > depth:
            why = "a freeze plan says where it ends" if boundary is None else f"the model has {depth} layers"
            raise UserError(f"method {self.method.name}: {name}: {why}")
        return scope_above(self.method, boundary, depth)

    @cached_property
    def splits(self) -> Splits:
        """The splits that a training reads."""
        tuning, side = self.tuning, self.bench.settings.answer_side
        splits = {"training": tuning.training, "validation": tuning.validation}
        splits |= {"test": tuning.tested} if tuning.tested else {}
        if self.method.shortened:
            return {name: split.without_beginning(self.bench.base) for name, split in splits.items()}
        if self.method.answer_side:
            return {name: split.after_prompts(side) for name, split in splits.items()}
        if self.method.form.classes:
            return {name: of_classes(split, tuning.rule) for name, split in splits.items()}
        return splits

    @cached_property
    def costs(self) -> Costs:
        """The counter of FLOPs, once the caches are open."""
        off = {
            name: bool(opened) and opened["training"].origin == "off"
            for name, opened in (("uncached", self.states), ("prompts_uncached", self.prompts))
        }
        costs = self.bench.costs(self.scope, self.method.technique(self.bench.settings), **off)
        if self.method.form.classes:
            costs = replace(costs, shape=class_shape(costs.shape, self.tuning.rule))
        if not costs.technique.teacher:
            return costs
        return replace(costs, teacher=self.bench.costs(Scope.above(0, self.scope.depth)).reading(self.tuning.training))

    @cached_property
    def epochs(self) -> int:
        """The epochs in the settings or of a method's own steps, or as many as full fine-tuning's FLOPs pay for."""
        bench, split = self.bench, self.splits["training"]
        if not bench.settings.equal_compute:
            steps = bench.settings.lozo.steps if self.method.counts_steps else None
            return math.ceil(steps / self.tuning.steps_per_epoch) if steps else bench.settings.epochs
        full = bench.costs(Scope.above(0, self.scope.depth))
        return equal_compute_epochs(full, self.costs, split, bench.settings, self.tuning.seed, bench.processes.count)

    @property
    def steps(self) -> int:
        """Optimizer steps that the schedule spans."""
        return self.epochs * self.tuning.steps_per_epoch

    def caches(self, model: CausalModel) -> dict[tuple[Any, ...], Callable[[], dict[str, Opened]]]:
        """What opens the caches of the splits, by all that decides their content."""
        boundary = self.scope.boundary
        above = boundary, tuple(split.shared for split in self.splits.values())
        makers: dict[tuple[Any, ...], Callable[[], dict[str, Opened]]] = {}
        if boundary:
            makers["states", *above] = lambda: self.bench.open_states(model, boundary, self.splits)
        if self.method.answer_side:
            makers["prompts", *above] = lambda: self.bench.open_prompts(model, boundary, self.splits, self.states)
        return makers

    def flops_before(self, kind: str, name: str) -> int:
        """FLOPs of filling a split's cache; prompts' without the layers whose states another cache counts."""
        if kind == "states":
            return self.costs.frozen_states(self.splits[name])
        return self.costs.frozen_prompts(self.splits[name], self.prompts[name].begun)

    def begun(self, model: CausalModel) -> Splits:
        """The splits with their starts, for a ``model`` that trains."""
        if not self.prompts:
            return begin_at(self.states, self.splits, model)
        begun = {}
        for name, split in self.splits.items():
            rows, source = self.states[name].rows if self.states else None, self.prompts[name].start
            start = answer_side(model, self.bench.runtime, split, source, rows, self.scope.boundary)
            begun[name] = replace(split, start=start, places=None)
        return begun


class _Progress(BaseModel):
    """What is done, in a file, so that a tuning that was stopped goes on to the same result."""

    trained: dict[int, Training] = {}  # by arm
    diverged: list[int] = []
    before: dict[str, tuple[int, float]] = {}  # FLOPs of the passes that fill each cache, and seconds of training's
    looks: list[RaceLook] = []


@dataclass(frozen=True)
class Found:
    """The arm that won, and every arm's results."""

    arm: Arm
    setup: Setup  # the winner's
    trainable: Trainable
    training: Training
    grid: list[GridRate]
    race: RaceRecord | None
    flops: int  # of a race: of all arms; of looks at the validation split, where they decided something
    flops_backward: int
    seconds_cache: float  # of the passes over the training split before training, by any run: a method pays
    seconds_training: float


def best_of(tuning: Tuning) -> Found:
    """Train the arms, one after the other; keep the one that wins on the validation split.

    All candidates but one are on disk. An arm whose training diverges has lost. Scoring the test split counts neither
    as FLOPs nor as seconds of training.

    Raises:
        UserError: there is no validation split, or an arm cannot be trained here, or all of them diverge; says why.
    """
    return _Search(tuning).to_the_end()


class _Search:
    """A tuning at work."""

    def __init__(self, tuning: Tuning) -> None:
        if not tuning.validation.examples:
            raise UserError(f"{tuning.name}: the validation split is empty, so nothing decides between its arms")
        self.tuning, self.bench, self.arms = tuning, tuning.bench, tuning.arms
        self.setups = {arm.method: Setup(tuning, arm.method) for arm in tuning.arms}
        self.opened: dict[tuple[Any, ...], dict[str, Opened]] = {}
        self.file = tuning.unfinished / "arms.json"
        self.progress = _Progress.model_validate(read_json(self.file) if self.file.exists() else {})
        self.bench.processes.agree(len(self.progress.looks), "looks at the arms before")
        self.held: tuple[int, Trainable] | None = None  # the arm whose network is in memory
        looks = 0 if tuning.keep is None else self.bench.settings.epochs - 1
        tests = (2 if tuning.rule else 1) * (len(self.arms) - 1) * looks
        self.level = LEVEL / tests if tests else None

    def to_the_end(self) -> Found:
        """Train and look until one arm is left, or all have trained to the end."""
        looks, epochs = self.progress.looks, self.bench.settings.epochs
        while True:
            staying, epoch = self._staying(), len(looks) + 1
            last = self.level is None or len(staying) == 1 or epoch >= epochs
            for number in staying:
                self._train_to(number, None if last else epoch, staying)
            if last:
                alive = {number: self._tried(number) for number in staying if number not in self.progress.diverged}
                return self._found(ranking(alive)[0])
            looks.append(self._look(epoch, self.level, self.tuning.keep if epoch == 1 else None))
            self._save()
            for one in looks[-1].standings:
                print(f"{self._name(one.arm)}, after epoch {epoch}: {_words(one)}")

    def _staying(self) -> list[int]:
        looks = self.progress.looks
        if not looks:
            return list(range(len(self.arms)))
        return [one.arm for one in looks[-1].standings if one.fate in ("leads", "stays")]

    def _look(self, epoch: int, level: float | None, keep: int | None) -> RaceLook:
        """Compare the arms that are still in the race."""
        staying, diverged = self._staying(), self.progress.diverged
        found = standings({n: self._tried(n) for n in staying if n not in diverged}, level, keep)
        unknown = dict.fromkeys(("validation_loss", "validation_accuracy", "p_accuracy", "p_loss"))
        found += [RaceStanding(arm=number, **unknown, fate="diverged") for number in staying if number in diverged]
        return RaceLook(epoch=epoch, level=level, standings=found)

    def _tried(self, number: int) -> Tried:
        done = self.progress.trained[number]
        now: KeptWeights | CurvePoint = done.kept[0] if done.kept else done.curve[-1]
        losses, hits = done.validation_losses, done.validation_hits
        return Tried(self.arms[number].rate, now.validation_loss, now.validation_accuracy, losses, hits)

    def _train_to(self, number: int, epoch: int | None, rivals: Sequence[int]) -> None:
        """Train an arm up to an epoch's end, or to the end, unless it has been trained so far."""
        done, until = self.progress, (epoch or 0) * self.tuning.steps_per_epoch
        known = done.trained.get(number)
        if number in done.diverged or (known and (known.kept or (epoch and known.steps >= until))):
            return
        try:
            done.trained[number] = self._train(number, epoch)
        except DivergedError as fault:
            if {*done.diverged, number} >= {*rivals}:
                raise
            print(f"{fault}; the others decide")
            done.trained[number] = fault.training
            done.diverged.append(number)
        self._save()

    def _train(self, number: int, epoch: int | None) -> Training:
        """Train an arm; one that was trained before is read back."""
        tuning, bench, arm = self.tuning, self.bench, self.arms[number]
        setup = self.setups[arm.method]
        self.held = None  # before the next one is opened
        model = bench.open(setup.scope.boundary)
        if tuning.plan:
            tuning.plan.check(model.network)
        self._open_caches(setup, model)
        if arm.method.form.classes:
            add_class_head(model, tuning.rule, bench.settings.head, tuning.seed)
        trainable = Trainable.of(model, arm.method, setup.scope, bench.settings, tuning.seed, setup.steps)
        self.held, splits = (number, trainable), setup.begun(model)
        until = tuning.steps_per_epoch * epoch if epoch else setup.steps
        job = Job(
            name=self._name(number),
            trainable=trainable,
            runtime=bench.runtime,
            training=splits["training"],
            validation=splits["validation"],
            test=splits.get("test"),
            taught=setup.taught,
            rule=setup.rule,
            costs=setup.costs,
            settings=bench.settings,
            rate=arm.rate,
            seed=tuning.seed,
            epochs=setup.epochs,
            until=until if len(self.arms) > 1 else None,
            checkpoint=tuning.unfinished / f"arm-{number}.safetensors",
            processes=bench.processes,
        )
        return train(job)

    def _open_caches(self, setup: Setup, model: CausalModel) -> None:
        """Open a method's caches with the untrained model, unless another method has."""
        self._open_both(model)
        makers = setup.caches(model)
        for key, make in makers.items():
            if key not in self.opened:
                self.opened[key] = make()
            setattr(setup, key[0], self.opened[key])
        for key in makers:
            flops = sum(setup.flops_before(key[0], name) for name in ("training", "validation"))
            self.progress.before[str(key)] = flops, self.opened[key]["training"].seconds_computing
        if setup.costs.technique.teacher and setup.taught is None:
            began = time.perf_counter()
            setup.taught = teacher_logits(model, self.bench, self.tuning.training, self.tuning.rule)
            self.progress.before[f"teacher of {setup.method.name}"] = setup.costs.teacher, time.perf_counter() - began
        if setup.method.answer_side and setup.answer_side is None:
            split = setup.splits["training"]
            prompts = zip((example.prompt_ids for example in split.examples), split.base_rows or (), strict=True)
            setup.answer_side = describe(model.network, setup.scope.boundary, list(prompts))

    def _open_both(self, model: CausalModel) -> None:
        """Fill the prompts' cache and the deepest boundary's in one pass, if an arm in the race reads the former."""
        users = {key: setup for setup in self.setups.values() for key in setup.caches(model)}
        prompts = next((key for key in users if key[:2] == ("prompts", 0)), None)
        staying = [self.setups[self.arms[number].method].caches(model) for number in self._staying()]
        if prompts is None or prompts in self.opened or not any(prompts in keys for keys in staying):
            return
        states = [key for key in users if key[0] == "states" and key[1] < model.depth and key[2] == prompts[2]]
        if states:
            both = self.bench.open_both(model, max(states)[1], users[prompts].splits)
            self.opened |= zip((prompts, max(states)), both, strict=True)

    def _name(self, number: int) -> str:
        arm, name = self.arms[number], self.tuning.name
        return f"{name if self.tuning.keep is None else f'{name}: {arm.method.name}'} at rate {arm.rate:g}"

    def _save(self) -> None:
        """Write the progress of several arms; of several processes one does."""
        if len(self.arms) > 1:
            if self.bench.processes.main:
                write_json(self.file, self.progress.model_dump(mode="json"))
            self.bench.processes.agree(len(self.progress.trained), "arms trained")  # checkpoints are on disk now

    def _found(self, winner: int) -> Found:
        arm, done = self.arms[winner], self.progress
        if self.held is None or self.held[0] != winner:
            self._train(winner, None)
        assert self.held is not None, "the winner"
        self._tell_edge(arm)
        race = None if self.tuning.keep is None else self._record(winner)
        trained = done.trained[winner]
        counted = list(done.trained.values()) if race else [trained]
        looks = self.bench.settings.decided_by_looks
        return Found(
            arm=arm,
            setup=self.setups[arm.method],
            trainable=self.held[1],
            training=trained,
            grid=[] if race else [self._outcome(number) for number in range(len(self.arms))],
            race=race,
            flops=race.flops if race else trained.flops + looks * trained.flops_validation,
            flops_backward=sum(one.flops_backward for one in counted),
            seconds_cache=sum(seconds for _, seconds in done.before.values()),
            seconds_training=sum(sum(one.step_seconds) for one in counted),
        )

    def _tell_edge(self, arm: Arm) -> None:
        rates = sorted(one.rate for one in self.arms if one.method == arm.method)
        if len(rates) > 1 and arm.rate in (rates[0], rates[-1]):
            where = "finetune.learning_rate" if self.tuning.keep is None else "race.arms"
            edge = f"the best learning rate, {arm.rate:g}, is at the edge of its grid; widen {where}"
            print(f"{self.tuning.name}: {edge}")

    def _outcome(self, number: int) -> GridRate:
        """A rate's entry in the grid; all null where training diverged."""
        names = [n for n in GridRate.model_fields if n != "rate" and (self.tuning.tested or "test" not in n)]
        results = None if number in self.progress.diverged else self.progress.trained[number].kept[0]
        return GridRate(rate=self.arms[number].rate, **{name: results and getattr(results, name) for name in names})

    def _record(self, winner: int) -> RaceRecord:
        done, arms = self.progress, [self._arm(number) for number in range(len(self.arms))]
        before = sum(flops for flops, _ in done.before.values())
        assert self.tuning.keep is not None, "a race"
        return RaceRecord(
            keep=self.tuning.keep,
            level=LEVEL,
            arms=arms,
            looks=[*done.looks, self._look(self.bench.settings.epochs, None, None)],
            winner=winner,
            flops=before + sum(arm.flops + arm.flops_validation for arm in arms),
            flops_before=before,
            flops_winner=done.trained[winner].flops,
        )

    def _arm(self, number: int) -> RaceArm:
        arm, trained = self.arms[number], self.progress.trained[number]
        same = {name: getattr(trained, name) for name in ("steps", "flops_backward", "flops_validation", "curve")}
        return RaceArm(
            method=arm.method.name,
            learning_rate=arm.rate,
            boundary=self.setups[arm.method].scope.boundary,
            flops=trained.flops - trained.flops_before,
            **same,
        )


def _words(one: RaceStanding) -> str:
    if one.validation_loss is None:
        return one.fate
    score = "" if one.validation_accuracy is None else f"accuracy {one.validation_accuracy:.3f}, "
    return f"{score}loss {one.validation_loss:.4f}: {one.fate}"
