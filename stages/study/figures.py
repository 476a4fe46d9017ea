"""Figures of a study: quality against the boundary for every case, and what all rules come to."""

from collections.abc import Sequence
from typing import Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator, PercentFormatter, StrMethodFormatter

from stages.common.figures.palette import ACCENT, INK, MUTED, RULE
from stages.common.figures.svg import panel, place_labels, standalone
from stages.study.depth import Depth
from stages.study.judging import Overall
from stages.study.measured import BALANCED, FULL, LOSS, PAPER, Case
from stages.study.resamples import Resamples, interval
from stages.study.verdicts import ORACLE, Verdict

_LABELLED: Final = 4  # marks of one figure that are named; the table names all
_DEAREST: Final = 1.12  # share of full fine-tuning's cost, up to which rules are drawn
_MEASURES: Final = {"accuracy": "accuracy (%)", BALANCED: "balanced accuracy (%)", LOSS: "minus loss (nats)"}
_MARGIN: Final = 1.05  # below the lowest value that is shown


def curve(resamples: Resamples, verdicts: Sequence[Verdict], leading: Sequence[str], confidence: float) -> str:
    """Quality against the boundary as an SVG file, with its interval and every rule's choice.

    Args:
        resamples: of the case.
        verdicts: of the case's rules.
        leading: rules that are named first, the default rule at the head.
        confidence: of the interval.
    """
    case = resamples.case
    methods = case.curve()
    quality = {b: case.quality(m) for b, m in methods.items()}
    bounds = [interval(resamples.quality(m), confidence) for m in methods.values()]

    def at(boundary: int) -> float:
        return float(np.interp(boundary, list(quality), list(quality.values())))

    what = _MEASURES[case.measure]

    def paint(axes: Axes) -> None:
        axes.fill_between(list(quality), [b[0] for b in bounds], [b[1] for b in bounds], color=RULE, linewidth=0)
        axes.plot(list(quality), list(quality.values()), "o-", color=INK, markersize=3.5, linewidth=1.6)
        longer = _longer(case)
        if longer:
            axes.plot(list(longer), list(longer.values()), color=MUTED, linewidth=1.4, linestyle=(0, (4, 2)))
        marks = _marks(verdicts, leading)
        for boundary in marks:
            axes.plot(boundary, at(boundary), "s", color=ACCENT, markersize=7)
        axes.set_xlim(-0.5, case.layers + 0.5)
        axes.margins(y=0.14)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
        axes.set_xlabel("last frozen layer")
        axes.set_ylabel(what)
        named = [(float(b), at(b), text, ACCENT) for b, text in list(marks.items())[:_LABELLED]]
        line = np.linspace(0, case.layers, 2 * case.layers + 1)
        place_labels(axes, named, [*quality.items(), *((float(b), at(b)) for b in line)])

    described = (
        "Solid: equal epochs, with its interval; dashed: equal compute, where it was measured; squares: boundaries "
        "that rules choose, on the line where they were not measured themselves."
    )
    name = f"study-{case.data_set}-{case.model}"
    title = f"{case.data_set}, {case.model}: quality against the boundary"
    return standalone(panel(name, title, described, paint))[1]


def lost(depth: Depth) -> str:
    """Points over full fine-tuning against the share of frozen layers: every case, and their mean, as an SVG file."""

    def paint(axes: Axes) -> None:
        axes.axhline(0, color=INK, linewidth=0.8)
        for line in depth.lines:
            axes.plot(line.shares, line.over_full, color=MUTED, linewidth=0.8, alpha=0.6)
        axes.fill_between(depth.shares, depth.low, depth.high, color=RULE, linewidth=0)
        axes.plot(depth.shares, depth.mean, color=ACCENT, linewidth=2.2)
        axes.set_xlim(0, 1)
        lows = [line.over_full[line.shares <= depth.shares[-1]].min() for line in depth.lines]
        axes.set_ylim(_MARGIN * min(lows), None)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.set_xlabel("share of the layers that is frozen")
        axes.set_ylabel("points over full fine-tuning")

    described = (
        "Grey: every data set with every model, straight between measured boundaries; what falls below the figure is "
        "cut off. Coloured: mean over data sets with its interval, as deep as every case was measured."
    )
    title = "What freezing costs, by the share of the layers"
    return standalone(panel("study-depth", title, described, paint, height=420))[1]


def costs(rules: Sequence[Overall], depth: Depth, leading: Sequence[str]) -> str:
    """Mean regret against mean cost, a mark per rule, and the line of fixed depths, as an SVG file.

    Args:
        rules: those of least regret first; other readings of the paper's rule have no name beside their mark.
        depth: all cases, of which the line is drawn.
        leading: the default rule at the head.
    """
    everywhere = max(one.cases for one in rules)
    shown = [one for one in rules if one.price <= _DEAREST and one.cases >= everywhere / 2]

    def paint(axes: Axes) -> None:
        axes.plot(depth.costs, depth.regrets, color=RULE, linewidth=2, zorder=1)
        for one in shown:
            colour = ACCENT if one.rule in leading[:1] else MUTED
            inside = colour if one.cases == everywhere else "none"
            axes.plot(one.price, one.regret, "o", color=colour, markerfacecolor=inside, markersize=6)
        axes.set_xlim(0, _DEAREST)
        axes.set_yscale("symlog", linthresh=1)  # most rules lie within two points, a few at twenty
        axes.margins(y=0.14)
        axes.yaxis.set_major_locator(FixedLocator([-1, 0, 0.5, 1, 2, 5, 10, 20, 50]))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.set_xlabel("share of full fine-tuning’s FLOPs")
        axes.set_ylabel("mean regret (points; logarithmic above 1)")
        dots = [(one.price, one.regret) for one in shown]
        place = len(depth.shares) * 4 // 5
        line = (float(depth.costs[place]), float(depth.regrets[place]), "a fixed depth", MUTED)
        named = [(x.price, x.regret, x.rule, INK) for x in shown if not x.rule.startswith(f"{PAPER}-")]
        place_labels(axes, [*named, line], dots)

    described = (
        "A mark per rule: points of accuracy behind the best measured boundary against cost, mean over data sets; "
        "hollow: over some of them; the line: freezing one share of the layers everywhere. Left out: rules that were "
        "measured on less than half of the cases, and those that cost more than full fine-tuning once what they spend "
        "on deciding is counted."
    )
    return standalone(panel("study-costs", "What the rules cost, and what they miss", described, paint, height=420))[1]


def _longer(case: Case) -> dict[int, float]:
    """Quality at equal compute by boundary, as far from full fine-tuning's as over the seeds that both have."""
    full = case.quality(FULL)
    gaps = {boundary: case.over(method, FULL, "compute") for boundary, method in case.curve().items()}
    longer = {boundary: full + gap for boundary, gap in gaps.items() if gap is not None}
    return {0: full, **longer} if longer else {}


def _marks(verdicts: Sequence[Verdict], leading: Sequence[str]) -> dict[int, str]:
    """Boundary → the rules that choose it, those of leading rules first."""
    order = {rule: rank for rank, rule in enumerate(leading)}
    chosen = [v for v in verdicts if v.measured and v.boundary is not None and v.rule != ORACLE]
    marks: dict[int, list[str]] = {}
    for verdict in sorted(chosen, key=lambda v: order.get(v.rule, len(order))):
        marks.setdefault(verdict.boundary or 0, []).append(verdict.rule)
    return {b: names[0] if len(names) == 1 else f"{names[0]} +{len(names) - 1}" for b, names in marks.items()}
