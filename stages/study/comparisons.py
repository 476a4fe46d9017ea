"""Selectors compared with one of them, or with the fixed depth of the same cost, over all datasets.

Two questions are answered apart. On *these* datasets only test examples and seeds are drawn; *elsewhere*, over
datasets like these, a group of datasets is the unit. p-values are adjusted over the selectors by Holm's procedure.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd

from stages.study.description import FULL, Budget
from stages.study.description import Case as Key
from stages.study.measured import Floats, Line
from stages.study.resamples import (
    CONFIDENCE,
    Resamples,
    detectable,
    holm,
    interval,
    over_groups,
    over_other_groups,
    p_value,
)
from stages.study.tables import Row, records
from stages.study.verdicts import ORACLE, SAME_COST, Drawn, measured

Gap = tuple[str, Floats]  # of one case: its group, and the difference as measured and in every resample [1+R]
COLUMNS: Final = ("rule", "groups", "difference", "low", "high", "p", "p_holm", "detectable", "detectable_holm")
ELSEWHERE: Final = ("low", "high", "p", "p_holm", "detectable", "detectable_holm")
_STEPS: Final = 40


@dataclass(frozen=True)
class Depth:
    """All cases, and their mean in points above full fine-tuning at shares of the layers that all reach [S]."""

    lines: tuple[Line, ...]
    shares: Floats
    mean: Floats
    low: Floats
    high: Floats


def by_depth(drawn: Sequence[Resamples]) -> Depth | None:
    """Average all cases over the share of frozen layers; ``None``: no case measures accuracy between 0 and L."""
    cases = [one for one in drawn if one.case.unit == "points" and set(one.case.curve()) - {0, one.case.layers}]
    if not cases:
        return None
    lines = tuple(one.case.line for one in cases)
    shares = np.linspace(0, min(line.deepest for line in lines), _STEPS + 1)
    mean = over_groups([(one.case.group, one.over_full @ one.case.line.weights(shares)) for one in cases])
    return Depth(lines, shares, mean[0], *interval(mean))


def compared(table: pd.DataFrame, drawn: Drawn, other: str, budget: Budget = "epochs") -> pd.DataFrame:
    """Compare every selector with one of them, where both were measured; see :func:`over_all` for the columns."""
    rows = records(measured(table))
    methods = {(row["data_set"], row["model"], row["rule"]): row["method"] for row in rows}
    gaps: dict[str, list[Gap]] = {}
    for (data_set, model, rule), method in methods.items():
        one, theirs = drawn[Key(data_set, model)], methods.get((data_set, model, other))
        gap = one.over(method, theirs, budget) if theirs and rule not in (other, ORACLE) else None
        if gap is not None:
            gaps.setdefault(rule, []).append((one.case.group, gap))
    return over_all(gaps)


def over_constant(table: pd.DataFrame, drawn: Drawn) -> pd.DataFrame:
    """Compare every selector that chooses several boundaries with a fixed depth: what looking at data is worth.

    The fixed depth freezes, for each model, the same share of the layers on all datasets, and costs as much on
    average, deciding excluded. A model is left out where no measured depth costs that.
    """
    rules: dict[str, dict[str, list[Row]]] = {}  # by model
    for row in records(measured(table)):
        case = drawn[Key(row["data_set"], row["model"])].case
        if row["rule"] != ORACLE and row["method"] in case.boundaries.keys() | case.between.keys():
            rules.setdefault(row["rule"], {}).setdefault(row["model"], []).append(row)
    gaps = {
        rule: [gap for chosen in models.values() for gap in _gaps(chosen, drawn)]
        for rule, models in rules.items()
        if any(len({row["boundary"] for row in chosen}) > 1 for chosen in models.values())
    }
    return over_all({rule: found for rule, found in gaps.items() if found})


def _gaps(chosen: Sequence[Row], drawn: Drawn) -> list[Gap]:
    """A selector's choices with one model minus the fixed depth that costs as much."""
    places = [(drawn[Key(row["data_set"], row["model"])], str(row["method"])) for row in chosen]
    cost = np.mean([one.case.cost_share(method) for one, method in places])
    share = share_of_cost(float(cost), [(one.case.data_set, one.case.line) for one, _ in places])
    if share is None:
        return []
    found: list[Gap] = []
    for one, method in places:
        fixed = one.over_full @ one.case.line.weights(np.array(share))
        found.append((one.case.group, one.quality(method) - one.quality(FULL) - fixed))
    return found


def share_of_cost(cost: float, lines: Sequence[tuple[str, Line]]) -> float | None:
    """Return the share of the layers whose freezing costs this much on average over groups; ``None``: none below 1."""
    deepest = min(line.deepest for _, line in lines)
    shares = np.unique([deepest, *(share for _, line in lines for share in line.shares if share < deepest)])
    costs = over_groups([(group, np.interp(shares, line.shares, line.costs)) for group, line in lines])  # falling
    within = costs[-1] - SAME_COST <= cost <= costs[0] + SAME_COST  # sums differ by their order
    return float(np.interp(cost, costs[::-1], shares[::-1])) if within else None


def over_all(gaps: Mapping[str, Sequence[Gap]]) -> pd.DataFrame:
    """Return every selector's mean difference in points over its groups of datasets, with two kinds of inference."""
    rows = [_comparison(rule, each) for rule, each in gaps.items()]
    found = pd.DataFrame(rows, columns=[*COLUMNS, *(f"{name}_elsewhere" for name in ELSEWHERE)])
    found = found.set_index(found["rule"].to_numpy())
    for end in ("", "_elsewhere"):
        p = found[f"p{end}"].dropna().astype(float)
        found[f"p_holm{end}"] = holm(p)
        level, freedoms = 1 - (1 - CONFIDENCE) / max(1, len(p)), found["groups"] - 1 if end else [np.inf] * len(found)
        factors = [detectable(1.0, n, level) / detectable(1.0, n) for n in freedoms]
        found[f"detectable_holm{end}"] = found[f"detectable{end}"] * factors
    return found


def _comparison(rule: str, gaps: Sequence[Gap]) -> Row:
    mean, groups = over_groups(gaps), len({group for group, _ in gaps})
    low, high = interval(mean)
    found = {"rule": rule, "groups": groups, "difference": mean[0], "low": low, "high": high}
    found |= {"p": p_value(mean), "detectable": detectable(mean[1:].std())}
    other = over_other_groups([(group, gap[0]) for group, gap in gaps])
    if other:
        found |= {f"{name}_elsewhere": value for name, value in other.items()}
        found["detectable_elsewhere"] = detectable(other["error"], groups - 1)
    return found


def significant(over: pd.DataFrame, end: str = "") -> "pd.Series[float]":
    """Return 1 where a selector is significantly better after Holm's procedure, -1 where worse, else 0."""
    return np.sign(over["difference"]).where(over[f"p_holm{end}"] < 1 - CONFIDENCE, 0.0)
