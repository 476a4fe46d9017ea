"""Rules held against one of them over all data sets: differences, their intervals, and p-values by Holm's procedure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from stages.study.measured import Budget, Floats
from stages.study.resamples import Resamples, holm, interval, over_drawn_groups, over_groups, p_value
from stages.study.verdicts import ORACLE, Verdict

Gap = tuple[str, Floats, Floats]  # of one case: its group, the difference, and the same in every resample [R]


@dataclass(frozen=True)
class Comparison:
    """A rule's mean quality over another's, in points, over the cases that both were measured on, groups alike.

    Attributes:
        groups: how many groups of data sets.
        low, high: of other examples and seeds of these data sets.
        low_elsewhere, high_elsewhere: of other data sets, too.
        p_holm: of no difference with other examples and seeds, adjusted over the rules.
    """

    rule: str
    groups: int
    difference: float
    low: float
    high: float
    low_elsewhere: float
    high_elsewhere: float
    p_holm: float


def compared(
    verdicts: Sequence[Verdict],
    resamples: Mapping[tuple[str, str], Resamples],
    other: str,
    confidence: float,
    budget: Budget = "epochs",
    seed: int = 1,
) -> list[Comparison]:
    """Every rule against one of them.

    Args:
        verdicts: on all cases.
        resamples: of every case, by data set and model.
        other: the rule to compare with, at equal epochs.
        confidence: of the intervals.
        budget: of the others; ``compute``: at the operations of full fine-tuning.
        seed: of the draw of data sets.
    """
    methods = {(v.data_set, v.model, v.rule): v.method for v in verdicts if v.measured and v.unit == "points"}
    gaps: dict[str, list[Gap]] = {}
    for (data_set, model, rule), method in methods.items():
        one, theirs = resamples[data_set, model], methods.get((data_set, model, other))
        gap = one.case.over(method, theirs, budget) if theirs and rule not in (other, ORACLE) else None
        if theirs and gap is not None:
            gaps.setdefault(rule, []).append((one.case.group, np.array(gap), one.over(method, theirs, budget)))
    return over_all(gaps, confidence, seed)


def over_all(gaps: Mapping[str, Sequence[Gap]], confidence: float, seed: int = 1) -> list[Comparison]:
    """Of every rule the mean over its groups, intervals and adjusted p-value.

    Args:
        gaps: by rule, of every case.
        confidence: of the intervals.
        seed: of the draw of data sets.
    """
    drawn = {rule: [(group, values) for group, _, values in each] for rule, each in gaps.items()}
    means = {rule: over_groups(values) for rule, values in drawn.items()}
    adjusted = holm({rule: p_value(values) for rule, values in means.items()})
    return [
        Comparison(
            rule,
            len({group for group, _, _ in gaps[rule]}),
            float(over_groups([(group, gap) for group, gap, _ in gaps[rule]])),
            *interval(values, confidence),
            *interval(over_drawn_groups(drawn[rule], seed), confidence),
            adjusted[rule],
        )
        for rule, values in means.items()
    ]
