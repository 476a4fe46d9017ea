"""Rules held against one of them over all data sets: differences, their intervals, and p-values by Holm's procedure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from stages.study.measured import Budget, Floats
from stages.study.resamples import Resamples, detectable, holm, interval, over_groups, over_other_groups, p_value
from stages.study.verdicts import ORACLE, Verdict

Gap = tuple[str, Floats, Floats]  # of one case: its group, the difference, and the same in every resample [R]


@dataclass(frozen=True)
class Comparison:
    """A rule's mean quality over another's, in points, over the cases that both were measured on, groups alike.

    Two questions are answered apart. On *these* datasets only test examples and seeds are drawn; *elsewhere*, over
    datasets like these, a group of datasets is the unit (``None``: there is one).

    Attributes:
        groups: how many groups of datasets.
        low, high, p: on these datasets.
        p_holm: the same, adjusted over the rules by Holm's procedure.
        detectable: the true difference that a test on these datasets finds with a power of 80 %, not adjusted;
            ``detectable_holm``: adjusted over the rules, at the first step.
    """

    rule: str
    groups: int
    difference: float
    low: float
    high: float
    p: float
    p_holm: float
    detectable: float
    detectable_holm: float
    low_elsewhere: float | None = None
    high_elsewhere: float | None = None
    p_elsewhere: float | None = None
    p_holm_elsewhere: float | None = None
    detectable_elsewhere: float | None = None
    detectable_holm_elsewhere: float | None = None

    def significant(self, confidence: float, *, elsewhere: bool = False) -> int:
        """1: significantly better after Holm's procedure, -1: significantly worse, 0: neither."""
        p = self.p_holm_elsewhere if elsewhere else self.p_holm
        return int(np.sign(self.difference)) if p is not None and p < 1 - confidence else 0


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
    """Of every rule the mean over its groups, intervals and adjusted p-values.

    Args:
        gaps: by rule, of every case.
        confidence: of the intervals.
    """
    means = {rule: over_groups([(group, values) for group, _, values in each]) for rule, each in gaps.items()}
    measured = {rule: [(group, gap) for group, gap, _ in each] for rule, each in gaps.items()}
    others = {rule: over_other_groups(each, confidence) for rule, each in measured.items()}
    p = {rule: p_value(values) for rule, values in means.items()}
    p_elsewhere = {rule: other.p for rule, other in others.items() if other}
    adjusted, adjusted_elsewhere = holm(p), holm(p_elsewhere)
    found = []
    for rule, drawn in means.items():
        groups, other, error = len({group for group, _ in measured[rule]}), others[rule], float(drawn.std())
        low, high = interval(drawn, confidence)
        one = Comparison(
            rule=rule,
            groups=groups,
            difference=float(over_groups(measured[rule])),
            low=low,
            high=high,
            p=p[rule],
            p_holm=adjusted[rule],
            detectable=detectable(error, confidence),
            detectable_holm=detectable(error, 1 - (1 - confidence) / len(p)),
        )
        if other:
            one = replace(
                one,
                low_elsewhere=other.low,
                high_elsewhere=other.high,
                p_elsewhere=other.p,
                p_holm_elsewhere=adjusted_elsewhere[rule],
                detectable_elsewhere=detectable(other.error, confidence, groups - 1),
                detectable_holm_elsewhere=detectable(other.error, 1 - (1 - confidence) / len(p_elsewhere), groups - 1),
            )
        found.append(one)
    return found
