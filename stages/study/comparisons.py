"""Mean differences over datasets, and the fixed depth of the same cost.

Two questions are answered apart. On *these* datasets only test examples and seeds are drawn; over datasets *like
these* a group of datasets is the unit.
"""

from collections.abc import Sequence

import numpy as np

from stages.study.description import FULL
from stages.study.measured import Floats, Line
from stages.study.resamples import Resamples, detectable, interval, over_groups, over_other_groups, p_value
from stages.study.summary import Estimate

Gap = tuple[str, Floats]  # of one case: its group, and the difference as measured and in every resample [1+R]
Measured = Sequence[tuple[Resamples, str]]  # cases with the method that was measured there
_SAME_COST = 1e-9  # shares of one boundary's cost differ by rounding alone


def estimate(gaps: Sequence[Gap]) -> Estimate:
    """Return the mean difference over groups of datasets, with two kinds of inference."""
    mean, groups = over_groups(gaps), len({group for group, _ in gaps})
    found = {"mean_difference_points": float(mean[0]), "interval_examples": tuple(map(float, interval(mean)))}
    found |= {"p": p_value(mean), "detectable_points": detectable(mean[1:].std())}
    if other := over_other_groups([(group, gap[0]) for group, gap in gaps]):
        found |= {"interval_datasets": (other["low"], other["high"]), "p_datasets": other["p"]}
        found["detectable_points_datasets"] = detectable(other["error"], groups - 1)
    return Estimate.model_validate(found)


def above_full(measured: Measured) -> list[Gap]:
    """Return each case's difference from full fine-tuning, over the seeds that both have."""
    found = ((one.case.group, one.over(method, FULL)) for one, method in measured)
    return [(group, gap) for group, gap in found if gap is not None]


def above_fixed_depth(measured: Measured) -> list[Gap]:
    """Return each case's difference from a fixed depth, which freezes one share of the layers on all cases of a model.

    It costs as much on average. A model is left out where no boundary does above which a layer trains.
    """
    found: list[Gap] = []
    for model in dict.fromkeys(one.case.model for one, _ in measured):
        mine = [(one, method) for one, method in measured if one.case.model == model]
        cost = np.mean([one.case.cost_share(method) for one, method in mine])
        share = share_of_cost(float(cost), [(one.case.data_set, one.case.line) for one, _ in mine])
        for one, method in mine if share is not None else ():
            gap = one.over(method, FULL)
            if gap is not None:
                found.append((one.case.group, gap - one.over_full @ one.case.line.weights(np.array(share))))
    return found


def share_of_cost(cost: float, lines: Sequence[tuple[str, Line]]) -> float | None:
    """Return the share of the layers whose freezing costs this much on average over groups; ``None``: none below 1."""
    deepest = min(line.deepest for _, line in lines)
    shares = np.unique([deepest, *(share for _, line in lines for share in line.shares if share < deepest)])
    costs = over_groups([(group, np.interp(shares, line.shares, line.costs)) for group, line in lines])  # falling
    within = costs[-1] - _SAME_COST <= cost <= costs[0] + _SAME_COST  # sums differ by their order
    return float(np.interp(cost, costs[::-1], shares[::-1])) if within else None
