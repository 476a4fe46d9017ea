"""How quality goes with the share of layers that are frozen, over data sets and models of different depths."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from stages.study.measured import FULL, Case, Floats
from stages.study.resamples import Resamples, interval, over_groups

_STEPS: Final = 40


@dataclass(frozen=True)
class Line:
    """Of one case: points of accuracy over full fine-tuning [B] at the shares of the layers that were frozen [B]."""

    shares: Floats
    over_full: Floats


@dataclass(frozen=True)
class Depth:
    """All cases, and their mean.

    Attributes:
        lines: of every case, from nothing frozen to the deepest that was measured.
        shares: of the mean [S], up to the deepest share short of all layers that every case reaches.
        mean, low, high: of all groups of data sets alike [S], points over full fine-tuning, with an interval.
    """

    lines: tuple[Line, ...]
    shares: Floats
    mean: Floats
    low: Floats
    high: Floats


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
    lines = tuple(_line(one.case) for one in cases)
    shares = np.linspace(0, min(line.shares[line.shares < 1].max() for line in lines), _STEPS + 1)
    between = [(one.case.group, _between(shares, line, one)) for one, line in zip(cases, lines, strict=True)]
    means = [
        (one.case.group, np.interp(shares, line.shares, line.over_full)) for one, line in zip(cases, lines, strict=True)
    ]
    bounds = [interval(column, confidence) for column in over_groups(between).T]
    return Depth(lines, shares, over_groups(means), *np.array(bounds).T)


def _line(case: Case) -> Line:
    curve = case.curve()
    shares = np.array([boundary / case.layers for boundary in curve])
    return Line(shares, np.array([case.quality(m) - case.quality(FULL) for m in curve.values()]))


def _between(shares: Floats, line: Line, drawn: Resamples) -> Floats:
    """Every resample's line at the shares of the mean [R, S]."""
    measured = np.array([drawn.over(method, FULL) for method in drawn.case.curve().values()])
    return np.array([np.interp(shares, line.shares, each) for each in measured.T])
