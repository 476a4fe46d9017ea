"""The tables and text of a flow run, built without a server."""

from collections.abc import Mapping, Sequence
from typing import Any

from flows.graph import StageNode
from flows.lineage.why import leaves
from flows.stage_run import StageRun
from salf.scale.command import duration


def stage_rows(graph: Sequence[StageNode], runs: Sequence[StageRun], failed: str | None = None) -> list[dict[str, str]]:
    """One row per stage: what happened, how long it took, what it is for."""
    done = {run.name: run for run in runs}
    rows = []
    for node in graph:
        run = done.get(node.name)
        what = run.outcome.value if run else ("failed" if node.name == failed else "not reached")
        took = duration(run.seconds) if run else ""
        rows.append({"stage": node.name, "outcome": what, "took": took, "what it does": node.description})
    return rows


def counts_line(runs: Sequence[StageRun]) -> str:
    """``3 ran, 1 restored, 8 cached in 2 min 5 s``; says so when nothing had to be done."""
    outcomes = [run.outcome.value for run in runs]
    took = duration(sum(run.seconds for run in runs))
    if set(outcomes) <= {"cached"}:
        return f"nothing had to be done: all {len(outcomes)} stages are up to date ({took})"
    parts = [f"{outcomes.count(name)} {name}" for name in ("ran", "restored", "cached") if name in outcomes]
    return f"{', '.join(parts)} in {took}"


def metric_rows(metrics: Mapping[str, Any]) -> list[dict[str, str]]:
    """Flatten nested metrics into rows of a dotted name and a value; lists are left out."""
    numbers = {name: value for name, value in leaves(metrics).items() if not isinstance(value, list | dict)}
    return [{"metric": name, "value": _shown(value)} for name, value in numbers.items()]


def artifact_key(*names: str) -> str:
    """A key as Prefect allows it: lower-case letters, digits and single dashes."""
    text = "-".join(names).lower().replace("+", "-and-")
    return "-".join("".join(c if c.isascii() and c.isalnum() else " " for c in text).split())


def _shown(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
