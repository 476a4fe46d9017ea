"""Rules over all data sets, and a rule chosen without the data set that it is judged on.

Data sets count alike, however many models they were studied with, and those of one group (a test set and its
out-of-domain sister) are left out together. Only accuracies are averaged: a nat is no point.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median

from stages.study.measured import FULL, PRICE_ONLY
from stages.study.verdicts import ORACLE, Verdict


@dataclass(frozen=True)
class Overall:
    """One rule over the groups of data sets that it was measured on; regrets in points.

    Attributes:
        groups: how many groups of data sets.
        cases, asked: how many data sets with a model were measured, of those where the rule chose.
        interpolated: on how many cases its boundary was read between measured ones.
        cost_share, deciding_share, regret, regret_at_cost, behind_full: means over groups; so are
            ``regret_cross_fitted`` and ``regret_at_cost_cross_fitted``.
        behind_full_median: over groups; behind full fine-tuning are ``groups_behind`` of them.
        worst: the largest regret on any case, and where; ``worst_at_cost`` likewise.
        rank_correlation: mean over the groups where the rule predicts something.
    """

    rule: str
    groups: int
    cases: int
    asked: int
    interpolated: int
    cost_share: float
    deciding_share: float
    regret: float
    regret_at_cost: float
    regret_cross_fitted: float
    regret_at_cost_cross_fitted: float
    behind_full: float
    behind_full_median: float
    groups_behind: int
    worst: float
    worst_on: str
    worst_at_cost: float
    worst_at_cost_on: str
    rank_correlation: float | None

    @property
    def price(self) -> float:
        """What the rule's fine-tune costs, and deciding."""
        return self.cost_share + self.deciding_share


def overall(verdicts: Sequence[Verdict]) -> list[Overall]:
    """Every rule over its groups, those that were measured on most groups first, then by regret."""
    counted = [v for v in verdicts if v.unit == "points"]
    rules = {v.rule: [w for w in counted if w.rule == v.rule] for v in counted if v.measured}
    found = [_overall(rule, mine) for rule, mine in rules.items()]
    return sorted(found, key=lambda one: (-one.groups, one.regret, one.cost_share, one.rule))


def choose(verdicts: Sequence[Verdict], cost_cap: float) -> str | None:
    """The rule of the lowest mean regret among those within the cost cap that were measured on every case.

    Full fine-tuning is what a rule is to save on, and never chosen.

    Args:
        verdicts: on the groups that may be seen.
        cost_cap: largest mean share of full fine-tuning's cost, what deciding costs included.
    """
    everywhere = sum(v.unit == "points" and v.rule == ORACLE for v in verdicts)
    fitting = [
        one
        for one in overall(verdicts)
        if one.cases == everywhere and one.price <= cost_cap and one.rule not in (FULL, ORACLE)
    ]
    return min(fitting, key=lambda one: (one.regret, one.cost_share, one.rule)).rule if fitting else None


def leave_one_out(verdicts: Sequence[Verdict], cost_cap: float) -> list[tuple[str, Overall]]:
    """For every group the rule that the others would choose, and what it comes to on the group's cases."""
    found = []
    for group in sorted({v.group for v in verdicts if v.unit == "points"}):
        rule = choose([v for v in verdicts if v.group != group], cost_cap)
        mine = [v for v in verdicts if v.group == group and v.rule == rule and v.measured]
        if rule is not None and mine:
            found.append((group, _overall(rule, mine)))
    return found


def degenerate(verdicts: Sequence[Verdict], model: str) -> dict[str, str]:
    """Rules that say nothing about what looking at data or model is worth, and why.

    Args:
        verdicts: on all cases.
        model: whose choices count.
    """
    boundaries: dict[str, set[int]] = {}
    for v in verdicts:
        if v.model == model and v.boundary is not None and v.selector not in (FULL, ORACLE):
            boundaries.setdefault(v.rule, set()).add(v.boundary)
    barely = {rule: max(chosen) for rule, chosen in boundaries.items() if max(chosen) <= 1}
    freezing = {
        rule: f"freezes {'at most one layer' if most else 'nothing'} with {model}" for rule, most in barely.items()
    }
    return freezing | {v.rule: "sees the cost alone" for v in verdicts if v.selector in PRICE_ONLY}


def _overall(rule: str, asked: Sequence[Verdict]) -> Overall:
    mine = [v for v in asked if v.measured]
    groups = {v.group: [w for w in mine if w.group == v.group] for v in mine}
    worst, at_cost = (max(mine, key=lambda v: getattr(v, name) or 0.0) for name in ("regret", "regret_at_cost"))

    def means(name: str) -> list[float]:
        """Of every group that has the value."""
        there = ([value for v in group if (value := getattr(v, name)) is not None] for group in groups.values())
        return [fmean(values) for values in there if values]

    def mean(name: str) -> float:
        return fmean(means(name))

    behind, correlations = means("behind_full"), means("rank_correlation")
    return Overall(
        rule=rule,
        groups=len(groups),
        cases=len(mine),
        asked=len(asked),
        interpolated=sum(v.interpolated for v in mine),
        cost_share=mean("cost_share"),
        deciding_share=mean("deciding_share"),
        regret=mean("regret"),
        regret_at_cost=mean("regret_at_cost"),
        regret_cross_fitted=mean("regret_cross_fitted"),
        regret_at_cost_cross_fitted=mean("regret_at_cost_cross_fitted"),
        behind_full=fmean(behind),
        behind_full_median=median(behind),
        groups_behind=sum(value > 0 for value in behind),
        worst=worst.regret or 0.0,
        worst_on=f"{worst.data_set}, {worst.model}",
        worst_at_cost=at_cost.regret_at_cost or 0.0,
        worst_at_cost_on=f"{at_cost.data_set}, {at_cost.model}",
        rank_correlation=fmean(correlations) if correlations else None,
    )
