"""The figure of a study: what each method costs and gains."""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from stages.common.figures import ACCENT, INK, MUTED, RULE, panel, place_labels
from stages.study.measured import Floats
from stages.study.resamples import Resamples, interval, over_groups
from stages.study.summary import MethodSummary

_STEPS: Final = 40


def mean_depth(cases: Sequence[Resamples]) -> tuple[Floats, Floats] | None:
    """Return cost [S] and points above full fine-tuning [1+R, S] of fixed depths, mean over datasets that have them.

    ``None``: no case measures a boundary between 0 and all layers.
    """
    lines = [(one.case.group, one, one.case.line) for one in cases if set(one.case.curve()) - {0, one.case.layers}]
    if not lines:
        return None
    shares = np.linspace(0, min(line.deepest for _, _, line in lines), _STEPS + 1)
    costs = over_groups([(group, np.interp(shares, line.shares, line.costs)) for group, _, line in lines])
    return costs, over_groups([(group, one.over_full @ line.weights(shares)) for group, one, line in lines])


def methods(depth: tuple[Floats, Floats], found: Mapping[str, MethodSummary]) -> str:
    """Draw every method's points above full fine-tuning against the cost of a run, and the curve of fixed depths."""
    costs, points = depth
    shown = {name: one for name, one in found.items() if one.groups > 1}

    def paint(axes: Axes) -> None:
        axes.axhline(0, color=INK, linewidth=0.8)
        axes.fill_between(costs, *interval(points), color=RULE, linewidth=0)
        axes.plot(costs, points[0], color=MUTED, linewidth=1.6)
        for one in shown.values():
            axes.plot([one.cost_share] * 2, one.interval_examples, color=ACCENT, linewidth=1.2)
            axes.plot(one.cost_share, one.mean_difference_points, "o", color=ACCENT, markersize=6)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.set_ylabel("points above full fine-tuning")
        axes.set_xlabel("FLOPs of one run, of full fine-tuning's")
        axes.margins(y=0.14)
        named = [(one.cost_share, one.mean_difference_points, name, ACCENT) for name, one in shown.items()]
        drawn = [dot for line in (points[0], 0 * costs) for dot in zip(costs.tolist(), line.tolist(), strict=True)]
        place_labels(axes, named, drawn)

    described = (
        "Line: fixed depths, the same boundary on all datasets, with its interval. Marks: methods with the 95 % "
        "interval over examples and seeds, each over the datasets where it was measured; the table says which."
    )
    return panel("study-methods", "What each method costs and gains", described, paint, height=420) + "\n"
