"""Pilots: small fine-tunes by a few methods at a few boundaries, and the laws of their losses."""

import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from salf.engine.answers import Reader
from salf.engine.batches import Split
from salf.engine.boundary_cache.cache import Opened
from salf.engine.models.adapter import open_model
from salf.engine.runtime import choose_runtime
from salf.engine.training.costs import Costs, epoch_batches
from salf.engine.training.forms import Trainable
from salf.engine.training.loop import READ_TOKENS, train
from salf.engine.training.scope import scope_above
from salf.engine.training.step import Job
from salf.engine.training.workbench import Splits, Workbench, begin_at
from salf.errors import UserError
from salf.evidence import PilotFlops, PilotRun, Pilots
from salf.files import code_hashes, digest_of, read_json, work_folder, write_json
from salf.fitting.bootstrap import resampled_means
from salf.fitting.joint import JointLaw, Runs, critical_sizes, forecasts, joint_law
from salf.law_command import show
from salf.laws import Array
from salf.methods import Method
from salf.records import BaseRecord, PreparedRecord
from salf.settings import Device, Finetune, Schedule
from salf.shape import ModelShape
from stages.common.params import Pilot as PilotParams
from stages.signals.predictions import predict


class Arm(NamedTuple):
    """A way to fine-tune above a boundary."""

    method: str  # of ``pilot.methods``
    boundary: int
    rank: int | None  # of adapters

    @property
    def how(self) -> Method:
        """The method in full."""
        return Method(f"freeze-{self.boundary}", () if self.method == "weights" else (self.method,))


class Pilot(PilotRun):
    """A small fine-tune that is done: its entry in the artifact, and what the prediction needs."""

    kept: bool = False
    losses: tuple[float, ...]  # of every validation example at the end, nats per answer token
    recomputed: bool  # the frozen layers ran for every batch, since their states could not be cached


@dataclass(frozen=True, kw_only=True)
class Bench(Workbench):
    """The state that all pilots share; the settings are those of every pilot.

    Pilots learn from the training split in the orders of a few draws, which follow each other in ``splits``.
    """

    params: PilotParams
    boundaries: list[int]  # ascending
    sizes: list[int]  # numbers of examples, descending: learning rates are chosen at the largest
    everything: Split  # all training examples
    splits: Splits
    full_epochs: int  # of the fine-tunes that the pilots predict
    identity: dict[str, Any]  # hashes of model and data
    unfinished: Path  # where finished pilots are kept until all are

    @property
    def arms(self) -> list[Arm]:
        """Every method at every boundary, and the ranks of adapters at the deepest; by boundary."""
        ranks: dict[str, int | None] = {"lora": self.settings.lora_rank}
        grid = [Arm(name, boundary, ranks.get(name)) for boundary in self.boundaries for name in self.params.methods]
        return list(dict.fromkeys([*grid, *(Arm("lora", self.boundaries[-1], rank) for rank in self.params.ranks)]))

    @property
    def samples(self) -> list[range]:
        """The places of an arm's examples in the training split of ``splits``, most of the first draw first."""
        starts = [draw * self.sizes[0] for draw in range(self.params.draws)]
        return [range(start, start + size) for start in starts for size in self.sizes]

    def seed(self, places: range) -> int:
        """The seed of a draw."""
        return self.params.seed + places.start // self.sizes[0]

    def settings_of(self, arm: Arm) -> Finetune:
        """The settings of an arm's pilots; the products of adapters count alike at every rank."""
        rank = arm.rank or self.settings.lora_rank
        alpha = self.settings.lora_alpha * rank / self.settings.lora_rank
        return self.settings.model_copy(update={"lora_rank": rank, "lora_alpha": alpha})

    def costs_of(self, arm: Arm, *, recomputed: bool = False) -> Costs:
        """Counts the FLOPs of training an arm."""
        scope = scope_above(arm.how, arm.boundary, self.shape.layers)
        return self.costs(scope, arm.how.technique(self.settings_of(arm)), uncached=recomputed)


def run(base: Path, prepared: Path, out: Path, device: Device, params: PilotParams, finetune: Schedule) -> None:
    """Fine-tune the pilots and write what they predict, :class:`salf.evidence.Pilots`."""
    bench = _bench(base, prepared, out, device, params, finetune)
    boundaries, sizes = (", ".join(map(str, sorted(each))) for each in (bench.boundaries, bench.sizes))
    print(
        f"pilots with layers 1 to {boundaries} of {bench.shape.layers} frozen, on {sizes} of {len(bench.everything)} "
        f"training examples: {cost(bench).share:.2f} times the FLOPs of one full fine-tune"
    )
    pilots = measure(bench)
    untrained = np.array([_once(bench.unfinished / "untrained.json", lambda: _untrained(bench))]).T  # [V, 1]
    before = np.append(untrained.mean(), resampled_means(untrained, params.bootstrap, params.seed))
    laws, size = _laws(bench, [pilot for pilot in pilots if pilot.kept]), len(bench.everything)
    law, settings = laws[params.methods[0]], (params.confidence, params.seed)
    found = Pilots(
        layers=bench.shape.layers,
        examples=size,
        validation_examples=len(bench.splits["validation"]),
        epochs=bench.settings.epochs,
        confidence=params.confidence,
        **bench.identity,
        untrained_loss=float(before[0]),
        pilots=pilots,
        law=law.record,
        predictions=predict(law, _layers(bench.shape), before, size, *settings),
        laws={name: law.record for name, law in laws.items()},
        forecasts=forecasts(laws, (size, 2 * size), *settings),
        critical_sizes=critical_sizes({name: laws[name] for name in params.methods}, params.confidence),
        flops=cost(bench, {pilot.boundary for pilot in pilots if pilot.recomputed}),
    )
    found.save(out)
    shutil.rmtree(bench.unfinished)
    show(found.laws, found.forecasts, found.critical_sizes)


def _bench(base: Path, prepared: Path, out: Path, device: Device, params: PilotParams, finetune: Schedule) -> Bench:
    settings, runtime = _settings(finetune, params.epochs), choose_runtime(device)
    shape = ModelShape.from_config(read_json(base / "config.json"))
    everything = Split.read(prepared, "train")
    # Shares that round to the same number count once.
    sizes = sorted({max(1, round(share * len(everything))) for share in params.sizes}, reverse=True)
    orders = [np.random.default_rng(params.seed + n).permutation(len(everything)) for n in range(params.draws)]
    identity = {
        "base_sha256": BaseRecord.load(base).weights_sha256,
        "data_sha256": {name: split.sha256 for name, split in PreparedRecord.load(prepared).splits.items()},
    }
    inputs = {
        **identity,
        "params": [settings.model_dump(mode="json"), params.model_dump(mode="json")],
        "runtime": [runtime.device.type, runtime.dtype_name, runtime.frozen_weights, torch.__version__],
        "code": code_hashes(),
    }
    bench = Bench(
        base=base,
        runtime=runtime,
        settings=settings,
        params=params,
        boundaries=sorted({round(share * shape.layers) for share in params.boundaries}),
        sizes=sizes,
        everything=everything,
        splits={
            "training": everything.subset([place for order in orders for place in order[: sizes[0]].tolist()]),
            "validation": Split.read(prepared, "validation"),
        },
        full_epochs=finetune.epochs,
        identity=identity,
        unfinished=work_folder(out, digest_of(inputs)),
    )
    for arm in bench.arms:
        if unfit := settings.unfit(arm.how.name, shape.traits):
            raise UserError(unfit)
    return bench


def _settings(schedule: Schedule, epochs: int | None) -> Finetune:
    """The settings of a pilot: the fine-tunes' own, apart from the epochs if they are given."""
    own = {"processes": 1, "lisa_layers": 1, "lisa_steps": 1, "equal_compute": False}
    # The validation split is read at the end only, and a pilot that is stopped restarts.
    own |= {"evaluations_per_epoch": 0, "checkpoint_minutes": 0}
    return Finetune(**{**dict(schedule), **own, "epochs": epochs or schedule.epochs})


def measure(bench: Bench) -> list[Pilot]:
    """Fine-tune every arm, with the largest number of examples first.

    The learning rate of the lowest validation loss there (ties go to the smaller) is kept and serves the other pilots.
    """
    tried = list[Pilot]()
    largest, *others = bench.samples
    for _, arms in groupby(bench.arms, lambda arm: arm.boundary):
        opened: dict[str, Opened] = {}  # the frozen layers' states of both splits, for all pilots of the boundary
        for arm in arms:
            pilots = [
                _pilot(bench, arm, opened, largest, rate) for rate in bench.settings.rates(arm.how.name, arm.boundary)
            ]
            rate = min(pilots, key=lambda pilot: pilot.validation_loss).learning_rate
            pilots += [_pilot(bench, arm, opened, places, rate) for places in others]
            tried += [pilot.model_copy(update={"kept": pilot.learning_rate == rate}) for pilot in pilots]
    return tried


def _pilot(bench: Bench, arm: Arm, opened: dict[str, Opened], places: range, rate: float) -> Pilot:
    """Fine-tune on the examples at these places, or take what an interrupted run has done."""

    def done() -> dict[str, Any]:
        if arm.boundary and not opened:
            opened.update(bench.open_states(bench.open(arm.boundary), arm.boundary, bench.splits))
        return _train(bench, arm, opened, places, rate).model_dump()

    name = "-".join(map(str, (*arm, places.start, len(places), f"{rate:g}")))
    return Pilot.model_validate(_once(bench.unfinished / f"{name}.json", done))


def _train(bench: Bench, arm: Arm, opened: Mapping[str, Opened], places: range, rate: float) -> Pilot:
    model, settings, seed = bench.open(arm.boundary), bench.settings_of(arm), bench.seed(places)
    recomputed = bool(opened) and opened["training"].origin == "off"
    costs = bench.costs_of(arm, recomputed=recomputed)
    splits = begin_at(opened, bench.splits, model)
    job = Job(
        name=f"pilot: {arm.how.name}, {len(places)} examples, rate {rate:g}",
        trainable=Trainable.of(model, arm.how, costs.scope, settings, seed, steps=0),
        runtime=bench.runtime,
        training=splits["training"].subset(places),
        validation=splits["validation"],
        rule=None,  # losses only: no label is looked for
        costs=costs,
        settings=settings,
        rate=rate,
        seed=seed,
    )
    done = train(job)
    return Pilot(
        **arm._asdict(),
        examples=len(places),
        draw=seed - bench.params.seed,
        learning_rate=rate,
        losses=done.validation_losses,
        validation_loss=sum(done.validation_losses) / len(done.validation_losses),
        flops=done.flops - (job.costs.frozen(job.training) if arm.boundary else 0),
        recomputed=recomputed,
    )


def _untrained(bench: Bench) -> list[float]:
    """The loss of each validation example before training, nats per answer token, [V]."""
    model = open_model(bench.base, bench.runtime.device, frozen=bench.runtime.frozen())
    answers = Reader(model, bench.runtime, None, READ_TOKENS).read(bench.splits["validation"])
    return [answer.loss for answer in answers]


def _once(file: Path, make: Callable[[], Any]) -> Any:
    """The result of ``make``, from the file if it was made before."""
    if not file.exists():
        write_json(file, make())
    return read_json(file)


def cost(bench: Bench, recomputed: Collection[int] = ()) -> PilotFlops:
    """The cost of all pilots, losing learning rates included, against one full fine-tune at one rate.

    ``recomputed``: boundaries whose states are not cached. Each boundary's frozen passes count from the embeddings up.
    """
    full, validation = bench.costs_of(Arm("weights", 0, None)), bench.splits["validation"]
    frozen, training, reading = dict[int, int](), 0, full.reading(validation)
    for arm in bench.arms:
        costs = bench.costs_of(arm, recomputed=arm.boundary in recomputed)
        frozen[arm.boundary] = sum(map(costs.frozen, bench.splits.values()))
        for places in bench.samples:
            times = len(bench.settings.rates(arm.how.name, arm.boundary)) if places == bench.samples[0] else 1
            split = bench.splits["training"].subset(places)
            training += times * _steps_flops(bench, costs, split, bench.seed(places), bench.settings.epochs)
            reading += times * costs.reading(validation)
    whole = _steps_flops(bench, full, bench.everything, bench.params.seed, bench.full_epochs)
    parts = {"frozen": sum(frozen.values()), "training": training, "reading": reading}
    total = sum(parts.values())
    return PilotFlops(**parts, total=total, full_fine_tune=whole, share=total / whole)


def _steps_flops(bench: Bench, costs: Costs, split: Split, seed: int, epochs: int) -> int:
    """All optimizer steps on a split, states cached."""
    drawn = islice(epoch_batches(split, bench.settings, seed), epochs)
    return sum(costs.step(parts).total for epoch in drawn for parts in epoch)


def _laws(bench: Bench, pilots: Sequence[Pilot]) -> dict[str, JointLaw]:
    """The law of each method over trained layers, and that of adapters over their rank."""
    settings, layers, laws = bench.params, _layers(bench.shape), dict[str, JointLaw]()
    for name in settings.methods:
        own = [pilot for pilot in pilots if pilot.method == name and pilot.rank in (None, bench.settings.lora_rank)]
        runs = _runs(bench, "trained layers", [layers[pilot.boundary] for pilot in own], own)
        laws[name] = joint_law(runs, settings.confidence, settings.seed)
    if settings.ranks:
        own = [pilot for pilot in pilots if pilot.boundary == bench.boundaries[-1] and pilot.rank in settings.ranks]
        runs, law = _runs(bench, "rank", [pilot.rank or 0 for pilot in own], own), laws["lora"]
        held = np.where([name in ("A", "alpha") for name in law.law.parameters], np.nan, law.theta)
        laws["lora by rank"] = joint_law(runs, settings.confidence, settings.seed, [law.law], held)
    return laws


def _runs(bench: Bench, factor: str, levels: Sequence[float], pilots: Sequence[Pilot]) -> Runs:
    variables = np.column_stack([levels, [float(pilot.examples) for pilot in pilots]])
    losses = np.array([pilot.losses for pilot in pilots]).T  # [V, n]
    return Runs.of(factor, variables, losses, bench.params.bootstrap, bench.params.seed)


def _layers(shape: ModelShape) -> Array:
    """X of the boundaries 0..L, [L+1]: trained layers; at L, where the final norm trains alone, its share of one."""
    norm = max(shape.norm_parameters, 1) / shape.layer_parameters
    return np.maximum(np.arange(shape.layers, -1, -1.0), norm)
