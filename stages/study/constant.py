"""Every rule held against a fixed depth of the same price: what looking at data and model is worth.

A rule that freezes more costs less and loses more, whatever it looks at; beside full fine-tuning, or beside a rule of
another price, that says little. Its twin freezes the first d layers on all data sets, d by model and such that both
cost the same on the mean (what deciding costs aside); between measured boundaries quality and cost go straight.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy.optimize import brentq

from stages.study.comparisons import Comparison, Gap, over_all
from stages.study.measured import FULL, Case, Floats
from stages.study.resamples import Resamples, over_groups
from stages.study.verdicts import ORACLE, SAME_COST, Verdict

_STEPS: Final = 40


@dataclass(frozen=True)
class _Line:
    """The measured boundaries short of L [B]: their cost, and points over full fine-tuning, resampled too [R, B]."""

    boundaries: Floats
    costs: Floats
    over_full: Floats
    drawn: Floats

    @classmethod
    def of(cls, one: Resamples) -> "_Line":
        curve = {boundary: method for boundary, method in one.case.curve().items() if boundary < one.case.layers}
        return cls(
            np.array(list(curve), dtype=float),
            np.array([one.case.cost_share(method) for method in curve.values()]),
            np.array([one.case.quality(method) - one.case.quality(FULL) for method in curve.values()]),
            np.array([one.over(method, FULL) for method in curve.values()]).T,
        )

    def cost(self, depth: float) -> float:
        """Share of full fine-tuning's."""
        return float(np.interp(depth, self.boundaries, self.costs))

    def regret(self, depth: float) -> float:
        """Points behind the best of these boundaries."""
        return float(self.over_full.max() - np.interp(depth, self.boundaries, self.over_full))

    def at(self, depth: float) -> tuple[float, Floats]:
        """Points over full fine-tuning, and the same in every resample [R]."""
        weights = np.array([np.interp(depth, self.boundaries, unit) for unit in np.eye(len(self.boundaries))])
        return float(self.over_full @ weights), self.drawn @ weights


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
    lines = {key: _Line.of(resamples[key]) for key in {(v.data_set, v.model) for v in mine}}
    rules = dict.fromkeys(v.rule for v in mine if v.rule != ORACLE)
    gaps: dict[str, list[Gap]] = {}
    for rule in rules:
        of_rule = [v for v in mine if v.rule == rule]
        models = {model: [v for v in of_rule if v.model == model] for model in {v.model: None for v in of_rule}}
        if any(len({v.boundary for v in chosen}) > 1 for chosen in models.values()):
            gaps[rule] = [gap for chosen in models.values() for gap in _gaps(chosen, lines, resamples)]
    return over_all({rule: found for rule, found in gaps.items() if found}, confidence)


def fixed_depths(drawn: Sequence[Resamples]) -> tuple[Floats, Floats]:
    """Mean cost and mean regret at any cost of freezing one share of the layers everywhere [S], groups alike.

    From nothing to the deepest share short of all layers that every case reaches.

    Args:
        drawn: of every case; at least one measures accuracy at a boundary between.
    """
    cases = [one for one in drawn if one.case.unit == "points" and set(one.case.curve()) - {0, one.case.layers}]
    lines = [(one.case.group, one.case.layers, _Line.of(one)) for one in cases]
    shares = np.linspace(0, min(line.boundaries[-1] / layers for _, layers, line in lines), _STEPS + 1)
    costs = [(group, np.array([line.cost(share * layers) for share in shares])) for group, layers, line in lines]
    regrets = [(group, np.array([line.regret(share * layers) for share in shares])) for group, layers, line in lines]
    return over_groups(costs), over_groups(regrets)


def _at_boundary(verdict: Verdict, case: Case) -> bool:
    return verdict.measured and verdict.method in case.boundaries.keys() | case.between.keys()


def _gaps(
    chosen: Sequence[Verdict], lines: Mapping[tuple[str, str], _Line], resamples: Mapping[tuple[str, str], Resamples]
) -> list[Gap]:
    """What a rule's choices with one model are ahead of the fixed depth that costs as much."""
    price = np.mean([resamples[v.data_set, v.model].case.cost_share(v.method) for v in chosen])
    depth = _priced(float(price), [lines[v.data_set, v.model] for v in chosen])
    if depth is None:
        return []
    found: list[Gap] = []
    for verdict in chosen:
        one = resamples[verdict.data_set, verdict.model]
        twin, twin_drawn = lines[verdict.data_set, verdict.model].at(depth)
        own = one.case.quality(verdict.method) - one.case.quality(FULL)
        found.append((verdict.group, np.array(own - twin), one.over(verdict.method, FULL) - twin_drawn))
    return found


def _priced(price: float, lines: Sequence[_Line]) -> float | None:
    """The depth that costs so much on the mean; ``None``: none short of all layers does."""
    deepest = float(min(line.boundaries[-1] for line in lines))

    def dearer(depth: float) -> float:
        return float(np.mean([line.cost(depth) for line in lines])) - price

    for end in (0.0, deepest):  # a rule that always stops there costs the same but for the order of the sums
        if abs(dearer(end)) < SAME_COST:
            return end
    return float(brentq(dearer, 0, deepest)) if dearer(0) > 0 > dearer(deepest) else None
