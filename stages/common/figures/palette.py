"""One colour and one marker per method in every figure, readable on light and on dark ground.

Figures are drawn with stand-in colours; :func:`stages.common.figures.svg.finish` exchanges them for CSS
variables, whose values for light and dark the page's style sheet gives. The hues are those of Okabe
and Ito (2008), told apart by readers with any common colour blindness, darkened or lightened until
their contrast with the ground is at least 3:1; the marker says the same a second time.
"""

from dataclasses import dataclass
from typing import Final

from salf.methods import frozen_by_name, method_of


@dataclass(frozen=True)
class Ink:
    """A CSS variable, its two values, and the stand-in that is drawn with."""

    variable: str
    light: str
    dark: str
    stand_in: str


def _inks(*values: tuple[str, str, str]) -> dict[str, Ink]:
    return {name: Ink(f"--{name}", light, dark, f"#fe{i:02x}ef") for i, (name, light, dark) in enumerate(values, 1)}


INKS: Final = _inks(
    ("ink", "#1b1d22", "#eceae5"),
    ("muted", "#5d616b", "#a3a7b1"),
    ("rule", "#dcd9d2", "#363a43"),
    ("card", "#ffffff", "#1b1e24"),
    ("full", "#0068a8", "#5cb8f0"),
    ("salf", "#c24e00", "#ff8f45"),
    ("lora", "#00785a", "#35c79b"),
    ("salf-lora", "#a43d7c", "#ea9bcb"),
    ("last-n", "#876600", "#e6c34a"),
    ("none", "#6a4fb0", "#b7a3f2"),
    ("random", "#4d5a66", "#a9b7c4"),
    ("freeze", "#7a5230", "#cfa57a"),
    ("half", "#a8202e", "#ff8a8f"),
    ("half-lora", "#5b6b00", "#c3d65a"),
)

_MARKERS: Final = {
    "full": "o",
    "salf": "s",
    "lora": "^",
    "salf-lora": "D",
    "last-n": "v",
    "none": "P",
    "random": "X",
    "freeze": "h",
    "freeze-lora": "H",
    "half": "p",
    "half-lora": "d",
    "first-n": "<",
    "lisa": "*",
}

INK: Final = INKS["ink"].stand_in
MUTED: Final = INKS["muted"].stand_in
RULE: Final = INKS["rule"].stand_in
CARD: Final = INKS["card"].stand_in
ACCENT: Final = INKS["salf"].stand_in


def variable(method: str) -> str:
    """The CSS variable of a method; baselines and methods without a colour of their own are muted."""
    return INKS.get(_kind(method), INKS["muted"]).variable


def colour(method: str) -> str:
    """The stand-in colour of a method."""
    return INKS.get(_kind(method), INKS["muted"]).stand_in


def marker(method: str) -> str:
    """The matplotlib marker of a method."""
    return _MARKERS.get(_kind(method), "o")


def _kind(method: str) -> str:
    """What methods of one colour have in common: all boundaries that were given by hand are of one kind."""
    named = method_of(method)
    scope = named.scope if frozen_by_name(named.scope) is None else "freeze"
    return "-".join((scope, *named.words)).removeprefix("full-")


def light() -> str:
    """The variables' values on light ground as CSS declarations."""
    return "".join(f"{ink.variable}:{ink.light};" for ink in INKS.values())


def style_sheet() -> str:
    """The variables of both grounds as CSS declarations: light first, dark under its media query."""
    dark = "".join(f"{ink.variable}:{ink.dark};" for ink in INKS.values())
    return f":root{{{light()}}}\n@media screen and (prefers-color-scheme: dark){{:root{{{dark}}}}}"
