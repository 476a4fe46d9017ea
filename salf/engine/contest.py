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
from typing import Any, Final, NamedTuple

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

_IN_RACE: Final = ("leads", "stays")


def race_settings(settings: Finetune) -> Finetune:
    """The schedule of a race's arms, whose validation split is read at the looks alone."""
    return settings.model_copy(update={"schedule": "warmup-stable-decay", "evaluations_per_epoch": 0})


class Arm(NamedTuple):
    """A method at a learning rate."""

    method: Method
    rate: float


@dataclass(frozen=True, kw_only=True)
class Contest:
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


class _Lane:
    """A method in a contest: its scope, and what its rates share."""

    def __init__(self, contest: Contest, method: Method) -> None:
        """Find out what it trains; a ``UserError`` says why it cannot be trained here."""
        self.contest, self.method, self.bench = contest, method, contest.bench
        if unfit := self.bench.settings.unfit(method.name, {**contest.facts, **self.bench.shape.traits}):
            raise UserError(unfit)
        self.scope = self._scope()
        if method.answer_side and (held := self.bench.runtime.frozen_weights) != "whole":
            raise UserError(f"method {method.name}: it needs device.frozen_weights = whole, which is {held}")
        self.states: dict[str, Opened] = {}  # boundary states by split, if layers are frozen
        self.prompts: dict[str, Opened] = {}  # the prompts' keys and values by split, where answers alone train
        self.taught: Tensor | None = None  # what the base says to whole prompts, where a method learns from that
        self.answer_side: AnswerSideRecord | None = None  # what the folder of a model says that acts on answers alone

    def _scope(self) -> Scope:
        contest, name = self.contest, self.method.scope
        if contest.plan:
            return scope_of(self.method, contest.plan, self.bench.settings, contest.seed, contest.first_n)
        depth = self.bench.shape.layers
        boundary = {"full": 0, "half": depth // 2}.get(name, frozen_by_name(name))
        if boundary is None or boundary > depth:
            why = "a freeze plan says where it ends" if boundary is None else f"the model has {depth} layers"
            raise UserError(f"method {self.method.name}: {name}: {why}")
        return scope_above(self.method, boundary, depth)

    @cached_property
    def splits(self) -> Splits:
        """The splits that a training reads."""
        contest, side = self.contest, self.bench.settings.answer_side
        splits = {"training": contest.training, "validation": contest.validation}
        splits |= {"test": contest.tested} if contest.tested else {}
        if self.method.shortened:
            return {name: split.without_beginning(self.bench.base) for name, split in splits.items()}
        if self.method.answer_side:
            return {name: split.after_prompts(side) for name, split in splits.items()}
        return splits

    def flops_before(self, kind: str, name: str) -> int:
        """FLOPs of filling a split's cache; prompts' without the layers whose states another cache counts."""
        if kind == "states":
            return self.costs.frozen_states(self.splits[name])
        return self.costs.frozen_prompts(self.splits[name], self.prompts[name].begun)

    @cached_property
    def costs(self) -> Costs:
        """The counter of FLOPs, once the caches are open."""
        off = {
            name: bool(opened) and opened["training"].origin == "off"
            for name, opened in (("uncached", self.states), ("prompts_uncached", self.prompts))
        }
        costs = self.bench.costs(self.scope, self.method.technique(self.bench.settings), **off)
        if not costs.technique.teacher:
            return costs
        return replace(costs, teacher=self.bench.costs(Scope.above(0, self.scope.depth)).reading(self.contest.training))

    @cached_property
    def epochs(self) -> int:
        """The epochs in the settings or of a method's own steps, or as many as full fine-tuning's FLOPs pay for."""
        bench, split = self.bench, self.splits["training"]
        if not bench.settings.equal_compute:
            steps = bench.settings.lozo.steps if self.method.counts_steps else None
            per_epoch = math.ceil(len(split) / bench.settings.batch_size)
            return math.ceil(steps / per_epoch) if steps else bench.settings.epochs
        full = bench.costs(Scope.above(0, self.scope.depth))
        return equal_compute_epochs(full, self.costs, split, bench.settings, self.contest.seed, bench.processes.count)

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

    def begun(self, model: CausalModel) -> Splits:
        """The splits with their starts, for a ``model`` that trains."""
        if not self.prompts:
            return begin_at(self.states, self.splits, model)
        begun = {}
        for name, split in self.splits.items():
            rows, source = self.states[name].rows if self.states else None, self.prompts[name].source
            start = answer_side(model, self.bench.runtime, split, source, rows, self.scope.boundary)
            begun[name] = replace(split, start=start, places=None)
        return begun


class _Progress(BaseModel):
    """What is done of a contest, in a file, so that one that was stopped goes on to the same result."""

    trained: dict[int, Training] = {}  # by arm
    diverged: list[int] = []
    before: dict[str, tuple[int, float]] = {}  # FLOPs of the passes that fill each cache, and seconds of training's
    looks: list[RaceLook] = []
    path: Path | None = None

    @classmethod
    def read(cls, path: Path) -> "_Progress":
        """Go on with the file, or begin."""
        return cls.model_validate({**(read_json(path) if path.exists() else {}), "path": path})

    def save(self, *, writes: bool) -> None:
        """Replace the file; of several processes one writes it."""
        if self.path and writes:
            write_json(self.path, self.model_dump(mode="json", exclude={"path"}))


@dataclass(frozen=True)
class Found:
    """The arm that won, and every arm's results."""

    arm: Arm
    scope: Scope
    epochs: int
    steps_planned: int
    trainable: Trainable
    training: Training
    grid: list[GridRate]
    race: RaceRecord | None
    states: Mapping[str, Opened]  # the winner's
    prompts: Mapping[str, Opened]
    answer_side: AnswerSideRecord | None
    flops: int  # of a race: of all arms; of looks at the validation split, where they decided something
    flops_backward: int
    seconds_cache: float  # of the passes over the training split before training, by any run: a method pays
    seconds_training: float


def best_of(contest: Contest) -> Found:
    """Train the arms, one after the other; keep the one that wins on the validation split.

    All candidates but one are on disk. An arm whose training diverges has lost. Scoring the test split counts neither
    as FLOPs nor as seconds of training.

    Raises:
        UserError: there is no validation split, or an arm cannot be trained here, or all of them diverge; says why.
    """
    return _Course(contest).to_the_end()


class _Course:
    """A contest at work."""

    def __init__(self, contest: Contest) -> None:
        if not contest.validation.examples:
            raise UserError(f"{contest.name}: the validation split is empty, so nothing decides between its arms")
        self.contest, self.bench = contest, contest.bench
        self.lanes = {arm.method: _Lane(contest, arm.method) for arm in contest.arms}
        self.opened: dict[tuple[Any, ...], dict[str, Opened]] = {}
        self.progress = _Progress.read(contest.unfinished / "arms.json")
        self.bench.processes.agree(len(self.progress.looks), "looks at the arms before")
        self.held: tuple[int, Trainable] | None = None  # the arm whose network is in memory
        self.per_epoch = math.ceil(len(contest.training) / self.bench.settings.batch_size)
        looks = 0 if contest.keep is None else self.bench.settings.epochs - 1
        tests = (2 if contest.rule else 1) * (len(contest.arms) - 1) * looks
        self.level = LEVEL / tests if tests else None

    def to_the_end(self) -> Found:
        """Train and look until one arm is left, or all have trained to the end."""
        done = self.progress
        while True:
            staying = self._staying()
            epoch = len(done.looks) + 1
            last = self.level is None or len(staying) == 1 or epoch >= self.bench.settings.epochs
            for number in staying:
                self._train_to(number, None if last else epoch, staying)
            alive = [number for number in staying if number not in done.diverged]
            if last:
                break
            self._look(epoch, {n: self._tried(n) for n in alive}, [n for n in staying if n not in alive])
        return self._found(ranking({number: self._tried(number) for number in alive})[0])

    def _staying(self) -> list[int]:
        looks = self.progress.looks
        if not looks:
            return list(range(len(self.contest.arms)))
        return [one.arm for one in looks[-1].standings if one.fate in _IN_RACE]

    def _look(self, epoch: int, arms: Mapping[int, Tried], diverged: Sequence[int]) -> None:
        keep = self.contest.keep if epoch == 1 else None
        found = standings(arms, self.level, keep) + [_diverged(number) for number in diverged]
        self.progress.looks.append(RaceLook(epoch=epoch, level=self.level, standings=found))
        self._save()
        for one in found:
            print(f"{self._name(one.arm)}, after epoch {epoch}: {_words(one)}")

    def _tried(self, number: int) -> Tried:
        done = self.progress.trained[number]
        now: KeptWeights | CurvePoint = done.kept[0] if done.kept else done.curve[-1]
        losses, hits, rate = done.validation_losses, done.validation_hits, self.contest.arms[number].rate
        return Tried(rate, now.validation_loss, now.validation_accuracy, losses, hits)

    def _train_to(self, number: int, epoch: int | None, rivals: Sequence[int]) -> None:
        """Train an arm up to an epoch's end, or to the end, unless it has been trained so far."""
        done = self.progress
        known = done.trained.get(number)
        if number in done.diverged or (known and (known.kept or (epoch and known.steps >= epoch * self.per_epoch))):
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
        contest, bench, arm = self.contest, self.bench, self.contest.arms[number]
        lane = self.lanes[arm.method]
        self.held = None  # before the next one is opened
        model = bench.open(lane.scope.boundary)
        if contest.plan:
            contest.plan.check(model.network)
        self._open_caches(lane, model)
        steps, several = lane.epochs * self.per_epoch, len(contest.arms) > 1
        trainable = Trainable.of(model, arm.method, lane.scope, bench.settings, contest.seed, steps)
        self.held, splits = (number, trainable), lane.begun(model)
        job = Job(
            name=self._name(number),
            trainable=trainable,
            runtime=bench.runtime,
            training=splits["training"],
            validation=splits["validation"],
            test=splits.get("test"),
            taught=lane.taught,
            rule=contest.rule,
            costs=lane.costs,
            settings=bench.settings,
            rate=arm.rate,
            seed=contest.seed,
            epochs=lane.epochs,
            until=(self.per_epoch * epoch if epoch else steps) if several else None,
            checkpoint=contest.unfinished / f"arm-{number}.safetensors",
            processes=bench.processes,
        )
        return train(job)

    def _open_caches(self, lane: _Lane, model: CausalModel) -> None:
        """Open a method's caches with the untrained model, unless another method has."""
        self._open_both(model)
        makers = lane.caches(model)
        for key, make in makers.items():
            if key not in self.opened:
                self.opened[key] = make()
            setattr(lane, key[0], self.opened[key])
        for key in makers:
            flops = sum(lane.flops_before(key[0], name) for name in ("training", "validation"))
            self.progress.before[str(key)] = flops, self.opened[key]["training"].seconds_computing
        if lane.costs.technique.teacher and lane.taught is None:
            began = time.perf_counter()
            lane.taught = teacher_logits(model, self.bench, self.contest.training, self.contest.rule)
            self.progress.before[f"teacher of {lane.method.name}"] = lane.costs.teacher, time.perf_counter() - began
        if lane.method.answer_side and lane.answer_side is None:
            split = lane.splits["training"]
            prompts = zip((example.prompt_ids for example in split.examples), split.base_rows or (), strict=True)
            lane.answer_side = describe(model.network, lane.scope.boundary, list(prompts))

    def _open_both(self, model: CausalModel) -> None:
        """Fill the prompts' cache and the deepest boundary's in one pass, if an arm in the race reads the former."""
        users = {key: lane for lane in self.lanes.values() for key in lane.caches(model)}
        prompts = next((key for key in users if key[:2] == ("prompts", 0)), None)
        staying = [self.lanes[self.contest.arms[number].method].caches(model) for number in self._staying()]
        if prompts is None or prompts in self.opened or not any(prompts in keys for keys in staying):
            return
        states = [key for key in users if key[0] == "states" and key[1] < model.depth and key[2] == prompts[2]]
        if states:
            both = self.bench.open_both(model, max(states)[1], users[prompts].splits)
            self.opened |= zip((prompts, max(states)), both, strict=True)

    def _name(self, number: int) -> str:
        arm = self.contest.arms[number]
        which = self.contest.name if self.contest.keep is None else f"{self.contest.name}: {arm.method.name}"
        return f"{which} at rate {arm.rate:g}"

    def _save(self) -> None:
        if len(self.contest.arms) > 1:
            self.progress.save(writes=self.bench.processes.main)
            self.bench.processes.agree(len(self.progress.trained), "arms trained")  # checkpoints are on disk now

    def _found(self, winner: int) -> Found:
        arm, done = self.contest.arms[winner], self.progress
        lane = self.lanes[arm.method]
        if self.held is None or self.held[0] != winner:
            self._train(winner, None)
        assert self.held is not None, "the winner"
        self._tell_edge(arm)
        race = None if self.contest.keep is None else self._record(winner)
        trained = done.trained[winner]
        counted = list(done.trained.values()) if race else [trained]
        looks = self.bench.settings.decided_by_looks
        return Found(
            arm=arm,
            scope=lane.scope,
            epochs=lane.epochs,
            steps_planned=lane.epochs * self.per_epoch,
            trainable=self.held[1],
            training=trained,
            grid=[] if race else [self._outcome(number) for number in range(len(self.contest.arms))],
            race=race,
            states=lane.states,
            prompts=lane.prompts,
            answer_side=lane.answer_side,
            flops=race.flops if race else trained.flops + looks * trained.flops_validation,
            flops_backward=sum(one.flops_backward for one in counted),
            seconds_cache=sum(seconds for _, seconds in done.before.values()),
            seconds_training=sum(sum(one.step_seconds) for one in counted),
        )

    def _tell_edge(self, arm: Arm) -> None:
        rates = sorted(one.rate for one in self.contest.arms if one.method == arm.method)
        if len(rates) > 1 and arm.rate in (rates[0], rates[-1]):
            where = "finetune.learning_rate" if self.contest.keep is None else "race.arms"
            print(
                f"{self.contest.name}: the best learning rate, {arm.rate:g}, is at the edge of its grid; widen {where}"
            )

    def _outcome(self, number: int) -> GridRate:
        """A rate's entry in the grid; all null where training diverged."""
        names = [
            name for name in GridRate.model_fields if name != "rate" and (self.contest.tested or "test" not in name)
        ]
        lost, rate = number in self.progress.diverged, self.contest.arms[number].rate
        results = None if lost else self.progress.trained[number].kept[0]
        return GridRate(rate=rate, **{name: results and getattr(results, name) for name in names})

    def _record(self, winner: int) -> RaceRecord:
        done, arms = self.progress, [self._arm(number) for number in range(len(self.contest.arms))]
        staying, before = self._staying(), sum(flops for flops, _ in done.before.values())
        alive = {number: self._tried(number) for number in staying if number not in done.diverged}
        last = standings(alive, None, None) + [_diverged(number) for number in staying if number in done.diverged]
        end = RaceLook(epoch=self.bench.settings.epochs, level=None, standings=last)
        assert self.contest.keep is not None, "a race"
        return RaceRecord(
            keep=self.contest.keep,
            level=LEVEL,
            arms=arms,
            looks=[*done.looks, end],
            winner=winner,
            flops=before + sum(arm.flops + arm.flops_validation for arm in arms),
            flops_before=before,
            flops_winner=done.trained[winner].flops,
        )

    def _arm(self, number: int) -> RaceArm:
        arm, trained = self.contest.arms[number], self.progress.trained[number]
        return RaceArm(
            method=arm.method.name,
            learning_rate=arm.rate,
            boundary=self.lanes[arm.method].scope.boundary,
            steps=trained.steps,
            flops=trained.flops - trained.flops_before,
            flops_backward=trained.flops_backward,
            flops_validation=trained.flops_validation,
            curve=trained.curve,
        )


def _diverged(number: int) -> RaceStanding:
    unknown = dict.fromkeys(("validation_loss", "validation_accuracy", "p_accuracy", "p_loss"))
    return RaceStanding(arm=number, **unknown, fate="diverged")


def _words(one: RaceStanding) -> str:
    if one.validation_loss is None:
        return one.fate
    score = "" if one.validation_accuracy is None else f"accuracy {one.validation_accuracy:.3f}, "
    return f"{score}loss {one.validation_loss:.4f}: {one.fate}"
