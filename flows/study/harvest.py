"""From an experiment's artifacts to rows of the study's tables."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from flows.study.agenda import Case, FineTune
from flows.study.forecast import units
from flows.study.progress import PLAIN, Look
from flows.study.tables import Row, outcome_of
from salf.ledger import Machine

_LAW: Final = "reports/scaling_law.json"
_PILOT: Final = "reports/pilot.json"
_PLAN: Final = "data/plan/freeze_plan.json"
_CURVES: Final = ("curve", "curve_low", "curve_high")
_PILOTED: Final = ("pilot", "budget", "tolerance")  # selectors that rest on pilot fine-tunes
_TRACES: Final = (PLAIN, "reference")  # whose laws are kept


class Artifacts(Protocol):
    """What stages left, by their paths in the project."""

    def json(self, path: str) -> Any:
        """The content of a JSON artifact."""

    def file(self, path: str) -> Path:
        """Where an artifact lies."""

    def has(self, path: str) -> bool:
        """Whether a stage made it."""


def where() -> dict[str, Any]:
    """Processor or accelerators of this machine, and its cores: no name, no path."""
    facts = Machine.here()
    return {"machine": ", ".join(facts.accelerators) or facts.cpu or facts.system, "cores": facts.cores}


def results(kept: Artifacts, batch: Sequence[FineTune], facts: Mapping[str, Any]) -> list[tuple[Row, pa.Table]]:
    """A row and the predictions of every fine-tune of an experiment; ``outcomes`` of a row: those of a grid's rates.

    Args:
        kept: what the experiment's stages left.
        batch: the fine-tunes.
        facts: columns that all have in common.
    """
    metrics = kept.json("reports/metrics.json")
    said = pq.read_table(
        kept.file("reports/predictions.parquet"), columns=["run", "example_id", "label", "correct", "loss"]
    )
    found = []
    for fine_tune in batch:
        name = f"{fine_tune.method}-seed{fine_tune.seed}"
        run, measured = kept.json(f"data/models/{name}/run.json"), kept.json(f"reports/runs/{name}.json")
        mine = said.filter(pc.equal(said["run"], name)).drop_columns(["run"])
        scores = {**metrics["runs"][name], "quality": metrics["runs"][name][metrics["quality"]]}
        row = {**facts, **_wanted(fine_tune), **_learned(run, scores), **_clock(measured)}
        found.append(({**row, "outcomes": _outcomes(run, row) if len(fine_tune.rates) > 1 else []}, mine))
    return found


def choices(look: Look, kept: Artifacts) -> list[Row]:
    """What every rule chooses by a plan; a rule whose evidence the plan lacks keeps the plan's reason."""
    plan, share = kept.json(_PLAN), (_pilot(kept) or {"flops": {"share": None}})["flops"]["share"]
    facts = {**where(), "data_set": look.case.data_set, "model": look.case.model, "layers": plan["model"]["layers"]}
    if not look.rules:
        return [{**facts, "rule": name} for name in look.names]
    deciding = dict.fromkeys(_PILOTED, share)
    return [
        {
            **facts,
            "rule": name,
            "deciding_share": deciding.get(rule.selector),
            **_choice(plan, rule.selector),
        }
        for name, rule in look.rules.items()
    ]


def _pilot(kept: Artifacts) -> dict[str, Any] | None:
    """The pilots' artifact, where there were pilots."""
    found: dict[str, Any] = kept.json(_PILOT) if kept.has(_PILOT) else {"enabled": False}
    return found if found["enabled"] else None


def _choice(plan: Mapping[str, Any], selector: str) -> Row:
    entry = plan["boundaries"].get(selector)
    if entry is None:
        return {"selector": selector, "reason": plan["absent"].get(selector, "the plan knows no such selector")}
    scores = json.dumps(entry["scores"]) if entry["scores"] else ""
    before = entry.get("before_budget") if selector != plan["selector"] else None  # the budget is the plan's own rule's
    boundary = entry["boundary"] if before is None else before
    return {"selector": selector, "boundary": boundary, "reason": entry["reason"], "scores": scores}


def intervals(look: Look, kept: Artifacts) -> list[Row]:
    """What laws and pilots predict with an interval, and what was observed, to be held against each other.

    Every row names the law that predicts; none where what was observed, of pilots too, stands without one.
    """
    laws = _law_rows(look, kept.json(_LAW)) if look.source in _TRACES else []
    return _pilot_rows(look, _pilot(kept)) + laws


def _pilot_rows(look: Look, pilot: Mapping[str, Any] | None) -> list[Row]:
    if pilot is None:
        return []
    bounds = [(one["boundary"], [one["loss"], one["low"], one["high"]]) for one in pilot["predictions"]]
    facts = {"law": "joint" if pilot["law"]["holds"] else "", "confidence": pilot["confidence"]}
    return [{**_interval(look.case, "pilot", k, each), **facts} for k, each in bounds]


def _law_rows(look: Look, fitted: Mapping[str, Any]) -> list[Row]:
    """The best law's curve where it fits, and the trace's mean, at every space."""
    rows = []
    for quantity, entry in fitted["quantities"].items():
        best = next((law for law in entry["laws"] if law["name"] == entry["best"]), None) if entry["fits"] else None
        for space, observed in enumerate(entry["mean"]):
            bounds = [best[name][space - 1] for name in _CURVES] if best and space else [None] * len(_CURVES)
            row = _interval(look.case, f"{look.source}:{quantity}", space, bounds)
            facts = {"law": best["name"], "confidence": fitted["confidence"]} if best and space else {}
            rows.append({**row, "observed": observed, **facts})
    return rows


def _interval(case: Case, source: str, place: int, bounds: Sequence[float | None]) -> Row:
    row = {"data_set": case.data_set, "model": case.model, "source": source, "place": place}
    return {**row, **dict(zip(("predicted", "low", "high"), bounds, strict=True))}


def _wanted(fine_tune: FineTune) -> Row:
    return {
        "data_set": fine_tune.case.data_set,
        "model": fine_tune.case.model,
        "seed": fine_tune.seed,
        "method": fine_tune.method,
        "budget": fine_tune.budget,
        "rates": " ".join(map(repr, fine_tune.rates)),
    }


def _learned(run: Mapping[str, Any], scores: Mapping[str, Any]) -> Row:
    last = run["curve"][-1]
    return {
        "boundary": run["boundary"],
        "epochs": run["epochs"],
        "learning_rate": run["learning_rate"],
        "quality": scores["quality"],
        "macro_f1": scores.get("macro_f1"),
        "loss": scores["loss"],
        "validation_loss": last["validation_loss"],
        "validation_accuracy": last["validation_accuracy"],
        "validation_examples": run["validation_examples"],
        "flops": run["flops"],
        "trained_parameters": run["trained_parameters"],
        "test_examples": scores["n"],
        "data_sha256": run["data_sha256"]["train"],
        "model_sha256": run["base_sha256"],
    }


def _outcomes(run: Mapping[str, Any], row: Row) -> list[Row]:
    """The outcome of every rate at which training did not diverge; the winner's test results are those of evaluate."""
    tried = [{**one, "learning_rate": one["rate"]} for one in run["grid"] if one["validation_loss"] is not None]
    return [outcome_of(row) if one["learning_rate"] == run["learning_rate"] else one for one in tried]


def _clock(measured: Mapping[str, Any]) -> Row:
    """Seconds of the training that won and of its frozen layers; where and in which precision."""
    seconds = measured["seconds_training"] + measured["seconds_cache"]
    return {"seconds": seconds, "device": measured["machine"]["device"], "dtype": measured["machine"]["dtype"]}


def shared_out(seconds: float, batch: Sequence[FineTune], layers: int) -> list[float]:
    """An experiment's time, shared out among its fine-tunes by their size."""
    sizes = [units(fine_tune, layers) for fine_tune in batch]
    return [seconds * size / sum(sizes) for size in sizes]
