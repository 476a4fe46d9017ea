"""Stage ``evaluate``: base, data, models → metrics, comparison, predictions, curves."""

import sys
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from salf.blocks import document_of
from salf.engine.batches import Example, read_examples
from salf.engine.boundary_cache.cache import CacheSettings
from salf.engine.runtime import choose_runtime
from salf.files import replacing_file
from salf.metrics import Baseline, Intervals, Metrics, write_comparison, write_csv
from salf.records import BaseRecord, FineTuneClock, FineTuneRecord, PreparedRecord
from salf.settings import TASKS, Caching, Device
from stages.common.command import exit_code, parser_of
from stages.common.params import Compare, Evaluate, Room
from stages.evaluate.baselines import answers
from stages.evaluate.compare import compare_methods, measured_of, print_metrics, run_metrics
from stages.evaluate.predict import Predictor, frozen_layers, prediction_rows
from stages.evaluate.scores import Bootstrap, Predictions, intervals, score

_PARSER: Final = parser_of(
    "evaluate",
    "Score every fine-tuned model, the untrained model and simple baselines on the test split.",
    {
        "base": ("data/base", "the base model's folder"),
        "prepared": ("data/prepared", "the prepared data's folder"),
        "models": ("data/models", "the folder of fine-tuned model folders"),
        "measured": ("reports/runs", "the folder of measured seconds and memory"),
        "metrics": ("reports/metrics.json", "JSON to write: scores and counted costs"),
        "comparison": ("reports/comparison.csv", "CSV to write: one row per method"),
        "predictions": ("reports/predictions.parquet", "Parquet to write: every model's answers"),
        "curves": ("reports/curves.csv", "CSV to write: validation during training"),
    },
)

_FEWEST_DOCUMENTS: Final = 10  # with fewer, blocks are resampled


class EvaluateRoom(Room):
    """The groups that this stage reads."""

    compare: Compare
    device: Device
    evaluate: Evaluate
    finetune: Caching


def main(argv: Sequence[str] | None = None) -> None:
    """Score the untrained model, the baselines and every fine-tuned model on the test split."""
    args = _PARSER.parse_args(argv)
    params = EvaluateRoom.load()
    asked = params.evaluate
    meta, test = PreparedRecord.load(args.prepared), read_examples(args.prepared, "test")
    names = [f"{method}-seed{seed}" for method in params.compare.labels for seed in params.compare.seeds]
    records = {name: FineTuneRecord.load(args.models / name) for name in names}
    predictions = dict(_predictions(args, params, meta, test, records))

    labels = [example.label or "" for example in test] if meta.labels else None
    documents = _documents(meta, test)
    bootstrap = Bootstrap(len(test), asked.bootstrap, asked.confidence, asked.seed, labels, documents)
    quality = TASKS[meta.task].quality
    scores = {name: score(said, quality, bootstrap) for name, said in predictions.items()}
    plain = [name for name in predictions if name not in names]
    runs = {
        name: run_metrics(run, records.get(f"full-seed{run.seed}"), scores[name], len(test))
        for name, run in records.items()
    }
    metrics = Metrics(
        layout=1,
        task=meta.task,
        quality=quality,
        intervals=Intervals(
            resamples=asked.bootstrap, confidence=asked.confidence, **({"over": "documents"} if documents else {})
        ),
        baselines={name: Baseline(scores=intervals(scores[name]), n=len(test)) for name in plain},
        runs=runs,
        methods=compare_methods(runs, {name: run.curve for name, run in records.items()}, scores),
    )
    metrics.save(args.metrics)
    clocks = {name: FineTuneClock.load(args.measured / f"{name}.json") for name in names}
    write_comparison(args.comparison, metrics, measured_of(runs, clocks))
    points = [(name, run, point) for name, run in records.items() for point in run.curve]
    write_csv(args.curves, [{"run": n, "method": r.label, "seed": r.seed, **p.model_dump()} for n, r, p in points])
    with replacing_file(args.predictions) as aside:
        pq.write_table(pa.Table.from_pylist(prediction_rows(predictions, test)), aside, compression="zstd")
    print_metrics(metrics)


def _documents(meta: PreparedRecord, test: Sequence[Example]) -> list[str] | None:
    """The document of each block of plain text; ``None`` for other tasks, and where too few could be resampled."""
    documents = [document_of(example.example_id) for example in test] if TASKS[meta.task].text else []
    return documents if len(set(documents)) >= _FEWEST_DOCUMENTS else None


def _predictions(
    args: Namespace,
    params: EvaluateRoom,
    meta: PreparedRecord,
    test: Sequence[Example],
    records: Mapping[str, FineTuneRecord],
) -> Iterator[tuple[str, Predictions]]:
    """Every model's answers to the test split, by its name: the untrained one, baselines, fine-tuned ones."""
    shards = BaseRecord.load(args.base).shards
    cache = CacheSettings.of(params.finetune.cache, params.finetune.cache_folder, params.finetune.cache_gib)
    predictor = Predictor(choose_runtime(params.device), params.evaluate, meta, args.base, shards, cache, test)
    yield "untrained", predictor.predict(args.base, "untrained")
    if TASKS[meta.task].quality == "accuracy":
        for name, said in answers(read_examples(args.prepared, "train"), test).items():
            yield name, Predictions.of_labels(said, test)
    for name, run in records.items():
        if run.how.answer_side:
            yield name, predictor.predict_answer_side(args.models / name, name, run.params.finetune.answer_side)
        else:
            yield name, predictor.predict(args.models / name, name, frozen_layers(run.shards, shards))


if __name__ == "__main__":
    sys.exit(exit_code(main, parser=_PARSER))
