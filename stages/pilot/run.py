"""The stage's work where pilots are wanted: draw examples, fine-tune, fit the law, predict, write."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from salf.cost import ModelShape
from salf.engine.batches import Example, read_examples
from salf.engine.runtime import choose_runtime
from salf.files import code_hashes, digest_of, read_json, work_folder, write_json
from salf.laws import Array
from salf.settings import Device, Schedule
from stages.common.params import Pilot
from stages.pilot.artifact import SCHEMA, law_entry, prediction_rows
from stages.pilot.bench import Bench
from stages.pilot.grid import Grid
from stages.pilot.law import Points, joint_law
from stages.pilot.measure import Measurements, measure
from stages.pilot.operations import Operations, counted, planned
from stages.pilot.prediction import predict
from stages.pilot.schedule import schedule_of
from stages.pilot.summary import announce, conclude


def run(base: Path, prepared: Path, out: Path, device: Device, params: Pilot, finetune: Schedule) -> None:
    """Fine-tune the pilots and write what they predict.

    Args:
        base: the base model's folder.
        prepared: the prepared data's folder.
        out: the artifact.
        device: where to run.
        params: of the pilots.
        finetune: of the fine-tunes that they speak for.

    Raises:
        UserError: a learning rate is missing, a split is missing, or a loss is no longer a number.
    """
    bench = _bench(base, prepared, out, device, params, finetune)
    announce(bench, planned(bench))
    measured = measure(bench)
    operations = counted(bench, measured.tried)
    points = _points(bench, measured)
    law = joint_law(points)
    prediction = predict(
        points, law, _trained(bench.shape), len(bench.everything), params.bootstrap, params.confidence, params.seed
    )
    artifact = {
        "schema": SCHEMA,
        "enabled": True,
        "layers": bench.shape.layers,
        "examples": len(bench.everything),
        "validation_examples": len(bench.validation),
        "epochs": bench.schedule.epochs,
        "confidence": params.confidence,
        **_identity(base, prepared),
        "untrained_loss": float(points.untrained.mean()),
        "pilots": _pilots(measured),
        "law": law_entry(law, prediction.parameters, params.confidence),
        "predictions": prediction_rows(prediction),
        "flops": _flops(operations),
    }
    write_json(out, artifact)
    shutil.rmtree(bench.unfinished)
    conclude(artifact)


def _bench(base: Path, prepared: Path, out: Path, device: Device, params: Pilot, finetune: Schedule) -> Bench:
    schedule, runtime = schedule_of(finetune, params.epochs), choose_runtime(device)
    shape = ModelShape.from_config(read_json(base / "config.json"))
    everything, meta = read_examples(prepared, "train"), read_json(prepared / "meta.json")
    grid = Grid.of(params, shape.layers, len(everything))
    inputs = {
        **_identity(base, prepared),
        "params": [schedule.model_dump(mode="json", warnings=False), params.model_dump(mode="json")],
        "runtime": [runtime.device.type, runtime.dtype_name, runtime.frozen_weights, torch.__version__],
        "code": code_hashes(),
    }
    return Bench(
        base=base,
        grid=grid,
        runtime=runtime,
        schedule=schedule,
        shape=shape,
        everything=everything,
        drawn=_draw(everything, grid.sizes[0], params.seed),
        validation=read_examples(prepared, "validation"),
        full_epochs=finetune.epochs,
        shared=meta["shared_prefix_tokens"],
        seed=params.seed,
        unfinished=work_folder(out, digest_of(inputs)),
    )


def _identity(base: Path, prepared: Path) -> dict[str, Any]:
    """What the pilots learned from."""
    splits = read_json(prepared / "meta.json")["splits"]
    return {
        "base_sha256": read_json(base / "base.json")["weights_sha256"],
        "data_sha256": {name: split["sha256"] for name, split in splits.items()},
    }


def _draw(examples: Sequence[Example], count: int, seed: int) -> list[Example]:
    """So many examples in random order: its first n are the draw of n."""
    order = np.random.default_rng(seed).permutation(len(examples))[:count]
    return [examples[i] for i in order]


def _trained(shape: ModelShape) -> Array:
    """X of boundaries 0..L, [L+1] (see :mod:`stages.pilot.law`); one at least, since it is taken the logarithm of."""
    layers = shape.layers - np.arange(shape.layers + 1.0)
    return np.maximum(layers * shape.layer_parameters + shape.norm_parameters, 1.0)


def _points(bench: Bench, measured: Measurements) -> Points:
    boundaries = np.array([pilot.boundary for pilot in measured.pilots])
    return Points(
        boundaries=boundaries.astype(float),
        trained=_trained(bench.shape)[boundaries],
        examples=np.array([float(pilot.examples) for pilot in measured.pilots]),
        losses=np.array([pilot.losses for pilot in measured.pilots]).T,
        untrained=np.array(measured.untrained),
        depth=bench.shape.layers,
    )


def _pilots(measured: Measurements) -> list[dict[str, Any]]:
    kept = set(measured.pilots)
    return [
        {
            "boundary": pilot.boundary,
            "examples": pilot.examples,
            "learning_rate": pilot.rate,
            "validation_loss": pilot.loss,
            "flops": pilot.flops,
            "kept": pilot in kept,
        }
        for pilot in measured.tried
    ]


def _flops(operations: Operations) -> dict[str, float]:
    parts = {name: getattr(operations, name) for name in ("frozen", "training", "reading", "total")}
    return {**parts, "full_fine_tune": operations.full, "share": operations.share}
