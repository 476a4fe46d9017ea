"""Methods side by side: means over seeds, each relative to full fine-tuning in the same run."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from stages.evaluate.intervals import Statistic, mean_of
from stages.evaluate.scores import full_at_equal_compute, named

_MEANS: Final = ("flops", "flops_share", "epochs", "steps")
_SAME: Final = (
    "trained_parameters",
    "trained_share",
    "boundary",
    "boundary_before_budget",
)  # for every seed, but where layers are drawn


def compare_methods(
    runs: Mapping[str, dict[str, Any]],
    curves: Mapping[str, Sequence[Mapping[str, Any]]],
    scores: Mapping[str, Mapping[str, Statistic]],
) -> dict[str, dict[str, Any]]:
    """A row per method.

    Args:
        runs: run name → its facts (``method``, ``seed``, ``flops``...).
        curves: run name → its logged curve.
        scores: run name → its scores; a method's are their means over seeds.
    """
    by_method: dict[str, list[str]] = {}
    for name, run in runs.items():
        by_method.setdefault(run["method"], []).append(name)
    full = by_method.get("full")
    reference = _over_seeds(full, scores) if full else None
    rows = {}
    for method, names in by_method.items():
        own = _over_seeds(names, scores)
        row: dict[str, Any] = {"seeds": [runs[name]["seed"] for name in names], **named(own)}
        for key in (*_MEANS, *_SAME):
            values = [runs[name][key] for name in names if runs[name].get(key) is not None]
            if values:
                row[key] = values[0] if key in _SAME and len(set(values)) == 1 else float(np.mean(values))
        if reference is not None:
            gaps = {f"{name}_minus_full": own[name] - reference[name] for name in own}
            row |= named(gaps) | {f"{name}_detectable": gap.detectable for name, gap in gaps.items()}
            row["at_equal_compute"] = _equal_compute(names, runs, curves)
        rows[method] = row
    return rows


def _over_seeds(names: Sequence[str], scores: Mapping[str, Mapping[str, Statistic]]) -> dict[str, Statistic]:
    return {score: mean_of([scores[name][score] for name in names]) for score in scores[names[0]]}


def _equal_compute(
    names: Sequence[str], runs: Mapping[str, dict[str, Any]], curves: Mapping[str, Sequence[Mapping[str, Any]]]
) -> dict[str, float] | None:
    """Means over the seeds that full fine-tuning was run with too: own final validation, and full's by then."""
    found = []
    for name in names:
        partner = f"full-seed{runs[name]['seed']}"
        if partner in curves and (by_then := full_at_equal_compute(curves[partner], runs[name]["flops"])):
            last = curves[name][-1]
            found.append({**{key: last[key] for key in by_then}, **{f"full_{k}": v for k, v in by_then.items()}})
    return {key: float(np.mean([entry[key] for entry in found])) for key in found[0]} if found else None


def comparison_rows(
    methods: Mapping[str, dict[str, Any]],
    baselines: Mapping[str, dict[str, Any]],
    measured: Mapping[str, dict[str, Any]],
    runs: Mapping[str, dict[str, Any]],
) -> list[dict[str, Any]]:
    """Rows of ``comparison.csv``: the methods' figures with what was measured on this machine."""
    rows: list[dict[str, Any]] = [{"kind": "baseline", "name": name, **entry} for name, entry in baselines.items()]
    seconds: dict[str, float] = {}
    for method, entry in methods.items():
        mine = [measured[name] for name, run in runs.items() if run["method"] == method]
        means = {
            key: float(np.mean([m[key] for m in mine]))
            for key in ("seconds_per_step", "seconds_training", "seconds_cache", "peak_memory_bytes")
        }
        seconds[method] = means["seconds_training"] + means["seconds_cache"]
        flat = {key: value for key, value in entry.items() if key not in {"seeds", "at_equal_compute"}}
        rows.append({"kind": "method", "name": method, "seeds": len(entry["seeds"]), **flat, **means})
    if "full" in seconds:
        full = next(row for row in rows if row["name"] == "full")
        for row in rows:
            if row["kind"] == "method":
                row["seconds_share"] = seconds[row["name"]] / seconds["full"]
                row["seconds_per_step_share"] = row["seconds_per_step"] / full["seconds_per_step"]
                row["peak_memory_share"] = row["peak_memory_bytes"] / full["peak_memory_bytes"]
    return rows


def to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """CSV with a column for every key that occurs, in order of first occurrence."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()
