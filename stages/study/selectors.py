"""Selectors' choices on every case, compared with full fine-tuning and with the fixed depth of the same cost.

Datasets count alike, however many models they were studied with, and those of one group (a test set and its
out-of-domain sister) are left out together. Only accuracies are averaged, because a nat is no point.
"""

from collections.abc import Mapping, Sequence
from typing import Final

import pandas as pd

from salf.files import rounded
from stages.study.comparisons import Gap, above_fixed_depth, above_full, estimates
from stages.study.description import FULL
from stages.study.description import Case as Key
from stages.study.measured import PRICE_ONLY, Case, Choice
from stages.study.resamples import CONFIDENCE, Resamples
from stages.study.summary import Json
from stages.study.tables import columns, records

Drawn = Mapping[Key, Resamples]
# Columns of table.csv; a value that was not measured is missing.
#   method: the fine-tune that does what the selector says; interpolated: it is between measured boundaries
#   unit: of qualities and differences; seeds: how many were measured
#   cost_share: FLOPs at equal epochs as a share of full fine-tuning's; deciding_share: those spent on deciding
#   over_full: quality above full fine-tuning's over the seeds that both have
_COLUMNS: Final = columns(
    "data_set group model rule selector boundary:Int64 method unit interpolated:bool seeds:Int64 quality:float "
    "cost_share:float deciding_share:float over_full:float reason"
)
_MEANS: Final = ["cost_share", "deciding_share", "over_full"]


def choices(drawn: Drawn) -> pd.DataFrame:
    """Return a row per case and selector."""
    rows = [_row(choice, one) for one in drawn.values() for choice in one.case.choices]
    return pd.DataFrame(rows, columns=list(_COLUMNS)).astype(_COLUMNS)


def _row(choice: Choice, one: Resamples) -> Json:
    case, method = one.case, method_of(one.case, choice)
    row = {
        **{name: getattr(case, name) for name in ("data_set", "group", "model", "unit")},
        **{name: getattr(choice, name) for name in ("rule", "selector", "boundary", "deciding_share", "reason")},
        "method": method,
        "interpolated": method in case.between,
        "seeds": 0,
    }
    if (method, "epochs") not in case.runs:
        return row
    over = one.over(method, FULL)
    row |= {"seeds": len(case.runs[method, "epochs"].seeds), "quality": case.quality(method)}
    return rounded({**row, "cost_share": case.cost_share(method), "over_full": None if over is None else over[0]})


def method_of(case: Case, choice: Choice) -> str:
    """Return the measured method that does what a selector says; empty: there is none."""
    if (choice.selector, "epochs") in case.runs and choice.selector not in case.boundaries:
        return choice.selector
    by_boundary = {boundary: method for method, boundary in {**case.between, **case.boundaries}.items()}
    return by_boundary.get(-1 if choice.boundary is None else choice.boundary, "")


def measured(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows in points whose fine-tune and whose case's full fine-tuning were measured or interpolated."""
    return table[(table["unit"] == "points") & table["over_full"].notna()]


def overall(table: pd.DataFrame) -> pd.DataFrame:
    """Return each selector's means over its groups of datasets, those on most groups first, then the best."""
    mine = measured(table)
    by_group = mine.groupby(["rule", "group"])[_MEANS].mean()
    found = by_group.groupby("rule").mean()
    worse = by_group["over_full"].groupby("rule")
    found["groups"], found["cases"] = worse.size(), mine.groupby("rule").size()
    found["groups_worse"] = worse.agg(lambda values: (values < 0).sum())
    return found.sort_values(["groups", "over_full", "cost_share", "rule"], ascending=[False, False, True, True])


def compare(table: pd.DataFrame, drawn: Drawn) -> list[Json]:
    """Return every selector's means, and its differences: ``compared`` with full fine-tuning, and ``over_fixed``.

    The latter, from the fixed depth of the same cost, is ``None`` for those that choose one boundary for each model.
    """
    chosen = {
        str(rule): [(drawn[Key(row["data_set"], row["model"])], str(row["method"])) for row in records(rows)]
        for rule, rows in measured(table).groupby("rule")
    }
    over_full = {rule: above_full(each) for rule, each in chosen.items() if rule != FULL}
    over_fixed: dict[str, list[Gap]] = {}
    for rule, rows in measured(table).groupby("rule"):
        freezes = all(method in one.case.boundaries | one.case.between for one, method in chosen[str(rule)])
        if freezes and (rows.groupby("model")["boundary"].nunique() > 1).any():
            over_fixed[str(rule)] = above_fixed_depth(chosen[str(rule)])
    compared = {
        "compared": estimates({rule: gaps for rule, gaps in over_full.items() if gaps}),
        "over_fixed": estimates({rule: gaps for rule, gaps in over_fixed.items() if gaps}),
    }
    return [
        row | {name: one[row["rule"]].model_dump() if row["rule"] in one else None for name, one in compared.items()}
        for row in records(overall(table).reset_index())
    ]


def choose(table: pd.DataFrame, cost_cap: float) -> str | None:
    """Return the best selector on the mean within the cost cap that was measured on every case."""
    mine = measured(table)
    rules, cases = overall(table), mine[["data_set", "model"]].drop_duplicates()
    price = rules["cost_share"] + rules["deciding_share"]
    fitting = rules[(rules["cases"] == len(cases)) & (price <= cost_cap) & (rules.index != FULL)]
    return str(fitting.index[0]) if len(fitting) else None


def leave_one_out(table: pd.DataFrame, cost_cap: float) -> pd.DataFrame:
    """Return for every group the selector that the others would choose, and its figures on the group's cases."""
    found = []
    for group in sorted(table.loc[table["unit"] == "points", "group"].unique()):
        rule = choose(table[table["group"] != group], cost_cap)
        own = table[(table["group"] == group) & (table["rule"] == rule)]
        found.append(overall(own).reset_index().assign(group=group))
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame()


def degenerate(table: pd.DataFrame, model: str) -> dict[str, str]:
    """Return selectors that cannot show what looking at data or model is worth, and why, by choices for a model."""
    mine = table[(table["model"] == model) & (table["selector"] != FULL)]
    deepest = mine.dropna(subset="boundary").groupby("rule")["boundary"].max()
    freezing = {
        str(rule): f"freezes {'at most one layer' if most else 'nothing'} with {model}"
        for rule, most in deepest[deepest <= 1].items()
    }
    blind = table.loc[table["selector"].isin(PRICE_ONLY), "rule"]
    return freezing | dict.fromkeys(blind, "sees the cost alone")


def significant(over: Json, end: str = "") -> int:
    """Return 1 where a selector is significantly better after Holm's procedure, -1 where worse, else 0."""
    p = over[f"p_holm{end}"]
    return 0 if p is None or p >= 1 - CONFIDENCE else 1 if over["mean_difference_points"] > 0 else -1


def headline(scope: str, rows: Sequence[Json]) -> str:
    """Return what looking at the data or the model is worth: selectors that are better or worse than a fixed depth."""
    looking = [row["over_fixed"] for row in rows if row["over_fixed"] and not row["degenerate"]]
    if not looking:
        return ""
    counts = [sum(significant(one, end) == way for one in looking) for way in (1, -1) for end in ("", "_datasets")]
    return (
        "Of {} selectors that look at the data or the model ({}), {} on these datasets and {} over datasets like these "
        "are significantly better than a fixed depth of the same cost; {} and {} are significantly worse (Holm's "
        "procedure, at {:.0%})."
    ).format(len(looking), scope, *counts, 1 - CONFIDENCE)


def told(row: Json) -> str:
    """A selector's cost and points."""
    return f"it costs {row['cost_share']:.0%} and is {worse(row['over_full'])}"


def worse(points: float) -> str:
    """A difference in words."""
    points = round(points, 2)
    return f"{abs(points):.2f} points {'worse' if points < 0 else 'better'}"
