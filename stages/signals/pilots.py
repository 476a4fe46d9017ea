"""Pilots: small fine-tunes at a few boundaries, from which the loss of every boundary is predicted."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from salf.cost import ModelShape
from salf.engine.answers import Reader
from salf.engine.batches import Split
from salf.engine.boundary_cache.cache import Opened
from salf.engine.models.adapter import open_model
from salf.engine.runtime import choose_runtime
from salf.engine.training.costs import Costs, epoch_batches
from salf.engine.training.forms import Trainable
from salf.engine.training.job import Job
from salf.engine.training.loop import READ_TOKENS, train
from salf.engine.training.scope import Scope
from salf.engine.training.workbench import Splits, Workbench, begin_at
from salf.evidence import PilotFlops, PilotLaw, PilotRun, Pilots, PredictedLoss
from salf.files import code_hashes, digest_of, read_json, significant, work_folder, write_json
from salf.fitting.bootstrap import interval
from salf.laws import JOINT, Array
from salf.methods import Method
from salf.records import read_base_record, read_prepared
from salf.settings import Device, Finetune, Schedule
from stages.common.params import Pilot as PilotParams
from stages.signals.joint_law import JointLaw, Points, Prediction, joint_law, predict

_DIGITS: Final = 8


@dataclass(frozen=True)
class Pilot:
    """A small fine-tune that is done.

    Attributes:
        boundary: layers 1..boundary were frozen.
        examples: number of training examples.
        rate: peak learning rate.
        losses: of every validation example at the end, nats per answer token.
        flops: of its optimizer steps.
        recomputed: the frozen layers ran for every batch, since their states could not be cached.
    """

    boundary: int
    examples: int
    rate: float
    losses: tuple[float, ...]
    flops: int
    recomputed: bool

    @property
    def loss(self) -> float:
        """Mean over the validation examples."""
        return sum(self.losses) / len(self.losses)


@dataclass(frozen=True, kw_only=True)
class Bench(Workbench):
    """What all pilots share; the settings are those of every pilot.

    Attributes:
        boundaries: ascending, so that states above a deeper one go on from those of a shallower one.
        sizes: numbers of examples, descending: learning rates are chosen at the largest.
        everything: all training examples.
        drawn: some of them in the order of the draw: a pilot on n examples takes the first n.
        full_epochs: of the fine-tunes that the pilots predict.
        seed: of the order of examples.
        unfinished: where finished pilots are kept until all are.
    """

    boundaries: tuple[int, ...]
    sizes: tuple[int, ...]
    everything: Split
    drawn: Split
    validation: Split
    full_epochs: int
    seed: int
    unfinished: Path

    @property
    def splits(self) -> Splits:
        """What pilots learn from, the largest of them from all of it, and what they are judged by."""
        return {"training": self.drawn, "validation": self.validation}

    def costs_above(self, boundary: int, *, recomputed: bool = False) -> Costs:
        """Counts the FLOPs of training a boundary's weights."""
        return self.costs(Scope.above(boundary, self.shape.layers), uncached=recomputed)

    def rates(self, boundary: int) -> list[float]:
        """The learning rates to try, ascending: those of the method ``freeze-<boundary>``.

        Raises:
            UserError: there is no entry for it.
        """
        return self.settings.rates(f"freeze-{boundary}", boundary)


def run(base: Path, prepared: Path, out: Path, device: Device, params: PilotParams, finetune: Schedule) -> None:
    """Fine-tune the pilots and write what they predict.

    Args:
        base: the base model's folder.
        prepared: the prepared data's folder.
        out: the artifact to write, :class:`salf.evidence.Pilots`.
        device: where to run.
        params: of the pilots.
        finetune: of the fine-tunes that they predict.

    Raises:
        UserError: a learning rate is missing, a split is missing, or a loss is no longer a number.
    """
    identity = _identity(base, prepared)
    bench = _bench(base, prepared, out, device, params, finetune, identity)
    boundaries, sizes = (", ".join(map(str, sorted(each))) for each in (bench.boundaries, bench.sizes))
    print(
        f"pilots with layers 1 to {boundaries} of {bench.shape.layers} frozen, on {sizes} of {len(bench.everything)} "
        f"training examples: {planned(bench).share:.2f} times the FLOPs of one full fine-tune"
    )
    kept, tried = measure(bench)
    untrained = np.array(_untrained(bench))
    points = _points(bench, kept, untrained)
    law = joint_law(points)
    prediction = predict(
        points, law, _trained(bench.shape), len(bench.everything), params.bootstrap, params.confidence, params.seed
    )
    pilots = Pilots(
        schema=1,
        layers=bench.shape.layers,
        examples=len(bench.everything),
        validation_examples=len(bench.validation),
        epochs=bench.settings.epochs,
        confidence=params.confidence,
        **identity,
        untrained_loss=float(untrained.mean()),
        pilots=[
            PilotRun(
                boundary=pilot.boundary,
                examples=pilot.examples,
                learning_rate=pilot.rate,
                validation_loss=pilot.loss,
                flops=pilot.flops,
                kept=pilot in kept,
            )
            for pilot in tried
        ],
        law=_law(law, prediction.parameters, params.confidence),
        predictions=_predictions(prediction),
        flops=counted(bench, tried),
    )
    write_json(out, pilots.model_dump(mode="json", by_alias=True))
    shutil.rmtree(bench.unfinished)
    _conclude(pilots, bench.boundaries)


def _identity(base: Path, prepared: Path) -> dict[str, Any]:
    """What the pilots learn from."""
    splits = read_prepared(prepared).splits
    return {
        "base_sha256": read_base_record(base).weights_sha256,
        "data_sha256": {name: split.sha256 for name, split in splits.items()},
    }


def _bench(
    base: Path,
    prepared: Path,
    out: Path,
    device: Device,
    params: PilotParams,
    finetune: Schedule,
    identity: dict[str, Any],
) -> Bench:
    schedule, runtime = _schedule(finetune, params.epochs), choose_runtime(device)
    shape = ModelShape.from_config(read_json(base / "config.json"))
    everything = Split.read(prepared, "train")
    # Shares that round to the same number count once.
    boundaries = {round(share * shape.layers) for share in params.boundaries}
    sizes = sorted({max(1, round(share * len(everything))) for share in params.sizes}, reverse=True)
    inputs = {
        **identity,
        "params": [schedule.model_dump(mode="json"), params.model_dump(mode="json")],
        "runtime": [runtime.device.type, runtime.dtype_name, runtime.frozen_weights, torch.__version__],
        "code": code_hashes(),
    }
    order = np.random.default_rng(params.seed).permutation(len(everything))
    return Bench(
        base=base,
        boundaries=tuple(sorted(boundaries)),
        sizes=tuple(sizes),
        runtime=runtime,
        settings=schedule,
        shape=shape,
        everything=everything,
        drawn=everything.subset(order[: sizes[0]].tolist()),
        validation=Split.read(prepared, "validation"),
        full_epochs=finetune.epochs,
        seed=params.seed,
        unfinished=work_folder(out, digest_of(inputs)),
    )


def _schedule(schedule: Schedule, epochs: int | None) -> Finetune:
    """The schedule of a pilot: the fine-tunes' own, apart from the epochs if they are given."""
    given = {**dict(schedule), "epochs": epochs or schedule.epochs}
    return Finetune(
        **given,
        processes=1,
        lora_rank=1,
        lora_alpha=1.0,
        lisa_layers=1,
        lisa_steps=1,
        equal_compute=False,
        # The validation split is read at the end only, and a pilot that is stopped restarts.
        evaluations_per_epoch=0,
        checkpoint_minutes=0,
    )


def measure(bench: Bench) -> tuple[list[Pilot], list[Pilot]]:
    """Fine-tune at each boundary, with the largest number of examples first.

    The learning rate of the lowest validation loss there (ties go to the smaller) serves the other sizes too.

    Returns:
        The pilot of each boundary and size at the rate that won, and all pilots, those that lost included.

    Raises:
        UserError: a learning rate is missing, or a loss is no longer a number.
    """
    kept, tried = list[Pilot](), list[Pilot]()
    largest, *smaller = bench.sizes
    for boundary in bench.boundaries:
        place = _Boundary(bench, boundary)
        first = [place.pilot(largest, rate) for rate in bench.rates(boundary)]
        best = min(first, key=lambda pilot: pilot.loss)
        others = [place.pilot(size, best.rate) for size in smaller]
        kept += [best, *others]
        tried += [*first, *others]
    return kept, tried


class _Boundary:
    """One boundary's pilots: they share the states above the frozen layers."""

    def __init__(self, bench: Bench, boundary: int) -> None:
        self.bench, self.boundary = bench, boundary

    def pilot(self, size: int, rate: float) -> Pilot:
        """Fine-tune on the first ``size`` examples, or take what an interrupted run has done."""
        name = f"boundary-{self.boundary}-examples-{size}-rate-{rate:g}"
        done = _once(self.bench.unfinished / f"{name}.json", lambda: asdict(self._train(size, rate)))
        return Pilot(**{**done, "losses": tuple(done["losses"])})

    def _train(self, size: int, rate: float) -> Pilot:
        bench, boundary = self.bench, self.boundary
        model, scope = bench.open(boundary), Scope.above(boundary, bench.shape.layers)
        recomputed = bool(self._opened) and self._opened["training"].origin == "off"
        splits = begin_at(self._opened, bench.splits, model)
        job = Job(
            name=f"pilot: layers 1–{boundary} frozen, {size} examples, rate {rate:g}",
            trainable=Trainable.of(model, Method(f"freeze-{boundary}"), scope, bench.settings, bench.seed, steps=0),
            runtime=bench.runtime,
            training=splits["training"].subset(range(size)),
            validation=splits["validation"],
            rule=None,  # losses only: no label is looked for
            costs=bench.costs_above(boundary, recomputed=recomputed),
            settings=bench.settings,
            rate=rate,
            seed=bench.seed,
        )
        done = train(job)
        before = job.costs.frozen(job.training) if boundary else 0
        return Pilot(boundary, size, rate, tuple(done.validation_losses), done.flops - before, recomputed)

    @cached_property
    def _opened(self) -> dict[str, Opened]:
        """The frozen layers' states of both splits; empty if nothing is frozen."""
        if self.boundary == 0:
            return {}
        bench = self.bench
        passes = dict.fromkeys(bench.splits, bench.settings.epochs * len(bench.rates(self.boundary)))
        return bench.open_states(bench.open(self.boundary), self.boundary, bench.splits, passes)


def _untrained(bench: Bench) -> list[float]:
    """The loss of each validation example before training, nats per answer token, [V]."""

    def read() -> list[float]:
        model = open_model(bench.base, bench.runtime.device, frozen=bench.runtime.frozen())
        return [answer.loss for answer in Reader(model, bench.runtime, None, READ_TOKENS).read(bench.validation)]

    return list(_once(bench.unfinished / "untrained.json", read))


def _once(file: Path, make: Callable[[], Any]) -> Any:
    """What ``make`` returns, from the file if it was made before."""
    if not file.exists():
        write_json(file, make())
    return read_json(file)


def planned(bench: Bench) -> PilotFlops:
    """What the pilots are going to cost, if every boundary's states can be cached."""
    pilots = [
        Pilot(boundary, size, rate, (), _steps_flops(bench, boundary, size, bench.settings.epochs), False)
        for boundary in bench.boundaries
        for place, size in enumerate(bench.sizes)
        for rate in bench.rates(boundary)[: None if place == 0 else 1]
    ]
    return counted(bench, pilots)


def counted(bench: Bench, pilots: Sequence[Pilot]) -> PilotFlops:
    """What these pilots cost, learning rates that lost included, against one full fine-tune at one rate.

    The frozen passes of each boundary count from the embeddings up, though cached states go on from those of a
    shallower one. The validation split is read once untrained and once after every pilot.
    """
    opened = {pilot.boundary: bench.costs_above(pilot.boundary, recomputed=pilot.recomputed) for pilot in pilots}
    frozen = sum(costs.frozen(split) for costs in opened.values() for split in (bench.drawn, bench.validation))
    training = sum(pilot.flops for pilot in pilots)
    read = [bench.costs_above(0), *(opened[pilot.boundary] for pilot in pilots)]
    reading = sum(costs.reading(bench.validation) for costs in read)
    full, total = _steps_flops(bench, 0, len(bench.everything), bench.full_epochs), frozen + training + reading
    return PilotFlops(
        frozen=frozen, training=training, reading=reading, total=total, full_fine_tune=full, share=total / full
    )


def _steps_flops(bench: Bench, boundary: int, size: int, epochs: int) -> int:
    """All optimizer steps on ``size`` examples, states cached; if batches are padded, as if all epochs drew alike."""
    split = (bench.drawn if size <= len(bench.drawn) else bench.everything).subset(range(size))
    epoch = next(epoch_batches(split, bench.settings, bench.seed))
    return epochs * sum(bench.costs_above(boundary).step(parts) for parts in epoch)


def _points(bench: Bench, pilots: Sequence[Pilot], untrained: Array) -> Points:
    boundaries = np.array([pilot.boundary for pilot in pilots])
    return Points(
        boundaries=boundaries.astype(float),
        trained=_trained(bench.shape)[boundaries],
        examples=np.array([float(pilot.examples) for pilot in pilots]),
        losses=np.array([pilot.losses for pilot in pilots]).T,
        untrained=untrained,
        depth=bench.shape.layers,
    )


def _trained(shape: ModelShape) -> Array:
    """X of the boundaries 0..L, [L+1] (see :mod:`stages.signals.joint_law`); at least 1, for its logarithm."""
    layers = shape.layers - np.arange(shape.layers + 1.0)
    return np.maximum(layers * shape.layer_parameters + shape.norm_parameters, 1.0)


def _law(law: JointLaw, resampled: Array | None, confidence: float) -> PilotLaw:
    """The law as the artifact holds it; ``resampled``: its natural parameters over the resamples, [B, 4]."""
    names, bounds = JOINT.parameters, None
    if resampled is not None:
        low, high = map(_numbers, interval(resampled, confidence))
        bounds = {name: list(pair) for name, *pair in zip(names, low, high, strict=True)}
    return PilotLaw(
        name=JOINT.name,
        formula=f"{JOINT.formula} (X: trained parameters of layers and final norm, D: training examples)",
        parameters=dict(zip(names, _numbers(JOINT.natural(law.fit.theta)[0]), strict=True)),
        intervals=bounds,
        residual=significant(float(np.sqrt((law.residuals**2).mean())), _DIGITS),
        left_out={"boundaries": law.boundaries, "largest_size": law.sizes},
        holds=law.holds,
        verdict=law.verdict,
    )


def _predictions(prediction: Prediction) -> list[PredictedLoss]:
    """A row for every boundary."""
    names = ("loss", "low", "high", "excess", "excess_error")
    columns = zip(*(_numbers(getattr(prediction, name)) for name in names), strict=True)
    return [
        PredictedLoss(boundary=boundary, **dict(zip(names, row, strict=True))) for boundary, row in enumerate(columns)
    ]


def _numbers(values: Array) -> list[float]:
    return [significant(float(value), _DIGITS) for value in values]


def _conclude(pilots: Pilots, piloted: Sequence[int]) -> None:
    """Print what the pilots found at the piloted boundaries."""
    print(pilots.law.verdict)
    for row in pilots.predictions:
        if row.boundary in piloted:
            print(
                f"  layers 1–{row.boundary} frozen: predicted validation loss {row.loss:.4f} ({row.low:.4f} to "
                f"{row.high:.4f}), {row.excess:.4f} ± {row.excess_error:.4f} above the best"
            )
