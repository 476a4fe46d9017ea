"""Figures of a study: quality against the boundary for every case, what freezing costs, and what traces promise."""

from collections.abc import Sequence
from typing import Final

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter

from stages.common.figures import ACCENT, INK, MUTED, RULE, panel, place_labels, standalone
from stages.study.comparisons import Depth
from stages.study.description import FULL
from stages.study.resamples import Resamples, interval
from stages.study.tables import records
from stages.study.verdicts import ORACLE

_LABELLED: Final = 4  # marks of one figure that are named; the table names all
_MARGIN: Final = 1.05  # below the lowest value that is shown
_MEASURES: Final = {
    "accuracy": "accuracy (%)",
    "balanced-accuracy": "balanced accuracy (%)",
    "loss": "minus loss (nats)",
}


def curve(resamples: Resamples, table: pd.DataFrame, leading: Sequence[str]) -> str:
    """Draw a case's quality against the boundary as an SVG file, with its interval and every selector's choice."""
    case = resamples.case
    quality = {b: case.quality(m) for b, m in case.curve().items()}
    low, high = np.array([interval(resamples.quality(m)) for m in case.curve().values()]).T

    def at(boundary: int) -> float:
        return float(np.interp(boundary, list(quality), list(quality.values())))

    def paint(axes: Axes) -> None:
        axes.fill_between(list(quality), low, high, color=RULE, linewidth=0)
        axes.plot(list(quality), list(quality.values()), "o-", color=INK, markersize=3.5, linewidth=1.6)
        longer = _longer(resamples)
        if longer:
            axes.plot(list(longer), list(longer.values()), color=MUTED, linewidth=1.4, linestyle=(0, (4, 2)))
        marks = _marks(table, leading)
        for boundary in marks:
            axes.plot(boundary, at(boundary), "s", color=ACCENT, markersize=7)
        axes.set_xlim(-0.5, case.layers + 0.5)
        axes.margins(y=0.14)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
        axes.set_xlabel("last frozen layer")
        axes.set_ylabel(_MEASURES[case.measure])
        named = [(float(b), at(b), text, ACCENT) for b, text in list(marks.items())[:_LABELLED]]
        line = np.linspace(0, case.layers, 2 * case.layers + 1)
        place_labels(axes, named, [*quality.items(), *((float(b), at(b)) for b in line)])

    described = (
        "Solid: equal epochs, with its interval; dashed: equal compute, where it was measured; squares: boundaries "
        "that selectors choose, on the line where they were not measured themselves."
    )
    title = f"{case.data_set}, {case.model}: quality against the boundary"
    return standalone(panel(f"study-{case.data_set}-{case.model}", title, described, paint))[1]


def lost(depth: Depth) -> str:
    """Draw points above full fine-tuning against the share of frozen layers: every case and their mean."""

    def paint(axes: Axes) -> None:
        _above_full(axes)
        for line in depth.lines:
            axes.plot(line.shares, line.over_full, color=MUTED, linewidth=0.8, alpha=0.6)
        axes.fill_between(depth.shares, depth.low, depth.high, color=RULE, linewidth=0)
        axes.plot(depth.shares, depth.mean, color=ACCENT, linewidth=2.2)
        axes.set_xlim(0, 1)
        lows = [line.over_full[line.shares <= depth.shares[-1]].min() for line in depth.lines]
        axes.set_ylim(_MARGIN * min(lows), None)
        axes.set_xlabel("share of the layers that is frozen")

    described = (
        "Grey: every dataset with every model, linear between measured boundaries; what falls below the figure is "
        "cut off. Coloured: mean over datasets with its interval, as deep as every case was measured."
    )
    title = "What freezing costs, by the share of the layers"
    return standalone(panel("study-depth", title, described, paint, height=420))[1]


def balance(points: pd.DataFrame, model: str) -> str:
    """Draw points above full fine-tuning against the share of the trace's reduction above each measured boundary."""

    def paint(axes: Axes) -> None:
        _above_full(axes)
        for quantity, ink in (("deviation", MUTED), ("loss", ACCENT)):
            axes.plot(points[f"{quantity}_observed"], points["over_full"], "o", color=ink, markersize=4, label=quantity)
        axes.set_ylim(_MARGIN * points.loc[points["trained"] > 0, "over_full"].min(), None)
        axes.set_xlabel("reduction of the trace's deviation or loss above the boundary, not accuracy")
        axes.legend(frameon=False)

    described = "Each mark is a measured boundary of a dataset, once by each quantity; what falls below is cut off."
    title = f"What the trace promises and what was measured, {model}"
    return standalone(panel("study-balance", title, described, paint, height=420))[1]


def _above_full(axes: Axes) -> None:
    axes.axhline(0, color=INK, linewidth=0.8)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_ylabel("points above full fine-tuning")


def _longer(resamples: Resamples) -> dict[int, float]:
    """Quality at equal compute by boundary, as far from full fine-tuning's as over the seeds that both have."""
    full = resamples.case.quality(FULL)
    gaps = {boundary: resamples.over(method, FULL, "compute") for boundary, method in resamples.case.curve().items()}
    longer = {boundary: full + gap[0] for boundary, gap in gaps.items() if gap is not None}
    return {0: full, **longer} if longer else {}


def _marks(table: pd.DataFrame, leading: Sequence[str]) -> dict[int, str]:
    """Boundary → the selectors that choose it, leading ones first."""
    order = {rule: rank for rank, rule in enumerate(leading)}
    chosen = [row for row in records(table) if row["behind_full"] is not None and row["boundary"] is not None]
    marks: dict[int, list[str]] = {}
    for row in sorted(chosen, key=lambda row: order.get(row["rule"], len(order))):
        if row["rule"] != ORACLE:
            marks.setdefault(row["boundary"], []).append(row["rule"])
    return {b: rules[0] if len(rules) == 1 else f"{rules[0]} +{len(rules) - 1}" for b, rules in marks.items()}
