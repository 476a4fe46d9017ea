"""From a job's artifacts to rows of the study's tables."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from salf.files import read_json
from stages.common.run_record import machine
from stages.study.agenda import PLAIN, FineTune, Look
from stages.study.description import Case
from stages.study.tables import Row

_PILOTED: Final = ("pilot", "budget", "tolerance")  # selectors that need pilot fine-tunes
_TRACES: Final = (PLAIN, "reference")  # whose laws are saved


def where() -> Row:
    """Return this machine's processor or accelerators, and its cores: no name, no path."""
    facts = machine()
    return {"machine": ", ".join(facts["accelerators"]) or facts["cpu"] or facts["system"], "cores": facts["cores"]}


def results(folder: Path, batch: Sequence[FineTune], facts: Mapping[str, Any]) -> list[tuple[Row, pa.Table]]:
    """Return a row and the predictions of every fine-tune of a job; ``outcomes`` of a row are those of its grid.

    Args:
        folder: the job's.
        batch: the fine-tunes.
        facts: columns that all have in common.
    """
    metrics = read_json(folder / "reports/metrics.json")
    columns = ["run", "example_id", "label", "correct", "loss"]
    said = pq.read_table(folder / "reports/predictions.parquet", columns=columns)
    found = []
    for one in batch:
        name = f"{one.method}-seed{one.seed}"
        run = read_json(folder / f"data/models/{name}/run.json")
        clock = read_json(folder / f"reports/runs/{name}.json")
        scores = {**metrics["runs"][name], "quality": metrics["runs"][name][metrics["quality"]]}
        row = {**facts, **_wanted(one), **_learned(run, scores), **_clock(clock)}
        row["outcomes"] = _outcomes(run, row) if len(one.rates) > 1 else []
        found.append((row, said.filter(pc.equal(said["run"], name)).drop_columns(["run"])))
    return found


def choices(look: Look, folder: Path) -> list[Row]:
    """Return each selector's choice by a plan; a selector whose evidence the plan lacks keeps the plan's reason."""
    plan, pilot = read_json(folder / "data/plan/freeze_plan.json"), _pilot(folder)
    facts = {**where(), **look.case._asdict(), "layers": plan["model"]["layers"]}
    deciding = dict.fromkeys(_PILOTED, pilot["flops"]["share"] if pilot else None)
    return [{**facts, "rule": name} for name in look.names if not look.rules] + [
        {**facts, "rule": name, "deciding_share": deciding.get(rule.selector), **_choice(plan, rule.selector)}
        for name, rule in look.rules.items()
    ]


def intervals(look: Look, folder: Path) -> list[Row]:
    """Return what laws and pilots predict with an interval, and what was observed.

    Every row names the law that predicts; none where an observation, or a pilot's, has no law.
    """
    laws = _law_rows(look, read_json(folder / "reports/scaling_law.json")) if look.source in _TRACES else []
    return _pilot_rows(look.case, _pilot(folder)) + laws


def _pilot(folder: Path) -> dict[str, Any] | None:
    """The pilots' artifact, if there were pilots."""
    path = folder / "reports/pilot.json"
    found: dict[str, Any] = read_json(path) if path.exists() else {"enabled": False}
    return found if found["enabled"] else None


def _choice(plan: Mapping[str, Any], selector: str) -> Row:
    entry = plan["boundaries"].get(selector)
    if entry is None:
        return {"selector": selector, "reason": plan["absent"].get(selector, "the plan knows no such selector")}
    scores = json.dumps(entry["scores"]) if entry["scores"] else ""
    before = entry.get("before_budget") if selector != plan["selector"] else None  # the budget limits this one alone
    boundary = entry["boundary"] if before is None else before
    return {"selector": selector, "boundary": boundary, "reason": entry["reason"], "scores": scores}


def _pilot_rows(case: Case, pilot: Mapping[str, Any] | None) -> list[Row]:
    if pilot is None:
        return []
    facts = {**case._asdict(), "source": "pilot", "confidence": pilot["confidence"]}
    return [
        {
            **facts,
            "law": "joint" if pilot["law"]["holds"] else "",
            "place": one["boundary"],
            "predicted": one["loss"],
            "low": one["low"],
            "high": one["high"],
        }
        for one in pilot["predictions"]
    ]


def _law_rows(look: Look, fitted: Mapping[str, Any]) -> list[Row]:
    """The trace's mean at every space, and the best law's curve where it fits."""
    rows = []
    for quantity, entry in fitted["quantities"].items():
        best = next((law for law in entry["laws"] if law["name"] == entry["best"]), None) if entry["fits"] else None
        for space, observed in enumerate(entry["mean"]):
            row = {**look.case._asdict(), "source": f"{look.source}:{quantity}", "place": space, "observed": observed}
            if best and space:
                curves = {"predicted": "curve", "low": "curve_low", "high": "curve_high"}
                row |= {name: best[curve][space - 1] for name, curve in curves.items()}
                row |= {"law": best["name"], "confidence": fitted["confidence"]}
            rows.append(row)
    return rows


def _wanted(fine_tune: FineTune) -> Row:
    rates = " ".join(map(repr, fine_tune.rates))
    own = {"seed": fine_tune.seed, "method": fine_tune.method, "budget": fine_tune.budget, "rates": rates}
    return {**fine_tune.case._asdict(), **own}


def _learned(run: Mapping[str, Any], scores: Mapping[str, Any]) -> Row:
    last = run["curve"][-1]
    same = ("boundary", "epochs", "learning_rate", "validation_examples", "flops", "trained_parameters")
    return {
        **{name: run[name] for name in same},
        **{name: scores.get(name) for name in ("quality", "macro_f1", "loss")},
        "validation_loss": last["validation_loss"],
        "validation_accuracy": last["validation_accuracy"],
        "test_examples": scores["n"],
        "data_sha256": run["data_sha256"]["train"],
        "model_sha256": run["base_sha256"],
    }


def _outcomes(run: Mapping[str, Any], row: Row) -> list[Row]:
    """The outcome of every rate at which training did not diverge; the winner's test results are those of evaluate."""
    won = {"test_loss": row["loss"], "test_accuracy": row["quality"]}
    won |= {name: row[name] for name in ("learning_rate", "validation_loss", "validation_accuracy")}
    tried = [{**one, "learning_rate": one["rate"]} for one in run["grid"] if one["validation_loss"] is not None]
    return [won if one["learning_rate"] == run["learning_rate"] else one for one in tried]


def _clock(measured: Mapping[str, Any]) -> Row:
    """Seconds of the winning training with its frozen layers, the device and its precision."""
    seconds = measured["seconds_training"] + measured["seconds_cache"]
    return {"seconds": seconds, "device": measured["machine"]["device"], "dtype": measured["machine"]["dtype"]}
