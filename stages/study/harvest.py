"""From a job's artifacts to rows of the study's tables."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, get_args

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from salf.evidence import Pilots
from salf.files import read_json
from salf.ledger import Machine
from salf.metrics import Metrics, RunMetrics
from salf.plan import FreezePlan
from salf.records import FineTuneClock, FineTuneRecord
from salf.selectors import Quantity
from stages.study.agenda import FineTune, Look
from stages.study.tables import Row

_PILOTED: Final = ("pilot", "budget", "tolerance")  # selectors that need pilot fine-tunes


def where() -> Row:
    """Return this machine's processor or accelerators, and its cores: no name, no path."""
    here = Machine.here()
    return {"machine": ", ".join(here.accelerators) or here.cpu or here.system, "cores": here.cores}


def results(folder: Path, batch: Sequence[FineTune], facts: Mapping[str, Any]) -> list[tuple[Row, pd.DataFrame]]:
    """Return a row and the predictions of every fine-tune of a job; ``outcomes`` of a row are those of its grid."""
    metrics = Metrics.load(folder / "reports/metrics.json")
    columns = ["run", "example_id", "label", "correct", "loss"]
    said = pd.read_parquet(folder / "reports/predictions.parquet", columns=columns).set_index("run")
    found = []
    for one in batch:
        name = f"{one.method}-seed{one.seed}"
        run = FineTuneRecord.load(folder / f"data/models/{name}")
        clock = FineTuneClock.load(folder / f"reports/runs/{name}.json")
        row = {**facts, **one.case._asdict(), "budget": one.budget, "rates": " ".join(map(repr, one.rates))}
        row |= _learned(run, metrics.runs[name], metrics.quality)
        row |= {"device": clock.machine.device, "dtype": clock.machine.dtype}
        row["seconds"] = clock.seconds_training + clock.seconds_cache  # of the winning rate, with its frozen layers
        row["outcomes"] = _outcomes(run, row) if len(one.rates) > 1 else []
        found.append((row, said.loc[[name]]))
    return found


def choices(look: Look, folder: Path) -> list[Row]:
    """Return each selector's choice by a plan; a selector whose evidence the plan lacks keeps the plan's reason."""
    plan, pilot = FreezePlan.load(folder / "data/plan/freeze_plan.json"), _pilot(folder)
    facts = {**where(), **look.case._asdict(), "layers": plan.model.layers}
    deciding = dict.fromkeys(_PILOTED, pilot.flops.share if pilot else None)
    return [
        {**facts, "rule": name, "deciding_share": deciding.get(rule.selector), **_choice(plan, rule.selector)}
        for name, rule in look.rules.items()
    ]


def traces(look: Look, folder: Path) -> list[Row]:
    """Return the curves of each traced example, means over its answer positions."""
    rows = pq.read_table(folder / "data/traces", columns=["example_id", *get_args(Quantity)]).to_pandas()
    facts = {**look.case._asdict(), "basis": look.settings["trace"]["basis"]}
    return [
        {**facts, "example_id": name}
        | {q: np.stack(each[q]).mean(axis=0) for q in get_args(Quantity) if each[q].notna().all()}
        for name, each in rows.groupby("example_id")
    ]


def _pilot(folder: Path) -> Pilots | None:
    """The pilots' artifact, if there were pilots."""
    path = folder / "reports/pilot.json"
    return Pilots.load(path) if path.exists() and read_json(path)["enabled"] else None


def _choice(plan: FreezePlan, selector: str) -> Row:
    entry = plan.boundaries.get(selector)
    if entry is None:
        return {"selector": selector, "reason": plan.absent.get(selector, "the plan knows no such selector")}
    limited = selector == plan.selector or entry.before_budget is None  # the budget limits the plan's own alone
    boundary = entry.boundary if limited else entry.before_budget
    scores = json.dumps(entry.scores) if entry.scores else ""
    return {"selector": selector, "boundary": boundary, "reason": entry.reason, "scores": scores}


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
