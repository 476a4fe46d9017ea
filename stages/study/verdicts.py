"""Each selector on each case and over all datasets, and the default chosen without the dataset it is judged on.

Datasets count alike, however many models they were studied with, and those of one group (a test set and its
out-of-domain sister) are left out together. Only accuracies are averaged, because a nat is no point.

Four regrets, because none alone is fair to all selectors. ``regret``: worse than the best measured boundary, whatever
that costs. ``regret_at_cost``: worse than the best of equal or lower cost, deciding included; a selector that freezes
nearly everything has almost none. ``regret_cross_fitted`` and ``regret_at_cost_cross_fitted``: the same, but the best
is found with other seeds on other test examples than it is scored on, so that luck does not count; may be negative.
"""

from collections.abc import Mapping, Sequence
from typing import Final

import pandas as pd

from salf.files import rounded
from stages.study.description import FULL
from stages.study.description import Case as Key
from stages.study.measured import DIGITS, PRICE_ONLY, Case, Choice
from stages.study.resamples import Resamples, cross_fitted, holm, interval, p_value
from stages.study.tables import Row, columns

Drawn = Mapping[Key, Resamples]
ORACLE: Final = "oracle"
SAME_COST: Final = 1e-9  # shares of one boundary's cost differ by rounding alone
# Columns of table.csv; a value that was not measured is missing.
#   method: the fine-tune that does what the selector says; interpolated: it is between measured boundaries
#   unit: of qualities and regrets; seeds: how many were measured
#   cost_share: FLOPs at equal epochs as a share of full fine-tuning's; deciding_share: those spent on deciding
#   behind_full: full fine-tuning's quality minus the selector's; p: of no difference; p_holm: adjusted over the case
COLUMNS: Final = columns(
    "data_set group model rule selector boundary:Int64 method unit interpolated:bool seeds:Int64 quality:float "
    "quality_low:float quality_high:float cost_share:float deciding_share:float regret:float regret_at_cost:float "
    "regret_cross_fitted:float regret_at_cost_cross_fitted:float behind_full:float behind_full_low:float "
    "behind_full_high:float p:float p_holm:float best_boundary:Int64 reason"
)
_MEANS: Final = [
    *("cost_share", "deciding_share", "regret", "regret_at_cost", "regret_cross_fitted"),
    *("regret_at_cost_cross_fitted", "behind_full"),
]


def verdicts(drawn: Drawn) -> pd.DataFrame:
    """Return a row per case and selector, method without a boundary, or oracle, with ``COLUMNS``."""
    rows = [row for one in drawn.values() for row in _of_case(one)]
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype(COLUMNS)


def measured(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows in points whose fine-tune and whose case's full fine-tuning were measured or interpolated."""
    return table[(table["unit"] == "points") & table["behind_full"].notna()]


def _of_case(resamples: Resamples) -> list[Row]:
    case = resamples.case
    found = [_row(choice, resamples) for choice in [*case.choices, *_own_methods(case), _oracle(case)]]
    compared = {row["rule"]: row["p"] for row in found if "p" in row and row["rule"] != ORACLE}
    adjusted = holm(pd.Series(compared, dtype=float))
    return [rounded({**row, "p_holm": adjusted.get(row["rule"])}) for row in found]


def method_of(case: Case, choice: Choice) -> str:
    """Return the measured method that does what a selector says; empty: there is none."""
    if (choice.selector, "epochs") in case.runs and choice.selector not in case.boundaries:
        return choice.selector
    by_boundary = {boundary: method for method, boundary in {**case.between, **case.boundaries}.items()}
    return by_boundary.get(-1 if choice.boundary is None else choice.boundary, "")


def _row(choice: Choice, resamples: Resamples) -> Row:
    case, method = resamples.case, method_of(resamples.case, choice)
    row = {
        **{name: getattr(case, name) for name in ("data_set", "group", "model", "unit")},
        **{name: getattr(choice, name) for name in ("rule", "selector", "boundary", "deciding_share", "reason")},
        "method": method,
        "interpolated": method in case.between,
        "seeds": 0,
    }
    if (method, "epochs") not in case.runs:
        return row
    return row | _quality(method, resamples) | _regrets(case, method, choice.deciding_share)


def _quality(method: str, resamples: Resamples) -> Row:
    """Quality, and how much worse it is than full fine-tuning over the seeds that both have."""
    case = resamples.case
    low, high = interval(resamples.quality(method))
    found = {
        "seeds": len(case.runs[method, "epochs"].seeds),
        "quality": case.quality(method),
        "quality_low": low,
        "quality_high": high,
        "cost_share": case.cost_share(method),
    }
    over = resamples.over(method, FULL)
    if over is None:
        return found
    low, high = interval(-over)
    found |= {"behind_full": -over[0], "behind_full_low": low, "behind_full_high": high}
    return found | ({"p": p_value(over)} if method != FULL else {})


def _regrets(case: Case, method: str, deciding_share: float) -> Row:
    """Against the boundaries measured at equal epochs, over the seeds that the method has too."""
    curve, seeds = case.curve(), case.common_seeds(method, FULL)
    share = case.cost_share(method) + deciding_share
    if not seeds:
        return {}
    own = case.quality(method, seeds=seeds)
    quality = {m: case.quality(m, seeds=seeds) for m in curve.values()}
    best = max(curve, key=lambda boundary: (quality[curve[boundary]], boundary))
    cheaper = [m for m in curve.values() if case.cost_share(m) <= share + SAME_COST]
    return {
        "regret": quality[curve[best]] - own,
        "regret_at_cost": max(0.0, max((quality[m] for m in cheaper), default=own) - own),
        "regret_cross_fitted": _found_elsewhere(case, list(curve.values()), seeds) - own,
        "regret_at_cost_cross_fitted": _found_elsewhere(case, list(dict.fromkeys([*cheaper, method])), seeds) - own,
        "best_boundary": best,
    }


def _found_elsewhere(case: Case, methods: Sequence[str], seeds: Sequence[int]) -> float:
    """Quality of the best of some methods, found with other seeds and examples than it is scored on."""
    return round(case.scale * float(cross_fitted([case.runs[m, "epochs"].only(seeds) for m in methods]).mean()), DIGITS)


def _own_methods(case: Case) -> list[Choice]:
    """Methods without a boundary that no selector is named after: they represent themselves."""
    named = {choice.selector for choice in case.choices}
    at_boundary = case.boundaries.keys() | case.between.keys()
    methods = [method for method, budget in case.runs if budget == "epochs" and method not in at_boundary]
    return [Choice(m, m, None, "a method of its own, measured as it is") for m in methods if m not in named]


def _oracle(case: Case) -> Choice:
    """The best measured boundary: the choice of a selector that had seen the test split."""
    curve = case.curve()
    best = max(curve, key=lambda boundary: (case.quality(curve[boundary]), boundary))
    return Choice(ORACLE, ORACLE, best, f"the best of {len(curve)} measured boundaries, seen afterwards")


def overall(table: pd.DataFrame) -> pd.DataFrame:
    """Return each selector over its groups of datasets, indexed by name: those on most groups first, then by regret."""
    mine = measured(table)
    by_group = mine.groupby(["rule", "group"])[_MEANS].mean()
    found = by_group.groupby("rule").mean()
    behind = by_group["behind_full"].groupby("rule")
    found["groups"], found["cases"] = behind.size(), mine.groupby("rule").size()
    found["groups_behind"] = behind.agg(lambda values: (values > 0).sum())
    found["price"] = found["cost_share"] + found["deciding_share"]
    order = ["groups", "regret", "cost_share", "rule"]
    return found.sort_values(order, ascending=[False, True, True, True])


def choose(table: pd.DataFrame, cost_cap: float) -> str | None:
    """Return the selector of the lowest mean regret within the cost cap that was measured on every case."""
    everywhere = (measured(table)["rule"] == ORACLE).sum()
    rules = overall(table).drop([FULL, ORACLE], errors="ignore")
    fitting = rules[(rules["cases"] == everywhere) & (rules["price"] <= cost_cap)]
    return str(fitting.sort_values(["regret", "cost_share", "rule"]).index[0]) if len(fitting) else None


def leave_one_out(table: pd.DataFrame, cost_cap: float) -> pd.DataFrame:
    """Return for every group the selector that the others would choose, and its figures on the group's cases."""
    found = []
    for group in sorted(table.loc[table["unit"] == "points", "group"].unique()):
        rule = choose(table[table["group"] != group], cost_cap)
        own = table[(table["group"] == group) & (table["rule"] == rule)]
        if len(measured(own)):
            chosen = overall(own).reset_index().assign(group=group)  # its cost includes deciding
            found.append(chosen.assign(cost_share=chosen["price"]).drop(columns="price"))
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame()


def degenerate(table: pd.DataFrame, model: str) -> dict[str, str]:
    """Return selectors that cannot show what looking at data or model is worth, and why, by choices for a model."""
    mine = table[(table["model"] == model) & ~table["selector"].isin([FULL, ORACLE])]
    deepest = mine.dropna(subset="boundary").groupby("rule")["boundary"].max()
    freezing = {
        str(rule): f"freezes {'at most one layer' if most else 'nothing'} with {model}"
        for rule, most in deepest[deepest <= 1].items()
    }
    blind = table.loc[table["selector"].isin(PRICE_ONLY), "rule"]
    return freezing | dict.fromkeys(blind, "sees the cost alone")
