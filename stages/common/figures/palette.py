"""One colour and one marker per method in every figure, readable on light and on dark ground.

Figures are drawn with stand-in colours, which become CSS variables in the page. The hues are those of Okabe and Ito
(2008), changed until their contrast with the ground is at least 3:1; the marker says the same a second time.
"""

from dataclasses import dataclass
from typing import Final

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


def light() -> str:
    """The variables' values on light ground as CSS declarations."""
    return "".join(f"{ink.variable}:{ink.light};" for ink in INKS.values())


def style_sheet() -> str:
    """The variables of both grounds as CSS declarations: light first, dark under its media query."""
    dark = "".join(f"{ink.variable}:{ink.dark};" for ink in INKS.values())
    return f":root{{{light()}}}\n@media screen and (prefers-color-scheme: dark){{:root{{{dark}}}}}"
