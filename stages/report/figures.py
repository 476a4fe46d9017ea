"""Figures of quality and cost: methods compared, learning curves, the frontier of boundaries."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from stages.common.figures.palette import ACCENT, CARD, INK, MUTED, colour, marker
from stages.common.figures.svg import halo, panel, place_labels
from stages.report.grid import grid_of, labels_of, numbers_told, opacity
from stages.report.wording import Interval

_KINDS: Final = ("o", "D", "s")  # marks of the kinds of cost
_ROW: Final = 21  # height of a method's row, px


@dataclass(frozen=True)
class Point:
    """A method at its cost: the share of full fine-tuning's FLOPs, and its quality."""

    method: str
    share: float
    quality: Interval


@dataclass(frozen=True)
class Line:
    """A learning curve: (cost, value) in the order of training."""

    method: str
    costs: Sequence[float]
    values: Sequence[float]


@dataclass(frozen=True)
class FrontierDot:
    """A boundary, its share of full fine-tuning's FLOPs, and what it leaves to train."""

    boundary: int
    share: float
    benefit: float
    efficient: bool


def quality_cost(
    name: str, title: str, quality: str, methods: Sequence[Point], baselines: Mapping[str, float], height: int = 290
) -> str:
    """Quality with its interval against the share of full fine-tuning's FLOPs; baselines as lines.

    Boundaries that were given by hand are a grid: they are joined in their order.
    """
    labels, at = labels_of([point.method for point in methods]), {point.method: point for point in methods}
    grid = [at[method] for method in grid_of(list(at))]

    def paint(axes: Axes) -> None:
        for left, right in pairwise(grid):
            ends = [left.share, right.share], [left.quality.value, right.quality.value]
            axes.plot(*ends, color=colour(left.method), lw=1.2)
        for point in methods:
            low, high = _errors(point.quality)
            axes.errorbar(
                point.share,
                point.quality.value,
                yerr=[[low], [high]],
                fmt=marker(point.method),
                color=colour(point.method),
                markersize=8,
                elinewidth=1.6,
                capsize=0,
            )
        for value in baselines.values():
            axes.axhline(value, color=MUTED, linewidth=1, linestyle=(0, (3, 2)))
        axes.set_xlim(0, 1.12 * max([1.0, *(p.share for p in methods)]))
        axes.margins(y=0.12)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.set_xlabel("share of full fine-tuning’s FLOPs")
        axes.set_ylabel(quality)
        _baseline_names(axes, baselines)
        strokes = [dot for p in methods for dot in _between([p.share] * 2, [p.quality.low, p.quality.high])]
        width = axes.get_xlim()[1]
        strokes += [dot for value in baselines.values() for dot in _between([0.0, width], [value, value])]
        strokes += _between([p.share for p in grid], [p.quality.value for p in grid])
        place_labels(axes, [(p.share, p.quality.value, labels[p.method], colour(p.method)) for p in methods], strokes)

    described = (
        f"A marker per method with the interval of its {quality}; horizontal dashed lines: "
        f"{', '.join(baselines) or 'none'}.{numbers_told(labels)}"
    )
    return panel(name, title, described, paint, height)


def cost_shares(name: str, title: str, shares: Mapping[str, Mapping[str, float]]) -> str:
    """What each method costs relative to full fine-tuning: a row per method, a mark per kind of cost.

    Args:
        name: see :func:`stages.common.figures.svg.panel`.
        title: see there.
        shares: method → kind of cost → share of full fine-tuning's.
    """
    height = max(290, 110 + _ROW * len(shares))
    kinds = list(dict.fromkeys(kind for costs in shares.values() for kind in costs))

    def paint(axes: Axes) -> None:
        for row, (method, costs) in enumerate(shares.items()):
            axes.plot([min(costs.values()), max(costs.values())], [row, row], color=colour(method), lw=1.6, alpha=0.5)
            for kind, share in costs.items():
                axes.plot(
                    share, row, _KINDS[kinds.index(kind)], color=colour(method), ms=8, mfc=_fill(kind, kinds, method)
                )
        for kind, shape in zip(kinds, _KINDS, strict=False):
            axes.plot([], [], shape, color=MUTED, ms=7, mfc=_fill(kind, kinds, ""), label=kind)
        axes.axvline(1, color=MUTED, linewidth=1, linestyle=(0, (3, 2)))
        axes.set_xlim(0, 1.08 * max([1.0, *(share for costs in shares.values() for share in costs.values())]))
        axes.set_ylim(len(shares) - 0.5, -0.5)
        axes.set_yticks(range(len(shares)), list(shares))
        for label, method in zip(axes.get_yticklabels(), shares, strict=True):
            label.set(color=colour(method), fontweight="bold")
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.set_xlabel("share of full fine-tuning’s")
        axes.legend(
            frameon=False, loc="lower center", bbox_to_anchor=(0.45, 1.0), ncols=3, handletextpad=0.1, columnspacing=1
        )

    described = f"A row per method; marks: {', '.join(kinds)} as shares of full fine-tuning’s; dashed line: 100 %."
    return panel(name, title, described, paint, height)


def learning_curves(name: str, title: str, quality: str, cost: str, lines: Sequence[Line], percent: bool) -> str:
    """A validation measure against the compute spent so far, a line per run.

    Of boundaries that were given by hand the deeper ones are paler.
    """
    labels = labels_of([line.method for line in lines])
    solid = opacity([line.method for line in lines])

    def paint(axes: Axes) -> None:
        for line in lines:
            axes.plot(
                line.costs,
                line.values,
                marker=marker(line.method),
                color=colour(line.method),
                markersize=5,
                lw=1.8,
                alpha=solid[line.method],
            )
        axes.margins(x=0.06, y=0.14)
        right = axes.get_xlim()[1]
        axes.set_xlim(0, right * 1.08)
        if percent:
            axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.set_xlabel(cost)
        axes.set_ylabel(quality)
        ends = {line.method: (line.costs[-1], line.values[-1]) for line in lines if line.costs}
        drawn = [dot for line in lines for dot in _between(line.costs, line.values)]
        place_labels(axes, [(x, y, labels[method], colour(method)) for method, (x, y) in ends.items()], drawn)

    described = (
        f"{quality} against {cost}; a line per fine-tuned model, its method written at the end.{numbers_told(labels)}"
    )
    return panel(name, title, described, paint)


def boundary_cost(
    name: str, title: str, cached: Sequence[float], uncached: Sequence[float], chosen: Mapping[str, int]
) -> str:
    """FLOPs share of a whole fine-tune for every boundary, with and without the boundary's cache."""

    def paint(axes: Axes) -> None:
        axes.plot(range(len(uncached)), uncached, color=MUTED, linewidth=1.4, linestyle=(0, (4, 2)))
        axes.plot(range(len(cached)), cached, color=INK, linewidth=1.8)
        for method, boundary in chosen.items():
            axes.plot(boundary, cached[boundary], marker(method), color=colour(method), markersize=8)
        axes.set_ylim(0, 1.06 * max([*cached, *uncached]))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
        axes.set_xlabel("last frozen layer")
        axes.set_ylabel("share of full’s FLOPs")
        drawn = [dot for curve in (cached, uncached) for dot in enumerate(curve)]
        place_labels(axes, [(k, cached[k], method, colour(method)) for method, k in chosen.items()], drawn)
        label = axes.text(0.02, 0.03, "dashed: states not cached", transform=axes.transAxes, color=MUTED)
        halo(label)

    described = (
        "Cost of a whole fine-tune for every boundary; solid: boundary states computed once; dashed: each epoch."
    )
    return panel(name, title, described, paint)


def boundary_memory(name: str, title: str, parts: Mapping[str, Sequence[float]], boundary: int) -> str:
    """Predicted training memory for every boundary: optimizer, gradients, activations, stacked."""

    def paint(axes: Axes) -> None:
        floor = [0.0] * len(next(iter(parts.values())))
        inks = (colour("full"), colour("lora"), colour("last-n"))
        for (part, values), ink in zip(parts.items(), inks, strict=False):
            top = [f + v / 2**20 for f, v in zip(floor, values, strict=True)]
            axes.fill_between(range(len(top)), floor, top, color=ink, alpha=0.55, linewidth=0, label=part)
            floor = top
        axes.plot([boundary, boundary], [0, floor[boundary]], color=ACCENT, linewidth=2.2)
        axes.set_xlim(0, len(floor) - 1)
        axes.set_ylim(0, 1.05 * max([*floor, 1e-9]))
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.0f}".replace(",", "\u202f")))
        axes.set_xlabel("last frozen layer")
        axes.set_ylabel("MiB")
        axes.legend(frameon=False, loc="upper right", reverse=True)

    described = f"Stacked: {', '.join(parts)}; vertical line: the chosen boundary {boundary}."
    return panel(name, title, described, paint)


def frontier(name: str, title: str, what: str, points: Sequence[FrontierDot], boundary: int) -> str:
    """What each boundary costs against what it leaves to train; efficient boundaries are joined."""

    def paint(axes: Axes) -> None:
        efficient = sorted((p for p in points if p.efficient), key=lambda p: p.share)
        axes.plot([p.share for p in efficient], [p.benefit for p in efficient], color=MUTED, lw=1.2)
        for p in points:
            axes.plot(p.share, p.benefit, "o", color=MUTED, ms=4.5, mfc=MUTED if p.efficient else "none", mew=1)
        axes.margins(x=0.06, y=0.12)
        axes.set_xlim(0, max(1.05, axes.get_xlim()[1]))
        others = [(p.share, p.benefit) for p in points]
        for p in points:
            if p.boundary == boundary:
                axes.plot(p.share, p.benefit, marker("salf"), color=ACCENT, markersize=9)
                place_labels(axes, [(p.share, p.benefit, f"boundary {boundary}", ACCENT)], others)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.set_xlabel("share of full fine-tuning’s FLOPs")
        axes.set_ylabel(what)

    described = (
        f"A dot per boundary: {what} against cost; filled and joined: no other boundary is both cheaper and better; "
        f"the square is the chosen boundary {boundary}."
    )
    return panel(name, title, described, paint)


def _between(xs: Sequence[float], ys: Sequence[float], steps: int = 16) -> list[tuple[float, float]]:
    """Points along a drawn line, for labels to keep clear of."""
    return [
        (x0 + (x1 - x0) * i / steps, y0 + (y1 - y0) * i / steps)
        for (x0, y0), (x1, y1) in pairwise(zip(xs, ys, strict=True))
        for i in range(steps + 1)
    ]


def _fill(kind: str, kinds: Sequence[str], method: str) -> str:
    """The first kind of cost is drawn filled, the others open."""
    return colour(method) if kind == kinds[0] else CARD


def _errors(quality: Interval) -> tuple[float, float]:
    return max(quality.value - quality.low, 0.0), max(quality.high - quality.value, 0.0)


def _baseline_names(axes: Axes, baselines: Mapping[str, float]) -> None:
    """Names of the dashed lines at the left, the lower one below its line where two lie close."""
    previous = None
    for text, value in sorted(baselines.items(), key=lambda item: item[1]):
        height = axes.transLimits.transform((0, value))[1]
        crowded = previous is not None and height - previous < 0.09
        label = axes.text(
            0.01 if not crowded else 0.34,
            value,
            text,
            transform=axes.get_yaxis_transform(),
            va="bottom",
            color=MUTED,
            fontsize=10,
        )
        halo(label)
        previous = height
