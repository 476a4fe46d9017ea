"""From a job's artifacts to rows of the study's tables."""

from pathlib import Path

import pandas as pd

from salf.files import read_json
from salf.ledger import Machine
from salf.metrics import Metrics, RunMetrics
from salf.records import FineTuneClock, FineTuneRecord
from stages.study.agenda import FineTune
from stages.study.tables import Row

TEXTS = "reports/texts.json"  # of a job: perplexities on texts


def where() -> Row:
    """Return this machine's processor or accelerators, and its cores: no name, no path."""
    here = Machine.here()
    return {"machine": ", ".join(here.accelerators) or here.cpu or here.system, "cores": here.cores}


def result(folder: Path, one: FineTune, trained: str) -> tuple[Row, pd.DataFrame]:
    """Return the row and the predictions of a fine-tune that the job ran as the method ``trained``.

    Under ``more`` are what becomes rows of other tables, by their names: the outcomes of its grid, the scores of every
    entry of ``finetune.keep``, and perplexities on texts.
    """
    name = f"{trained}-seed{one.seed}"
    metrics = Metrics.load(folder / "reports/metrics.json")
    columns = ["run", "example_id", "label", "correct", "loss"]
    said = pd.read_parquet(folder / "reports/predictions.parquet", columns=columns, filters=[("run", "==", name)])
    run = FineTuneRecord.load(folder / f"data/models/{name}")
    clock = FineTuneClock.load(folder / f"reports/runs/{name}.json")
    row = {**one.case._asdict(), "budget": one.budget, "rates": " ".join(map(repr, one.rates))}
    row |= _learned(run, metrics.runs[name], metrics.quality) | {"method": one.method}
    row |= {"device": clock.machine.device, "dtype": clock.machine.dtype}
    row["seconds"] = clock.seconds_training + clock.seconds_cache  # of the winning rate, with its frozen layers
    more = {"rates": _outcomes(run, row) if len(one.rates) > 1 else [], "forgetting": _forgotten(folder, name)}
    more["kept"] = [each.model_dump() for each in metrics.runs[name].kept]
    return {**row, "more": more}, said.drop(columns="run")


def _forgotten(folder: Path, name: str) -> list[Row]:
    """The perplexity on every text, and the base's, of a fine-tune whose job measured that."""
    found = read_json(folder / TEXTS)["models"] if (folder / TEXTS).exists() else {}
    return [
        {"text": text, "before": found["base"][text]["perplexity"], "after": one["perplexity"], "tokens": one["tokens"]}
        for text, one in found.get(name, {}).items()
    ]


def _learned(run: FineTuneRecord, scored: RunMetrics, quality: str) -> Row:
    same = ("seed", "boundary", "epochs", "learning_rate", "validation_examples", "flops")
    scores = {name: score.value for name, score in scored.scores.items()}
    return {
        "method": run.label,
        **{name: getattr(run, name) for name in (*same, "trained_parameters")},
        "quality": scores[quality],
        "macro_f1": scores.get("macro_f1"),
        "loss": scores["loss"],
        "validation_loss": run.validated.validation_loss,
        "validation_accuracy": run.validated.validation_accuracy,
        "test_examples": scored.n,
        "data_sha256": run.data_sha256["train"],
        "model_sha256": run.base_sha256,
    }


def _outcomes(run: FineTuneRecord, row: Row) -> list[Row]:
    """The outcome of every rate at which training did not diverge; the winner's test results are those of evaluate."""
    won = {"test_loss": row["loss"], "test_accuracy": row["quality"]}
    won |= {name: row[name] for name in ("validation_loss", "validation_accuracy")}
    return [
        {**one.model_dump(), "learning_rate": one.rate, **(won if one.rate == run.learning_rate else {})}
        for one in run.grid
        if one.validation_loss is not None
    ]
