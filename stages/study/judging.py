"""Rules over all data sets, and a rule chosen without the data set that it is judged on.

Data sets count alike, however many models they were studied with, and those of one group (a test set and its
out-of-domain sister) are left out together. Only accuracies are averaged: a nat is no point.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from statistics import fmean

import numpy as np

from stages.study.measured import FULL, Floats
from stages.study.resamples import Resamples, holm, interval, over_groups, p_value
from stages.study.verdicts import ORACLE, Verdict


@dataclass(frozen=True)
class Overall:
    """One rule over the groups of data sets that it was measured on; regrets in points.

    Attributes:
        groups: how many groups of data sets.
        interpolated: on how many cases its boundary was read between measured ones.
        cost_share, deciding_share, regret, regret_at_cost, regret_cross_fitted, behind_full: means over groups.
        equal_compute_behind_full: behind full fine-tuning at its operations, mean over the groups where that was
            measured, of which there are ``equal_compute_groups``.
        worst: the largest regret on any data set, and where; ``worst_at_cost`` likewise.
        rank_correlation: mean over the cases where the rule predicts something.
    """

    rule: str
    groups: int
    interpolated: int
    cost_share: float
    deciding_share: float
    regret: float
    regret_at_cost: float
    regret_cross_fitted: float
    behind_full: float
    equal_compute_behind_full: float | None
    equal_compute_groups: int
    worst: float
    worst_on: str
    worst_at_cost: float
    worst_at_cost_on: str
    rank_correlation: float | None


@dataclass(frozen=True)
class LeftOut:
    """A rule chosen on all other groups, on the one that was left out: means over its cases."""

    group: str
    rule: str
    regret: float
    regret_at_cost: float
    regret_cross_fitted: float
    behind_full: float
    cost_share: float


@dataclass(frozen=True)
class Comparison:
    """A rule's mean quality over another's, in points, over the cases that both were measured on, groups alike."""

    rule: str
    other: str
    difference: float
    low: float
    high: float
    p_holm: float


def overall(verdicts: Sequence[Verdict]) -> list[Overall]:
    """Every rule over its groups, those that were measured on most groups first, then by regret."""
    counted = [v for v in verdicts if v.measured and v.unit == "points"]
    rules = dict.fromkeys(v.rule for v in counted)
    found = [_overall(rule, [v for v in counted if v.rule == rule]) for rule in rules]
    return sorted(found, key=lambda one: (-one.groups, one.regret, one.cost_share, one.rule))


def choose(verdicts: Sequence[Verdict], cost_cap: float) -> str | None:
    """The rule of the lowest mean regret among those within the cost cap that were measured on every group.

    Args:
        verdicts: on the groups that may be seen.
        cost_cap: largest mean share of full fine-tuning's cost, what deciding costs included.
    """
    everywhere = len({v.group for v in verdicts if v.unit == "points" and v.rule == ORACLE})
    fitting = [
        one
        for one in overall(verdicts)
        if one.groups == everywhere
        and one.cost_share + one.deciding_share <= cost_cap
        and one.rule not in (FULL, ORACLE)
    ]
    return min(fitting, key=lambda one: (one.regret, one.cost_share, one.rule)).rule if fitting else None


def leave_one_out(verdicts: Sequence[Verdict], cost_cap: float) -> list[LeftOut]:
    """For every group the rule that the others would choose, and what it comes to there."""
    found = []
    for group in sorted({v.group for v in verdicts if v.unit == "points"}):
        rule = choose([v for v in verdicts if v.group != group], cost_cap)
        mine = [v for v in verdicts if v.group == group and v.rule == rule and v.measured]
        if rule is not None and mine:
            one = asdict(_overall(rule, mine))
            found.append(LeftOut(group, **{field.name: one[field.name] for field in fields(LeftOut)[1:]}))
    return found


def compared(
    verdicts: Sequence[Verdict], resamples: Mapping[tuple[str, str], Resamples], other: str, confidence: float
) -> list[Comparison]:
    """Every rule against one of them, over the cases that both were measured on; p-values by Holm's procedure.

    Args:
        verdicts: on all cases.
        resamples: of every case, by data set and model; drawn independently of each other.
        other: the rule to compare with.
        confidence: of the intervals.
    """
    methods = {(v.data_set, v.model, v.rule): v.method for v in verdicts if v.measured and v.unit == "points"}
    drawn: dict[str, Floats] = {}
    means: dict[str, float] = {}
    for rule in dict.fromkeys(rule for _, _, rule in methods if rule not in (other, ORACLE)):
        both = [(d, m) for d, m, r in methods if r == rule and (d, m, other) in methods]
        pairs = [(resamples[case], methods[*case, rule], methods[*case, other]) for case in both]
        if pairs:
            drawn[rule] = over_groups([(one.case.group, one.difference(mine, theirs)) for one, mine, theirs in pairs])
            gaps = [(one.case, one.case.quality(mine) - one.case.quality(theirs)) for one, mine, theirs in pairs]
            means[rule] = float(over_groups([(case.group, np.array(gap)) for case, gap in gaps]))
    adjusted = holm({rule: p_value(values) for rule, values in drawn.items()})
    return [
        Comparison(rule, other, means[rule], *interval(values, confidence), adjusted[rule])
        for rule, values in drawn.items()
    ]


def _overall(rule: str, mine: Sequence[Verdict]) -> Overall:
    groups = {v.group: [w for w in mine if w.group == v.group] for v in mine}
    worst, at_cost = (max(mine, key=lambda v: getattr(v, name) or 0.0) for name in ("regret", "regret_at_cost"))
    correlations = [v.rank_correlation for v in mine if v.rank_correlation is not None]

    def means(name: str) -> list[float]:
        """Of every group that has the value."""
        there = ([value for v in group if (value := getattr(v, name)) is not None] for group in groups.values())
        return [fmean(values) for values in there if values]

    def mean(name: str) -> float:
        return fmean(means(name))

    longer = means("equal_compute_behind_full")

    return Overall(
        rule=rule,
        groups=len(groups),
        interpolated=sum(v.interpolated for v in mine),
        cost_share=mean("cost_share"),
        deciding_share=mean("deciding_share"),
        regret=mean("regret"),
        regret_at_cost=mean("regret_at_cost"),
        regret_cross_fitted=mean("regret_cross_fitted"),
        behind_full=mean("behind_full"),
        equal_compute_behind_full=fmean(longer) if longer else None,
        equal_compute_groups=len(longer),
        worst=worst.regret or 0.0,
        worst_on=f"{worst.data_set}, {worst.model}",
        worst_at_cost=at_cost.regret_at_cost or 0.0,
        worst_at_cost_on=f"{at_cost.data_set}, {at_cost.model}",
        rank_correlation=fmean(correlations) if correlations else None,
    )
