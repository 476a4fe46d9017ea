"""Draws the graph of artifacts: boxes from top to bottom, what many read down the two edges."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch

from stages.common.figures.palette import ACCENT, CARD, INK, MUTED
from stages.common.figures.svg import WIDTH, halo, panel

_LINE: Final = 15.0  # height of a line of text, px
_PAD: Final = 7.0
_GAP: Final = 34.0  # between two rows of boxes: an arrow's length
_LETTERS: Final = 25  # of a name that still fits beside a hash
_LEFT_BUS, _RIGHT_BUS = 18.0, WIDTH - 18.0
# Left and right end of every box, px; boxes in one line of the list stand side by side.
_ROWS: Final[Sequence[Mapping[str, tuple[float, float]]]] = (
    {"base": (6, 172), "prepared": (206, WIDTH - 6)},
    {"traces": (110, 250)},
    {"law": (38, 172), "gains": (188, 322)},
    {"plan": (110, 250)},
    {"models": (50, 310)},
    {"metrics": (110, 250)},
)
_BUSES: Final = {"base": _LEFT_BUS, "prepared": _RIGHT_BUS}
_BY_BUS: Final = ("plan", "models", "metrics")


@dataclass(frozen=True)
class Box:
    """An artifact: its key, its name, lines of (text, hash), and which lines are marked as broken."""

    key: str
    title: str
    lines: tuple[tuple[str, str], ...]
    broken: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Arrow:
    """What was read → what was made from it."""

    source: str
    target: str
    broken: bool
    unrecorded: bool


@dataclass(frozen=True)
class _Place:
    left: float
    right: float
    top: float
    bottom: float

    @property
    def middle(self) -> tuple[float, float]:
        return (self.left + self.right) / 2, (self.top + self.bottom) / 2


def lineage_figure(name: str, title: str, boxes: Sequence[Box], arrows: Sequence[Arrow]) -> str:
    """Draw the graph; arrows whose ends are not both there are left out."""
    places = _places(boxes)
    height = max(place.bottom for place in places.values()) + 4
    drawn = [arrow for arrow in arrows if arrow.source in places and arrow.target in places]

    def paint(axes: Axes) -> None:
        axes.set_axis_off()
        axes.set_xlim(0, WIDTH)
        axes.set_ylim(height, 0)
        _buses(axes, places, drawn)
        for arrow in drawn:
            _draw_arrow(axes, arrow, places)
        for box in boxes:
            _draw_box(axes, box, places[box.key])

    words = ("was made from another", "keeps no hash of", "keeps the hash of")
    described = "; ".join(
        f"{a.target} {words[0] if a.broken else words[1] if a.unrecorded else words[2]} {a.source}" for a in drawn
    )
    return panel(name, title, f"{described}.", paint, round(height))


def _places(boxes: Sequence[Box]) -> dict[str, _Place]:
    there = {box.key: 2 * _PAD + _LINE * (1 + len(box.lines)) for box in boxes}
    places, top = {}, 2.0
    for row in _ROWS:
        heights = [there[key] for key in row if key in there]
        for key, (left, right) in row.items():
            if key in there:
                places[key] = _Place(left, right, top, top + there[key])
        top += max(heights) + _GAP if heights else 0
    return places


def _draw_box(axes: Axes, box: Box, place: _Place) -> None:
    shape = FancyBboxPatch(
        (place.left, place.top), place.right - place.left, place.bottom - place.top,
        boxstyle="round,pad=0,rounding_size=6", facecolor=CARD, edgecolor=MUTED, linewidth=1,
    )  # fmt: skip
    axes.add_patch(shape)
    left, right = place.left + _PAD + 1, place.right - _PAD - 1
    y = place.top + _PAD + _LINE / 2
    axes.text(left, y, box.title, va="center", fontweight="bold")
    for text, digest in box.lines:
        y += _LINE
        ink = ACCENT if text in box.broken else MUTED
        shown = text if len(text) <= _LETTERS else f"{text[: _LETTERS - 1]}…"
        axes.text(left, y, f"≠ {shown}" if text in box.broken else shown, va="center", color=ink, fontsize=10)
        axes.text(
            right if text else left, y, digest, va="center", ha="right" if text else "left", color=INK, fontsize=10
        )


def _buses(axes: Axes, places: Mapping[str, _Place], arrows: Sequence[Arrow]) -> None:
    """The lines along both edges from which the readers further down branch off."""
    for source, x in _BUSES.items():
        ends = [places[a.target].middle[1] for a in arrows if a.source == source and a.target in _BY_BUS]
        if ends:
            axes.plot([x, x], [places[source].bottom, max(ends)], color=MUTED, linewidth=1.1, solid_capstyle="butt")


def _draw_arrow(axes: Axes, arrow: Arrow, places: Mapping[str, _Place]) -> None:
    start, end = _ends(arrow, places)
    ink = ACCENT if arrow.broken else MUTED
    style = {
        "arrowstyle": "-|>,head_width=0.22,head_length=0.45",
        "color": ink,
        "linewidth": 2.0 if arrow.broken else 1.1,
        "linestyle": (0, (3, 2)) if arrow.unrecorded else "-",
        "shrinkA": 0,
        "shrinkB": 0,
    }
    axes.annotate("", xy=end, xytext=start, arrowprops=style)
    if arrow.broken:
        x, y = (start[0] + end[0]) / 2, (start[1] + end[1]) / 2
        halo(axes.text(x, y, "≠", color=ACCENT, ha="center", va="center", fontweight="bold", fontsize=14))


def _ends(arrow: Arrow, places: Mapping[str, _Place]) -> tuple[tuple[float, float], tuple[float, float]]:
    source, target = places[arrow.source], places[arrow.target]
    if arrow.source in _BUSES and arrow.target in _BY_BUS:
        x, y = _BUSES[arrow.source], target.middle[1]
        return (x, y), (target.left if x < target.left else target.right, y)
    if source.top == target.top:
        y = min(source.middle[1], target.middle[1])
        return (source.right, y), (target.left, y)
    # Down: from below the middle of the upper box towards the middle of the lower one, in its own half.
    shift = max(-45.0, min(45.0, source.middle[0] - target.middle[0]))
    other = max(-45.0, min(45.0, target.middle[0] - source.middle[0]))
    return (source.middle[0] + other, source.bottom), (target.middle[0] + shift, target.top)
