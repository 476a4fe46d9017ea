"""Stage ``evaluate``: base, data, models → metrics, comparison, predictions, curves."""

import sys
from collections.abc import Mapping, Sequence
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from salf.blocks import document_of
from salf.engine.batches import Example, Split, read_examples
from salf.engine.runtime import choose_runtime
from salf.files import replacing_file
from salf.metrics import Baseline, Intervals, Metrics, write_comparison, write_csv
from salf.records import BaseRecord, FineTuneClock, FineTuneRecord, PreparedRecord
from salf.settings import TASKS, Caching, Device
from stages.common.command import BASE, PREPARED, exit_code, parser_of
from stages.common.params import Compare, Evaluate, Room
from stages.evaluate.baselines import answers
from stages.evaluate.compare import UNTRAINED, Sampling, by_method, compare_methods, measured_of, run_metrics
from stages.evaluate.predict import Predictor, prediction_rows
from stages.evaluate.readings import TEST, further_splits, panels_of, read_all
from stages.evaluate.scores import Bootstrap, Predictions, Statistic, intervals, score

_PARSER: Final = parser_of(
    "evaluate",
    "Score every fine-tuned model, the untrained model and simple baselines on the test split and shifted splits.",
    {
        "base": BASE,
        "prepared": PREPARED,
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
    """Score the untrained model, the baselines and every fine-tuned model on every test split."""
    args = _PARSER.parse_args(argv)
    params = EvaluateRoom.load()
    meta = PreparedRecord.load(args.prepared)
    tests = {name: read_examples(args.prepared, name) for name in meta.tests}
    names = [f"{method}-seed{seed}" for method in params.compare.labels for seed in params.compare.seeds]
    records = {name: FineTuneRecord.load(args.models / name) for name in names}
    asked, shards = params.evaluate, BaseRecord.load(args.base).shards
    splits = {name: Split(examples, meta.shared_prefix_tokens) for name, examples in tests.items()}
    splits |= further_splits(asked, args.base)
    predictor = Predictor(choose_runtime(params.device), asked, meta, args.base, shards, params.finetune, splits)
    found = read_all(predictor, args.models, records)
    if TASKS[meta.task].quality == "accuracy":
        training = read_examples(args.prepared, "train")
        for name, said in found.tests.items():
            plain = answers(training, tests[name])
            learned = {one: Predictions.of_labels(labels, tests[name]) for one, labels in plain.items()}
            found.tests[name] = {UNTRAINED: said[UNTRAINED], **learned, **said}
    scores = {name: _scores(asked, meta, tests[name], said) for name, said in found.tests.items()}

    test, on_test = tests[TEST], scores.pop(TEST)
    over = {"over": "documents"} if _documents(meta, test) else {}
    runs = {
        name: run_metrics(run, records.get(f"full-seed{run.seed}"), on_test[name], len(test))
        for name, run in records.items()
    }
    metrics = Metrics(
        layout=1,
        task=meta.task,
        quality=TASKS[meta.task].quality,
        intervals=Intervals(resamples=asked.bootstrap, confidence=asked.confidence, **over),
        baselines={n: Baseline(scores=intervals(one), n=len(test)) for n, one in on_test.items() if n not in runs},
        runs=runs,
        methods=compare_methods(runs, {name: run.curve for name, run in records.items()}, on_test),
        **panels_of(found, scores, tests, meta, Sampling(asked, by_method(runs))),
    )
    metrics.save(args.metrics)
    clocks = {name: FineTuneClock.load(args.measured / f"{name}.json") for name in names}
    write_comparison(args.comparison, metrics, measured_of(runs, clocks))
    points = [(name, run, point) for name, run in records.items() for point in run.curve]
    write_csv(args.curves, [{"run": n, "method": r.label, "seed": r.seed, **p.model_dump()} for n, r, p in points])
    rows = [row for name, said in found.tests.items() for row in prediction_rows(name, said, tests[name])]
    with replacing_file(args.predictions) as aside:
        pq.write_table(pa.Table.from_pylist(rows), aside, compression="zstd")
    for name, scored in {**metrics.baselines, **metrics.methods}.items():
        lead = scored.scores[metrics.quality]
        print(f"{name}: {metrics.quality} {lead.value:.3f} [{lead.low:.3f}, {lead.high:.3f}] on the test split")


def _scores(
    asked: Evaluate, meta: PreparedRecord, test: Sequence[Example], predictions: Mapping[str, Predictions]
) -> dict[str, dict[str, Statistic]]:
    """Every model's scores on a test split."""
    labels = [example.label or "" for example in test] if meta.labels else None
    documents = _documents(meta, test)
    bootstrap = Bootstrap(len(test), asked.bootstrap, asked.confidence, asked.seed, labels, documents)
    return {name: score(said, TASKS[meta.task].quality, bootstrap) for name, said in predictions.items()}


def _documents(meta: PreparedRecord, test: Sequence[Example]) -> list[str] | None:
    """The document of each block of plain text; ``None`` for other tasks, and where too few could be resampled."""
    documents = [document_of(example.example_id) for example in test] if TASKS[meta.task].text else []
    return documents if len(set(documents)) >= _FEWEST_DOCUMENTS else None


if __name__ == "__main__":
    sys.exit(exit_code(main, parser=_PARSER))
