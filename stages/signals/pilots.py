"""Pilots: small fine-tunes at a few boundaries, from which the loss of every boundary is predicted."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

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
from salf.engine.training.scope import Scope
from salf.engine.training.step import Job
from salf.engine.training.workbench import Splits, Workbench, begin_at
from salf.evidence import PilotFlops, PilotLaw, PilotRun, Pilots, PredictedLoss
from salf.files import code_hashes, digest_of, read_json, significant, work_folder, write_json
from salf.fitting.bootstrap import interval
from salf.laws import JOINT, Array
from salf.methods import Method
from salf.records import BaseRecord, PreparedRecord
from salf.settings import Device, Finetune, Schedule
from salf.shape import ModelShape
from stages.common.params import Pilot as PilotParams
from stages.signals.joint_law import JointLaw, Points, Prediction, joint_law, predict

_DIGITS: Final = 8


class Pilot(PilotRun):
    """A small fine-tune that is done: its entry in the artifact, and what the prediction needs."""

    kept: bool = False
    losses: tuple[float, ...]  # of every validation example at the end, nats per answer token
    recomputed: bool  # the frozen layers ran for every batch, since their states could not be cached


@dataclass(frozen=True, kw_only=True)
class Bench(Workbench):
    """The state that all pilots share; the settings are those of every pilot.

    Pilots learn from the training split in the order of a draw: one on n examples takes the first n.
    """

    params: PilotParams
    boundaries: list[int]  # ascending
    sizes: list[int]  # numbers of examples, descending: learning rates are chosen at the largest
    everything: Split  # all training examples
    splits: Splits
    full_epochs: int  # of the fine-tunes that the pilots predict
    identity: dict[str, Any]  # hashes of model and data
    unfinished: Path  # where finished pilots are kept until all are

    def costs_above(self, boundary: int, *, recomputed: bool = False) -> Costs:
        """Counts the FLOPs of training a boundary's weights."""
        return self.costs(Scope.above(boundary, self.shape.layers), uncached=recomputed)

    def rates(self, boundary: int) -> list[float]:
        """The learning rates to try, ascending: those of the method ``freeze-<boundary>``."""
        return self.settings.rates(f"freeze-{boundary}", boundary)


def run(base: Path, prepared: Path, out: Path, device: Device, params: PilotParams, finetune: Schedule) -> None:
    """Fine-tune the pilots and write what they predict, :class:`salf.evidence.Pilots`."""
    bench = _bench(base, prepared, out, device, params, finetune)
    boundaries, sizes = (", ".join(map(str, sorted(each))) for each in (bench.boundaries, bench.sizes))
    print(
        f"pilots with layers 1 to {boundaries} of {bench.shape.layers} frozen, on {sizes} of {len(bench.everything)} "
        f"training examples: {planned(bench).share:.2f} times the FLOPs of one full fine-tune"
    )
    pilots = measure(bench)
    untrained = np.array(_once(bench.unfinished / "untrained.json", lambda: _untrained(bench)))
    points = _points(bench, [pilot for pilot in pilots if pilot.kept], untrained)
    law = joint_law(points)
    prediction = predict(points, law, _trained(bench.shape), len(bench.everything), params)
    found = Pilots(
        schema=1,
        layers=bench.shape.layers,
        examples=len(bench.everything),
        validation_examples=len(bench.splits["validation"]),
        epochs=bench.settings.epochs,
        confidence=params.confidence,
        **bench.identity,
        untrained_loss=float(untrained.mean()),
        pilots=pilots,
        law=_law(law, prediction.parameters, params.confidence),
        predictions=_predictions(prediction),
        flops=counted(bench, pilots),
    )
    found.save(out)
    shutil.rmtree(bench.unfinished)
    print(found.law.verdict)
    for row in found.predictions:
        if row.boundary in bench.boundaries:
            print(
                f"  layers 1–{row.boundary} frozen: predicted validation loss {row.loss:.4f} ({row.low:.4f} to "
                f"{row.high:.4f}), {row.excess:.4f} ± {row.excess_error:.4f} above the best"
            )


def _bench(base: Path, prepared: Path, out: Path, device: Device, params: PilotParams, finetune: Schedule) -> Bench:
    settings, runtime = _settings(finetune, params.epochs), choose_runtime(device)
    shape = ModelShape.from_config(read_json(base / "config.json"))
    everything = Split.read(prepared, "train")
    # Shares that round to the same number count once.
    sizes = sorted({max(1, round(share * len(everything))) for share in params.sizes}, reverse=True)
    order = np.random.default_rng(params.seed).permutation(len(everything))
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
    return Bench(
        base=base,
        runtime=runtime,
        settings=settings,
        params=params,
        boundaries=sorted({round(share * shape.layers) for share in params.boundaries}),
        sizes=sizes,
        everything=everything,
        splits={
            "training": everything.subset(order[: sizes[0]].tolist()),
            "validation": Split.read(prepared, "validation"),
        },
        full_epochs=finetune.epochs,
        identity=identity,
        unfinished=work_folder(out, digest_of(inputs)),
    )


def _settings(schedule: Schedule, epochs: int | None) -> Finetune:
    """The settings of a pilot: the fine-tunes' own, apart from the epochs if they are given."""
    own = {"processes": 1, "lora_rank": 1, "lora_alpha": 1.0, "lisa_layers": 1, "lisa_steps": 1, "equal_compute": False}
    # The validation split is read at the end only, and a pilot that is stopped restarts.
    own |= {"evaluations_per_epoch": 0, "checkpoint_minutes": 0}
    return Finetune(**{**dict(schedule), **own, "epochs": epochs or schedule.epochs})


def measure(bench: Bench) -> list[Pilot]:
    """Fine-tune at each boundary, with the largest number of examples first.

    The learning rate of the lowest validation loss there (ties go to the smaller) is kept and serves the other sizes.
    """
    tried = list[Pilot]()
    largest, *smaller = bench.sizes
    for boundary in bench.boundaries:
        opened: dict[str, Opened] = {}  # the frozen layers' states of both splits, for all pilots of the boundary
        first = [_pilot(bench, boundary, opened, largest, rate) for rate in bench.rates(boundary)]
        rate = min(first, key=lambda pilot: pilot.validation_loss).learning_rate
        others = [_pilot(bench, boundary, opened, size, rate) for size in smaller]
        tried += [pilot.model_copy(update={"kept": pilot.learning_rate == rate}) for pilot in (*first, *others)]
    return tried


def _pilot(bench: Bench, boundary: int, opened: dict[str, Opened], size: int, rate: float) -> Pilot:
    """Fine-tune on the first ``size`` examples, or take what an interrupted run has done."""

    def done() -> dict[str, Any]:
        if boundary and not opened:
            opened.update(bench.open_states(bench.open(boundary), boundary, bench.splits))
        return _train(bench, boundary, opened, size, rate).model_dump()

    file = bench.unfinished / f"boundary-{boundary}-examples-{size}-rate-{rate:g}.json"
    return Pilot.model_validate(_once(file, done))


def _train(bench: Bench, boundary: int, opened: Mapping[str, Opened], size: int, rate: float) -> Pilot:
    model, scope, seed = bench.open(boundary), Scope.above(boundary, bench.shape.layers), bench.params.seed
    recomputed = bool(opened) and opened["training"].origin == "off"
    splits = begin_at(opened, bench.splits, model)
    job = Job(
        name=f"pilot: layers 1–{boundary} frozen, {size} examples, rate {rate:g}",
        trainable=Trainable.of(model, Method(f"freeze-{boundary}"), scope, bench.settings, seed, steps=0),
        runtime=bench.runtime,
        training=splits["training"].subset(range(size)),
        validation=splits["validation"],
        rule=None,  # losses only: no label is looked for
        costs=bench.costs_above(boundary, recomputed=recomputed),
        settings=bench.settings,
        rate=rate,
        seed=seed,
    )
    done = train(job)
    return Pilot(
        boundary=boundary,
        examples=size,
        learning_rate=rate,
        losses=done.validation_losses,
        validation_loss=sum(done.validation_losses) / len(done.validation_losses),
        flops=done.flops - (job.costs.frozen(job.training) if boundary else 0),
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


def planned(bench: Bench) -> PilotFlops:
    """The predicted cost of the pilots, if every boundary's states can be cached."""
    unknown: dict[str, Any] = {"validation_loss": 0.0, "losses": (), "recomputed": False}
    pilots = [
        Pilot(boundary=boundary, examples=size, learning_rate=rate, flops=flops, **unknown)
        for boundary in bench.boundaries
        for size in bench.sizes
        for flops in [_steps_flops(bench, boundary, size, bench.settings.epochs)]
        for rate in bench.rates(boundary)[: None if size == bench.sizes[0] else 1]
    ]
    return counted(bench, pilots)


def counted(bench: Bench, pilots: Sequence[Pilot]) -> PilotFlops:
    """The pilots' cost, losing learning rates included, against one full fine-tune at one rate.

    Each boundary's frozen passes count from the embeddings up.
    """
    opened = {pilot.boundary: bench.costs_above(pilot.boundary, recomputed=pilot.recomputed) for pilot in pilots}
    frozen = sum(costs.frozen(split) for costs in opened.values() for split in bench.splits.values())
    training = sum(pilot.flops for pilot in pilots)
    read = [bench.costs_above(0), *(opened[pilot.boundary] for pilot in pilots)]
    reading = sum(costs.reading(bench.splits["validation"]) for costs in read)
    full, total = _steps_flops(bench, 0, len(bench.everything), bench.full_epochs), frozen + training + reading
    return PilotFlops(
        frozen=frozen, training=training, reading=reading, total=total, full_fine_tune=full, share=total / full
    )


def _steps_flops(bench: Bench, boundary: int, size: int, epochs: int) -> int:
    """All optimizer steps on ``size`` examples, states cached; if batches are padded, as if all epochs drew alike."""
    drawn = bench.splits["training"]
    split = (drawn if size <= len(drawn) else bench.everything).subset(range(size))
    epoch = next(epoch_batches(split, bench.settings, bench.params.seed))
    return epochs * sum(bench.costs_above(boundary).step(parts).total for parts in epoch)


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
    names = [name for name in PredictedLoss.model_fields if name != "boundary"]
    rows = zip(*(_numbers(getattr(prediction, name)) for name in names), strict=True)
    return [PredictedLoss(boundary=k, **dict(zip(names, row, strict=True))) for k, row in enumerate(rows)]


def _numbers(values: Array) -> list[float]:
    return [significant(float(value), _DIGITS) for value in values]
