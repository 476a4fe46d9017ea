"""How quality goes with the share of layers that are frozen, over data sets and models of different depths."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from stages.study.measured import FULL, Floats
from stages.study.resamples import Resamples, interval, over_groups

_STEPS: Final = 40


@dataclass(frozen=True)
class Line:
    """Of one case, at the shares of the layers that were frozen [B]; between them it is straight.

    Attributes:
        costs: counted operations as a share of full fine-tuning's [B].
        over_full: points of accuracy over full fine-tuning [B].
        drawn: the same in every resample [R, B].
    """

    shares: Floats
    costs: Floats
    over_full: Floats
    drawn: Floats

    @classmethod
    def of(cls, one: Resamples) -> "Line":
        """A case's."""
        case, curve = one.case, one.case.curve()
        return cls(
            np.array([boundary / case.layers for boundary in curve]),
            np.array([case.cost_share(method) for method in curve.values()]),
            np.array([case.quality(method) - case.quality(FULL) for method in curve.values()]),
            np.array([one.over(method, FULL) for method in curve.values()]).T,
        )

    @property
    def deepest(self) -> float:
        """The largest share above which a layer trains."""
        return float(self.shares[self.shares < 1].max())

    def weights(self, shares: Floats) -> Floats:
        """What the measured boundaries count at other shares [B, S]."""
        return np.array([np.interp(shares, self.shares, unit) for unit in np.eye(len(self.shares))])


@dataclass(frozen=True)
class Depth:
    """All cases, and their mean.

    Attributes:
        lines: of every case, from nothing frozen to the deepest that was measured.
        shares: of the mean [S], up to the deepest share short of all layers that every case reaches.
        mean, low, high: of all groups of data sets alike [S], points over full fine-tuning, with an interval.
        costs, regrets: means likewise [S], of the cost and of the points behind the best boundary.
    """

    lines: tuple[Line, ...]
    shares: Floats
    mean: Floats
    low: Floats
    high: Floats
    costs: Floats
    regrets: Floats


def by_depth(drawn: Sequence[Resamples], confidence: float) -> Depth | None:
    """Line up the cases over the share of frozen layers; ``None`` where none measures accuracy below all layers.

    Between measured boundaries a case's line is straight. Cases of one group (a data set with several models, or its
    out-of-domain sister) are averaged first, so that data sets count alike.

    Args:
        drawn: of every case.
        confidence: of the interval of the mean.
    """
    cases = [one for one in drawn if one.case.unit == "points" and set(one.case.curve()) - {0, one.case.layers}]
    if not cases:
        return None
    lines = [(one.case.group, Line.of(one)) for one in cases]
    shares = np.linspace(0, min(line.deepest for _, line in lines), _STEPS + 1)
    at = [(group, line, line.weights(shares)) for group, line in lines]
    bounds = [interval(each, confidence) for each in over_groups([(g, line.drawn @ w) for g, line, w in at]).T]
    low, high = np.array(bounds).T
    return Depth(
        lines=tuple(line for _, line in lines),
        shares=shares,
        mean=over_groups([(group, line.over_full @ weights) for group, line, weights in at]),
        low=low,
        high=high,
        costs=over_groups([(group, line.costs @ weights) for group, line, weights in at]),
        regrets=over_groups([(group, line.over_full.max() - line.over_full @ weights) for group, line, weights in at]),
    )
