"""Figures that compare methods: quality against cost, learning curves."""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import PercentFormatter

from salf.metrics import SCORES, Interval
from stages.common.figures import HEIGHT, MUTED, colour, marker, panel, place_labels
from stages.report.artifacts import Method
from stages.report.parts import Figure

Style = dict[str, Any]  # keyword arguments of matplotlib
DASHED: Final[Style] = {"linewidth": 1, "linestyle": (0, (3, 2))}

Dots = Sequence[tuple[float, float]]


def quality_cost(metric: str, methods: Sequence[Method], baselines: Mapping[str, Interval]) -> Figure:
    """Draw a score with its interval against the share of full fine-tuning's FLOPs; baselines are lines."""
    share = {m.name: m.record.flops_share or 0.0 for m in methods}
    scores = {m.name: m.record.scores[metric] for m in methods}

    def paint(axes: Axes) -> None:
        for name, score in scores.items():
            error = [[max(score.value - score.low, 0.0)], [max(score.high - score.value, 0.0)]]
            style: Style = {"fmt": marker(name), "color": colour(name), "markersize": 8, "elinewidth": 1.6}
            axes.errorbar(share[name], score.value, yerr=error, **style)
        for baseline in baselines.values():
            axes.axhline(baseline.value, color=MUTED, **DASHED)
        axes.set_xlim(0, 1.12 * max([1.0, *share.values()]))
        axes.margins(y=0.12)
        in_percent(axes.xaxis)
        axes.set(xlabel="share of full fine-tuning’s FLOPs", ylabel=f"test {SCORES[metric]}")
        strokes = [dot for n, s in scores.items() for dot in along([(share[n], s.low), (share[n], s.high)])]
        marks = [(share[name], score.value, name, colour(name)) for name, score in scores.items()]
        marks += [(axes.get_xlim()[1], baseline.value, name, MUTED) for name, baseline in baselines.items()]
        place_labels(axes, marks, strokes)

    caption = (
        "A marker per method; vertical strokes: interval over the test examples. Dashed lines: baselines without "
        "fine-tuning."
    )
    title = f"{SCORES[metric][0].upper()}{SCORES[metric][1:]} against cost"
    return figure("fig-quality", title, caption, paint, 290)


def curves(
    name: str,
    title: str,
    axes_words: tuple[str, str],
    lines: Mapping[str, tuple[str, Dots]],
    errors: Mapping[str, Sequence[float]] | None = None,
    caption: str = "A line per fine-tuned model, labelled at its end.",
) -> Figure:
    """Draw one quantity against another; ``lines``: of every run its label, which begins with a method, and dots.

    ``errors``: half of each dot's interval.
    """
    across, up = axes_words

    def paint(axes: Axes) -> None:
        inks = {label: label.partition(" ")[0] for label, _ in lines.values()}
        for one, (label, dots) in lines.items():
            style: Style = {"marker": marker(inks[label]), "color": colour(inks[label]), "markersize": 5, "lw": 1.8}
            x, y = zip(*dots, strict=True)
            axes.errorbar(x, y, yerr=errors[one] if errors else None, **style)
        axes.margins(x=0.06, y=0.14)
        axes.set_xlim(0, axes.get_xlim()[1] * 1.08)
        if "share" in across:
            in_percent(axes.xaxis)
        axes.set(xlabel=across, ylabel=up)
        ends = {label: dots[-1] for label, dots in lines.values()}
        drawn = [dot for _, dots in lines.values() for dot in along(dots)]
        place_labels(axes, [(*end, label, colour(inks[label])) for label, end in ends.items()], drawn)

    return figure(name, title, caption, paint)


def figure(name: str, title: str, caption: str, paint: Callable[[Axes], None], height: int = HEIGHT) -> Figure:
    """Draw a figure; see :func:`stages.common.figures.panel`."""
    return Figure(name, title, panel(name, title, caption, paint, height), caption)


def in_percent(axis: Axis) -> None:
    """Write the shares on an axis as percentages."""
    axis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def along(line: Dots, steps: int = 16) -> list[tuple[float, float]]:
    """Points along a drawn line, for labels to keep clear of."""
    return [(x, y) for start, end in pairwise(line) for x, y in np.linspace(start, end, steps + 1).tolist()]
