"""Figures as every page and folder of this project has them: inline SVG that follows the page, without a network.

One colour and one marker per method in every figure, readable on light and on dark ground. Figures are drawn with
stand-in colours, which become CSS variables in the page. The hues are those of Okabe and Ito (2008), changed until
their contrast with the ground is at least 3:1; the marker says the same a second time.
"""

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import BboxBase
from numpy.typing import ArrayLike

from salf.methods import frozen_by_name, method_of


@dataclass(frozen=True)
class Ink:
    """A CSS variable, its two values, the stand-in that is drawn with, and the marker of a method."""

    variable: str
    light: str
    dark: str
    stand_in: str
    marker: str = "o"


_VALUES: Final = (
    ("ink", "#1b1d22", "#eceae5"),
    ("muted", "#5d616b", "#a3a7b1"),
    ("rule", "#dcd9d2", "#363a43"),
    ("card", "#ffffff", "#1b1e24"),
    ("full", "#0068a8", "#5cb8f0", "o"),
    ("salf", "#c24e00", "#ff8f45", "s"),
    ("lora", "#00785a", "#35c79b", "^"),
    ("salf-lora", "#a43d7c", "#ea9bcb", "D"),
    ("last-n", "#876600", "#e6c34a", "v"),
    ("none", "#6a4fb0", "#b7a3f2", "P"),
    ("random", "#4d5a66", "#a9b7c4", "X"),
    ("freeze", "#7a5230", "#cfa57a", "h"),
    ("half", "#a8202e", "#ff8a8f", "p"),
    ("half-lora", "#5b6b00", "#c3d65a", "d"),
)
INKS: Final = {
    name: Ink(f"--{name}", light, dark, f"#fe{i:02x}ef", *marker)
    for i, (name, light, dark, *marker) in enumerate(_VALUES, 1)
}
_MUTED_MARKERS: Final = {"freeze-lora": "H", "first-n": "<", "lisa": "*"}  # of methods without a colour

INK: Final = INKS["ink"].stand_in
MUTED: Final = INKS["muted"].stand_in
RULE: Final = INKS["rule"].stand_in
ACCENT: Final = INKS["salf"].stand_in
GROUND: Final[Any] = {"facecolor": INKS["card"].stand_in, "edgecolor": "none", "pad": 0.5}  # behind a text on lines

# One panel is as wide as a phone: the text keeps its size there, and wide screens set panels side by side.
WIDTH: Final = 360
HEIGHT: Final = 256
_POINTS_PER_INCH: Final = 72
# Offsets of a label from its point in points, the nearest first, and the side of the text that is there.
_OFFSETS: Final = (
    *((side * 7, shift, side) for shift in (0, 8, -8) for side in (1, -1)),
    *((0, shift, 0) for shift in (14, -14)),
    *((side * 7, sign * shift, side) for shift in (22, 36, 50) for sign in (1, -1) for side in (1, -1)),
)
_SIDES: Final = {1: "left", 0: "center", -1: "right"}
_RC: Final[Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "salf",
    "font.family": "DejaVu Sans",
    "font.size": 10.5,
    "axes.labelsize": 10.5,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.facecolor": "none",
    "figure.facecolor": INKS["card"].stand_in,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "text.color": INK,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": RULE,
    "ytick.major.size": 0,
    "figure.constrained_layout.use": True,
}


def _ink(method: str) -> Ink:
    """Baselines and methods without a colour of their own are muted."""
    return INKS.get(_kind(method), INKS["muted"])


def variable(method: str) -> str:
    """The CSS variable of a method."""
    return _ink(method).variable


def colour(method: str) -> str:
    """The stand-in colour of a method."""
    return _ink(method).stand_in


def marker(method: str) -> str:
    """The matplotlib marker of a method."""
    return _MUTED_MARKERS.get(_kind(method), _ink(method).marker)


def _kind(method: str) -> str:
    """The kind that decides a method's colour: all boundaries given by hand are one kind."""
    named = method_of(method)
    scope = named.scope if frozen_by_name(named.scope) is None else "freeze"
    return "-".join((scope, *named.words)).removeprefix("full-")


def style_sheet() -> str:
    """The variables of both grounds as CSS declarations: light first, dark under its media query."""
    light, dark = ("".join(f"{ink.variable}:{getattr(ink, of)};" for ink in INKS.values()) for of in ("light", "dark"))
    return f":root{{{light}}}\n@media screen and (prefers-color-scheme: dark){{:root{{{dark}}}}}"


def panel(name: str, title: str, description: str, paint: Callable[[Axes], None], height: int = HEIGHT) -> str:
    """Draw one panel as an SVG element of this ``name``, ``title`` (what is seen) and ``description`` (its axes).

    Ids are its own, and the font is the page's. Colours are CSS variables; a file of its own is on light ground.
    """
    with mpl.rc_context(dict(_RC)):
        figure = Figure(figsize=(WIDTH / _POINTS_PER_INCH, height / _POINTS_PER_INCH), dpi=_POINTS_PER_INCH)
        FigureCanvasSVG(figure)
        paint(figure.add_subplot())
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    body = buffer.getvalue().partition("<svg")[2].partition(">")[2].rstrip()
    body = re.sub(r"<!--.*?-->\n?", "", body, flags=re.DOTALL)
    body = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", body)
    body = re.sub(r"font: ([^;\"]*?)([\d.]+px) [^;\"]*", r"font: \1\2 var(--sans, sans-serif)", body)
    body = re.sub(r"font-family: [^;\"]*", "font-family: var(--sans, sans-serif)", body)
    for ink in INKS.values():
        body = body.replace(ink.stand_in, f"var({ink.variable}, {ink.light})")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" id="{name}" '
        f'width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-labelledby="{name}-title {name}-desc" class="figure">\n'
        f' <title id="{name}-title">{escape(title)}</title>\n <desc id="{name}-desc">{escape(description)}</desc>{body}'
    )


def place_labels(
    axes: Axes, labels: Sequence[tuple[float, float, str, str]], obstacles: Sequence[tuple[float, float]] = ()
) -> None:
    """Write (x, y, text, colour) labels next to their points, clear of each other and of the obstacles.

    To be called when the limits of the axes are final. A thin line leads from each label to its point.
    """
    figure = axes.get_figure(root=True)
    assert figure, "axes are a figure's"
    figure.draw_without_rendering()  # lays the axes out
    points = axes.transData.transform([*(label[:2] for label in labels), *obstacles])
    taken: list[BboxBase] = []
    for x, y, words, colour in labels:
        line = {"arrowstyle": "-", "color": colour, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 3}
        style: Any = {"color": colour, "va": "center", "fontweight": "bold", "arrowprops": line, "bbox": GROUND}
        text = axes.annotate(words, (x, y), (0, 0), textcoords="offset points", **style)
        text.get_window_extent()  # from here on its place is that relative to its point
        best = min(_OFFSETS, key=lambda offset: _covered(_put(text, offset), axes.bbox, taken, points))
        taken.append(_put(text, best))


def _put(text: Text, offset: tuple[int, int, int]) -> BboxBase:
    """Move a label, and return the box of its letters."""
    text.set(position=offset[:2], horizontalalignment=_SIDES[offset[2]])
    return Text.get_window_extent(text)


def _covered(box: BboxBase, inside: BboxBase, taken: Sequence[BboxBase], points: ArrayLike) -> float:
    """The cost of a label's place: hiding other labels weighs most, then leaving the axes, then hiding points."""
    sides = (box.x0 < inside.x0, box.x1 > inside.x1, box.y0 < inside.y0, box.y1 > inside.y1)
    return 60 * sum(map(box.overlaps, taken)) + 30 * sum(sides) + box.count_contains(points)
