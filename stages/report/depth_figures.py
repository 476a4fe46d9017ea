"""Figures against depth: the trace, the laws, the gains and how often each layer wins."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from stages.common.figures.palette import ACCENT, INK, MUTED
from stages.common.figures.svg import halo, panel

Curve = Sequence[float | None]

# Values that spread over more than this factor are drawn on a logarithmic axis.
_LOG_FROM = 12.0


@dataclass(frozen=True)
class Profile:
    """One quantity over the spaces 0..L: mean, interval of the mean, spread over examples."""

    mean: Curve
    low: Curve
    high: Curve
    p10: Curve
    p90: Curve


@dataclass(frozen=True)
class LawCurve:
    """A law's prediction at the spaces 1..L; ``None`` where it says nothing."""

    name: str
    curve: Curve
    low: Curve
    high: Curve


@dataclass(frozen=True)
class Bars:
    """A value per layer, with an interval where there is one; layer 1 may be left out."""

    layers: Sequence[int]
    values: Curve
    low: Curve | None = None
    high: Curve | None = None


def trace(name: str, title: str, quantity: str, profile: Profile, boundary: int) -> str:
    """Mean, its interval and the p10–p90 spread of a quantity at the spaces 0..L."""

    def paint(axes: Axes) -> None:
        spaces = range(len(profile.mean))
        axes.fill_between(spaces, _nan(profile.p10), _nan(profile.p90), color=ACCENT, alpha=0.16, linewidth=0)
        axes.fill_between(spaces, _nan(profile.low), _nan(profile.high), color=ACCENT, alpha=0.45, linewidth=0)
        axes.plot(spaces, _nan(profile.mean), color=ACCENT, linewidth=2)
        _log_when_wide(axes, [*profile.p10, *profile.p90])
        _depth(axes, len(profile.mean) - 1, quantity, "after layer (0: embedding)")
        _boundary(axes, boundary)

    described = (
        f"Line: mean {quantity} after each layer; dark band: interval of the mean; light band: 10th to 90th "
        f"percentile of the examples; dashed line: the end of freezing after layer {boundary}."
    )
    return panel(name, title, described, paint)


def law(
    name: str, title: str, quantity: str, profile: Profile, best: LawCurve | None, rivals: Sequence[LawCurve]
) -> str:
    """Measured means at the spaces 1..L with the best law, its band, and its rivals in the background."""

    def paint(axes: Axes) -> None:
        spaces = range(1, len(profile.mean))
        for rival in rivals:
            axes.plot(spaces, _nan(rival.curve), color=MUTED, linewidth=1, alpha=0.7, linestyle=(0, (4, 2)))
        if best is not None:
            axes.fill_between(spaces, _nan(best.low), _nan(best.high), color=ACCENT, alpha=0.25, linewidth=0)
            axes.plot(spaces, _nan(best.curve), color=ACCENT, linewidth=2)
        below = [_gap(m, b) for m, b in zip(profile.mean[1:], profile.low[1:], strict=True)]
        above = [_gap(t, m) for m, t in zip(profile.mean[1:], profile.high[1:], strict=True)]
        axes.errorbar(
            spaces, _nan(profile.mean[1:]), yerr=[below, above], fmt="o", color=INK, markersize=3.2, elinewidth=1
        )
        _log_when_wide(axes, profile.mean[1:])
        _around(axes, [*profile.low[1:], *profile.high[1:]])
        _depth(axes, len(profile.mean) - 1, quantity, "after layer", first=1)

    described = (
        f"Points: mean {quantity} after each layer with its interval; thick line and band: the best law and its "
        "interval; thin dashed lines: the other laws."
    )
    return panel(name, title, described, paint)


def bars(name: str, title: str, what: str, data: Bars, boundary: int, layers: int, height: int = 220) -> str:
    """A bar per layer, the one at the end of freezing in colour."""

    def paint(axes: Axes) -> None:
        axes.axhline(0, color=MUTED, linewidth=0.8)
        drawn = list(zip(data.layers, _nan(data.values), strict=True))
        for ink, fade, chosen in ((MUTED, 0.55, False), (ACCENT, 1.0, True)):
            mine = [(layer, value) for layer, value in drawn if (layer == boundary) == chosen]
            heights = [value for _, value in mine]
            axes.bar([layer for layer, _ in mine], heights, width=0.72, color=ink, alpha=fade, linewidth=0)
        if data.low is not None and data.high is not None:
            axes.vlines(list(data.layers), _nan(data.low), _nan(data.high), color=INK, linewidth=0.9)
        _depth(axes, layers, what, "layer", first=1)
        axes.set_xlim(0.3, layers + 0.7)

    described = f"A bar per layer: {what}; the coloured bar is layer {boundary}, the last one frozen."
    return panel(name, title, described, paint, height)


def scores(name: str, title: str, what: str, values: Curve, boundary: int) -> str:
    """A selector's score of the boundaries 0..L, its choice marked; ``None`` for boundaries without a score."""

    def paint(axes: Axes) -> None:
        axes.plot(range(len(values)), _nan(values), "o-", color=ACCENT, linewidth=1.6, markersize=3)
        _depth(axes, len(values) - 1, what, "boundary")
        axes.axvline(boundary, color=INK, linewidth=1, linestyle=(0, (3, 2)))

    described = f"Line: {what} at every boundary; dashed line: boundary {boundary}, which the selector chooses."
    return panel(name, title, described, paint, 220)


def _depth(axes: Axes, layers: int, quantity: str, below: str, first: int = 0) -> None:
    axes.set_xlabel(below)
    axes.set_ylabel(quantity)
    axes.set_xlim(first - 0.5, layers + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=3))


def _boundary(axes: Axes, boundary: int) -> None:
    axes.axvline(boundary, color=INK, linewidth=1, linestyle=(0, (3, 2)))
    low, high = axes.get_xlim()
    right = (boundary - low) / (high - low) > 0.72
    label = axes.text(
        boundary,
        0.97,
        "frozen up to here " if right else " frozen up to here",
        transform=axes.get_xaxis_transform(),
        ha="right" if right else "left",
        va="top",
        color=INK,
    )
    halo(label)


def _log_when_wide(axes: Axes, values: Curve) -> None:
    known = [v for v in values if v is not None]
    if not known or min(known) <= 0 or max(known) / min(known) < _LOG_FROM:
        return
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _around(axes: Axes, values: Curve) -> None:
    """Limit the vertical axis to the measured values: a rival far off must not flatten them."""
    known = [v for v in values if v is not None]
    if not known:
        return
    low, high = min(known), max(known)
    if axes.get_yscale() == "log":
        axes.set_ylim(low / 1.25, high * 1.25)
        return
    margin = 0.15 * (high - low or 1.0)
    axes.set_ylim(low - margin, high + margin)


def _gap(high: float | None, low: float | None) -> float:
    return 0.0 if high is None or low is None else max(high - low, 0.0)


def _nan(values: Curve) -> list[float]:
    return [float("nan") if v is None else v for v in values]


def profile_of(quantity: Mapping[str, Curve]) -> Profile:
    """A quantity of ``scaling_law.json`` as a profile."""
    return Profile(quantity["mean"], quantity["low"], quantity["high"], quantity["p10"], quantity["p90"])
