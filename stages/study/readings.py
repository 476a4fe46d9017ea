"""Readings of the paper's gain, and the balance of cost and benefit by them, against measured quality.

A *reading* is a quantity, a gain (:mod:`salf.gains`) and the curve that it is computed from: the observed mean, or the
law fitted from its peak on. The *benefit* of a boundary is the reduction of the quantity above it, which training can
still change; ``budget`` and ``tolerance`` decide by it. ``readings.csv`` and ``balance.csv`` hold the boundaries and
the benefits, as computed from the kept traces.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pandas as pd

from stages.study.selectors import Drawn, compare, leave_one_out, told
from stages.study.summary import Json, ScopeEffect
from stages.study.tables import read_table, records

READ: Final = {  # the readings that the headline names
    "deviation, observed, observed": "the observed deviation",
    "deviation, observed, law": "the law of the deviation",
    "loss, observed, law": "the law of the loss",
}
_NOT_TESTED: Final = {
    "the paper's own formula for the gain": "it is in no public source; the law and the gains here are reconstructions",
    "well-known models and datasets": "one model of 135 M parameters and three toys; none of the paper's models",
}
_ORTHOGONAL: Final = "orthogonal to parameter-efficient fine-tuning"
_SHOWN: Final = ("verdict", "models", "reading", "cost_share", "mean_difference_points", "interval_examples")


def summarise(table: pd.DataFrame, drawn: Drawn, points: pd.DataFrame, leading: str, cost_cap: float) -> Json | None:
    """Compare every reading over all models and over the leading one; ``None``: the study has no readings.

    ``table`` are selectors' choices, readings' among them, ``points`` the measured boundaries of :func:`balance`.
    """
    mine = table[is_reading(table)]
    if mine.empty:
        return None
    scopes = {}
    for scope, part in (("all models", mine), (leading, mine[mine["model"] == leading])):
        by_trace = part["selector"] == "budget"  # p-values of these and of readings are adjusted apart
        scopes[scope] = [row for rows in (part[~by_trace], part[by_trace]) for row in compare(rows, drawn)]
    left = leave_one_out(mine[mine["selector"] != "budget"], cost_cap)
    correlated = _correlations(points)
    return {"scopes": scopes, "left_out": records(left), "claims": _claims(scopes), "correlations": correlated}


def is_reading(table: pd.DataFrame) -> "pd.Series[bool]":
    """Mask of the choices that are readings: their names list quantity, gain and curve."""
    return table["rule"].str.contains(", ")


def _claims(scopes: dict[str, list[Json]]) -> list[Json]:
    """Verdicts by these datasets' intervals: one wholly below zero contradicts; a wide one is consistent with much."""
    found = []
    for scope, rows in scopes.items():
        by_rule = {row["rule"]: row for row in rows}
        for one in (by_rule[name] for name in READ if name in by_rule):
            for claim, over in (
                ("effective at lower cost, no worse than full fine-tuning", one["compared"]),
                ("better than a baseline, the fixed depth of the same cost", one["over_fixed"]),
            ):
                if over:
                    more = {"models": scope, "reading": READ[one["rule"]], "cost_share": one["cost_share"]}
                    found.append(_claim(claim, over, more))
    return found + [_untested(claim, why) for claim, why in _NOT_TESTED.items()]


def _claim(claim: str, over: Json, more: Json) -> Json:
    verdict = "contradicts" if over["interval_examples"][1] < 0 else "consistent with"
    return {"claim": claim, **dict.fromkeys(_SHOWN), **over, **more, "verdict": verdict}


def _untested(claim: str, why: str) -> Json:
    return {"claim": claim, **dict.fromkeys(_SHOWN), "verdict": "not tested", "reading": why}


def orthogonality(leading: str, effects: Sequence[ScopeEffect]) -> list[Json]:
    """Return the claim that a narrower scope and adapters do not depend on each other, by every measured scope."""
    rows = [
        _claim(_ORTHOGONAL, one.lora_minus_weights.model_dump(), {"models": leading, "reading": one.scope})
        for one in effects
    ]
    return rows or [_untested(_ORTHOGONAL, "no adapters were trained above a boundary")]


def headline(found: Json, leading: str) -> str:
    """Return what the paper's selector comes to with the leading model, observed and by the law, and each claim."""
    rules, said = {one["rule"]: one for one in found["scopes"][leading]}, dict[str, list[str]]()
    parts = [f"by {words} {told(rules[name])}" for name, words in READ.items() if name in rules]
    for one in found["claims"]:
        if one["models"] in (leading, None):
            said.setdefault(one["claim"], []).append(one["verdict"] + f" ({one['reading']})" * bool(one["models"]))
    claims = " ".join(f"{claim.capitalize()}: {', '.join(verdict)}." for claim, verdict in said.items())
    return (
        f"Readings of the paper's selector with {leading}, against full fine-tuning (in the study, salf is the "
        f"observed deviation, the default of release 0.1.0): {'; '.join(parts)}. Claims of the abstract. {claims}"
    )


def balance(folder: Path, curves: pd.DataFrame) -> pd.DataFrame:
    """Return measured boundaries with their trace's benefits, points above full fine-tuning, and trained layers."""
    place = ["data_set", "model"]
    full = curves[curves["boundary"] == 0].set_index(place)["quality"]
    found = read_table(folder, "balance").merge(curves, on=[*place, "boundary"])
    found["over_full"] = found["quality"] - full.reindex(pd.MultiIndex.from_frame(found[place])).to_numpy()
    return found.assign(trained=found["layers"] - found["boundary"])


def _correlations(points: pd.DataFrame) -> list[Json]:
    """Spearman's correlations of benefits, and of depth alone, with quality over boundaries between 0 and L."""
    inner, found = points[(points["boundary"] > 0) & (points["trained"] > 0)], []
    benefits = ["deviation_observed", "deviation_law", "loss_observed", "loss_law", "trained"]
    for (data_set, model), rows in inner.groupby(["data_set", "model"], sort=False):
        ranks = rows[benefits].corrwith(rows["over_full"], method="spearman")
        found.append({"data_set": data_set, "model": model, "boundaries": len(rows), **ranks})
    return records(pd.DataFrame(found))
