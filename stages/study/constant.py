"""Every rule held against a fixed depth of the same price: what looking at data and model is worth.

A rule that freezes more costs less and loses more, whatever it looks at; beside full fine-tuning, or beside a rule of
another price, that says little. Its twin freezes the first d layers on all data sets, d by model and such that both
cost the same on the mean (what deciding costs aside); between measured boundaries quality and cost go straight.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.optimize import brentq

from stages.study.comparisons import Comparison, Gap, over_all
from stages.study.depth import Line
from stages.study.measured import FULL, Case
from stages.study.resamples import Resamples
from stages.study.verdicts import ORACLE, SAME_COST, Verdict


def over_constant(
    verdicts: Sequence[Verdict], resamples: Mapping[tuple[str, str], Resamples], confidence: float
) -> list[Comparison]:
    """Every rule that chooses more than one boundary with some model, against its twin.

    A model is left out where no depth short of all layers costs what the rule does.

    Args:
        verdicts: on all cases.
        resamples: of every case, by data set and model.
        confidence: of the intervals.
    """
    mine = [v for v in verdicts if v.unit == "points" and _at_boundary(v, resamples[v.data_set, v.model].case)]
    lines = {key: Line.of(resamples[key]) for key in {(v.data_set, v.model) for v in mine}}
    rules = dict.fromkeys(v.rule for v in mine if v.rule != ORACLE)
    gaps: dict[str, list[Gap]] = {}
    for rule in rules:
        of_rule = [v for v in mine if v.rule == rule]
        models = {model: [v for v in of_rule if v.model == model] for model in dict.fromkeys(v.model for v in of_rule)}
        if any(len({v.boundary for v in chosen}) > 1 for chosen in models.values()):
            gaps[rule] = [gap for chosen in models.values() for gap in _gaps(chosen, lines, resamples)]
    return over_all({rule: found for rule, found in gaps.items() if found}, confidence)


def _at_boundary(verdict: Verdict, case: Case) -> bool:
    return verdict.measured and verdict.method in case.boundaries.keys() | case.between.keys()


def _gaps(
    chosen: Sequence[Verdict], lines: Mapping[tuple[str, str], Line], resamples: Mapping[tuple[str, str], Resamples]
) -> list[Gap]:
    """What a rule's choices with one model are ahead of the fixed depth that costs as much."""
    price = np.mean([resamples[v.data_set, v.model].case.cost_share(v.method) for v in chosen])
    share = _priced(float(price), [lines[v.data_set, v.model] for v in chosen])
    if share is None:
        return []
    found: list[Gap] = []
    for verdict in chosen:
        one, line = resamples[verdict.data_set, verdict.model], lines[verdict.data_set, verdict.model]
        weights = line.weights(np.array(share))
        own = one.case.quality(verdict.method) - one.case.quality(FULL)
        gap, drawn = own - line.over_full @ weights, one.over(verdict.method, FULL) - line.drawn @ weights
        found.append((verdict.group, np.array(gap), drawn))
    return found


def _priced(price: float, lines: Sequence[Line]) -> float | None:
    """The share of the layers that costs so much on the mean; ``None``: none short of all layers does."""
    deepest = min(line.deepest for line in lines)

    def dearer(share: float) -> float:
        return float(np.mean([np.interp(share, line.shares, line.costs) for line in lines])) - price

    for end in (0.0, deepest):  # a rule that always stops there costs the same but for the order of the sums
        if abs(dearer(end)) < SAME_COST:
            return end
    return float(brentq(dearer, 0, deepest)) if dearer(0) > 0 > dearer(deepest) else None
