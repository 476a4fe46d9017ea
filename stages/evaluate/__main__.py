"""Stage ``evaluate``: base, data, models → metrics, comparison, predictions, curves."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from salf.engine.batches import read_examples
from salf.engine.boundary_cache.cache import CacheSettings
from salf.engine.runtime import choose_runtime
from salf.files import replacing_file
from salf.metrics import Baseline, Interval, Intervals, Metrics, RunMetrics, write_comparison, write_csv
from salf.records import FineTuneClock, FineTuneRecord, read_base_record, read_prepared
from salf.settings import Caching, Device
from stages.common.command import exit_code
from stages.common.params import Compare, Evaluate, Room
from stages.evaluate.baselines import answers
from stages.evaluate.compare import compare_methods, measured_of, print_metrics
from stages.evaluate.predict import Predictor, frozen_layers, prediction_rows
from stages.evaluate.scores import Bootstrap, Predictions, intervals, score

_OF_THE_RUN: Final = (
    "seed",
    "boundary",
    "boundary_before_budget",
    "trained_parameters",
    "flops",
    "epochs",
    "steps",
    "learning_rate",
    "grid",
)


class EvaluateRoom(Room):
    """The groups that this stage reads."""

    compare: Compare
    device: Device
    evaluate: Evaluate
    finetune: Caching


def main(argv: Sequence[str] | None = None) -> None:
    """Score the untrained model, the baselines and every fine-tuned model on the test split."""
    args = _arguments(argv)
    params = EvaluateRoom.load()
    asked = params.evaluate
    meta = read_prepared(args.prepared)
    quality: Literal["accuracy", "exact_match"] = "exact_match" if meta.task == "free" else "accuracy"
    test = read_examples(args.prepared, "test")
    labels = [example.label or "" for example in test] if meta.labels else None
    bootstrap = Bootstrap(len(test), asked.bootstrap, asked.confidence, asked.seed, labels)
    names = [f"{label}-seed{seed}" for label in params.compare.labels for seed in params.compare.seeds]
    records = {name: FineTuneRecord.load(args.models / name) for name in names}

    base_shards = read_base_record(args.base).shards
    cache = CacheSettings.of(params.finetune.cache, params.finetune.cache_folder, params.finetune.cache_gib)
    predictor = Predictor(choose_runtime(params.device), asked, meta, args.base, base_shards, cache, test)
    predictions = {"untrained": predictor.predict(args.base, "untrained")}
    if meta.task != "free":
        plain = answers(read_examples(args.prepared, "train"), test)
        predictions |= {name: Predictions.of_labels(said, test) for name, said in plain.items()}
    for name, run in records.items():
        frozen = frozen_layers(run.shards, base_shards)
        predictions[name] = predictor.predict(args.models / name, name, frozen)

    scores = {name: score(said, quality, bootstrap) for name, said in predictions.items()}
    runs = {
        name: _run_metrics(run, records.get(f"full-seed{run.seed}"), intervals(scores[name]), len(test))
        for name, run in records.items()
    }
    metrics = Metrics(
        layout=1,
        task=meta.task,
        quality=quality,
        intervals=Intervals(resamples=asked.bootstrap, confidence=asked.confidence),
        baselines={
            name: Baseline(scores=intervals(scores[name]), n=len(test)) for name in predictions if name not in names
        },
        runs=runs,
        methods=compare_methods(runs, {name: run.curve for name, run in records.items()}, scores),
    )
    metrics.save(args.metrics)
    clocks = {name: FineTuneClock.load(args.measured / f"{name}.json") for name in names}
    write_comparison(args.comparison, metrics, measured_of(runs, clocks))
    write_csv(
        args.curves,
        [
            {"run": name, "method": run.label, "seed": run.seed, **point.model_dump()}
            for name, run in records.items()
            for point in run.curve
        ],
    )
    with replacing_file(args.predictions) as aside:
        pq.write_table(pa.Table.from_pylist(prediction_rows(predictions, test)), aside, compression="zstd")
    print_metrics(metrics)


def _run_metrics(
    run: FineTuneRecord, full: FineTuneRecord | None, scores: Mapping[str, Interval], examples: int
) -> RunMetrics:
    return RunMetrics(
        method=run.label,
        **{key: getattr(run, key) for key in _OF_THE_RUN},
        flops_share=run.flops / full.flops if full else None,
        trained_share=run.trained_parameters / full.trained_parameters if full else None,
        validation_loss=run.last.validation_loss,
        validation_accuracy=run.last.validation_accuracy,
        scores=scores,
        n=examples,
    )


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m stages.evaluate",
        description="Score every fine-tuned model, the untrained model and simple baselines on the test split.",
        epilog="example: python -m stages.evaluate --base data/base --prepared data/prepared --models data/models "
        "--measured reports/runs --metrics reports/metrics.json --comparison reports/comparison.csv "
        "--predictions reports/predictions.parquet --curves reports/curves.csv",
    )
    parser.add_argument("--base", type=Path, required=True, help="the base model's folder")
    parser.add_argument("--prepared", type=Path, required=True, help="the prepared data's folder")
    parser.add_argument("--models", type=Path, required=True, help="the folder of fine-tuned model folders")
    parser.add_argument("--measured", type=Path, required=True, help="the folder of measured seconds and memory")
    parser.add_argument("--metrics", type=Path, required=True, help="JSON to write: scores and counted costs")
    parser.add_argument("--comparison", type=Path, required=True, help="CSV to write: one row per method")
    parser.add_argument("--predictions", type=Path, required=True, help="Parquet to write: every model's answers")
    parser.add_argument("--curves", type=Path, required=True, help="CSV to write: validation during training")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(exit_code(main))
