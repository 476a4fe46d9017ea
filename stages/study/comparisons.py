"""Rules held against one of them over all data sets: differences, their intervals, and p-values by Holm's procedure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from stages.study.measured import Budget, Floats
from stages.study.resamples import Resamples, holm, interval, over_groups, over_other_groups, p_value
from stages.study.verdicts import ORACLE, Verdict

Gap = tuple[str, Floats, Floats]  # of one case: its group, the difference, and the same in every resample [R]


@dataclass(frozen=True)
class Comparison:
    """A rule's mean quality over another's, in points, over the cases that both were measured on, groups alike.

    Attributes:
        groups: how many groups of data sets.
        low, high: of other test examples and seeds of these data sets.
        low_elsewhere, high_elsewhere: of other data sets, too; ``None``: it is one.
        p_holm: of no difference with other test examples and seeds, adjusted over the rules.
    """

    rule: str
    groups: int
    difference: float
    low: float
    high: float
    low_elsewhere: float | None
    high_elsewhere: float | None
    p_holm: float


def compared(
    verdicts: Sequence[Verdict],
    resamples: Mapping[tuple[str, str], Resamples],
    other: str,
    confidence: float,
    budget: Budget = "epochs",
) -> list[Comparison]:
    """Every rule against one of them.

    Args:
        verdicts: on all cases.
        resamples: of every case, by data set and model.
        other: the rule to compare with, at equal epochs.
        confidence: of the intervals.
        budget: of the others; ``compute``: at the operations of full fine-tuning.
    """
    methods = {(v.data_set, v.model, v.rule): v.method for v in verdicts if v.measured and v.unit == "points"}
    gaps: dict[str, list[Gap]] = {}
    for (data_set, model, rule), method in methods.items():
        one, theirs = resamples[data_set, model], methods.get((data_set, model, other))
        gap = one.case.over(method, theirs, budget) if theirs and rule not in (other, ORACLE) else None
        if theirs and gap is not None:
            gaps.setdefault(rule, []).append((one.case.group, np.array(gap), one.over(method, theirs, budget)))
    return over_all(gaps, confidence)


def over_all(gaps: Mapping[str, Sequence[Gap]], confidence: float) -> list[Comparison]:
    """Of every rule the mean over its groups, intervals and adjusted p-value.

    Args:
        gaps: by rule, of every case.
        confidence: of the intervals.
    """
    means = {rule: over_groups([(group, values) for group, _, values in each]) for rule, each in gaps.items()}
    adjusted = holm({rule: p_value(values) for rule, values in means.items()})
    return [_comparison(rule, each, means[rule], adjusted[rule], confidence) for rule, each in gaps.items()]


def _comparison(rule: str, gaps: Sequence[Gap], drawn: Floats, p_holm: float, confidence: float) -> Comparison:
    measured = [(group, gap) for group, gap, _ in gaps]
    low, high = interval(drawn, confidence)
    low_elsewhere, high_elsewhere = over_other_groups(measured, confidence) or (None, None)
    return Comparison(
        rule=rule,
        groups=len({group for group, _ in measured}),
        difference=float(over_groups(measured)),
        low=low,
        high=high,
        low_elsewhere=low_elsewhere,
        high_elsewhere=high_elsewhere,
        p_holm=p_holm,
    )
