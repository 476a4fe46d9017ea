"""Boundaries given by hand (``freeze-<k>``) in the figures: a grid, drawn as one thing and not as ten methods."""

from collections.abc import Collection, Mapping
from typing import Final

from salf.methods import frozen_by_name

_NAMED: Final = 3  # methods of a larger grid are labelled by their numbers
_PALEST: Final = 0.35


def grid_of(methods: Collection[str]) -> list[str]:
    """The boundaries among the methods, the shallowest first."""
    return sorted({m for m in methods if frozen_by_name(m) is not None}, key=lambda m: frozen_by_name(m) or 0)


def labels_of(methods: Collection[str]) -> dict[str, str]:
    """The label of each method: its name; of a large grid, the last frozen layer."""
    grid = grid_of(methods)
    short = {method: str(frozen_by_name(method)) for method in grid} if len(grid) > _NAMED else {}
    return {method: short.get(method, method) for method in methods}


def numbers_told(labels: Mapping[str, str]) -> str:
    """Explain the numbers that replace names, for a figure's description; empty without any."""
    numbers = [label for method, label in labels.items() if label != method]
    return f" A number is the last frozen layer of a boundary given by hand: {', '.join(numbers)}." if numbers else ""


def opacity(methods: Collection[str]) -> dict[str, float]:
    """Of each method's line: a grid's are the paler the deeper they freeze."""
    grid = grid_of(methods)
    fading = (1 - _PALEST) / max(1, len(grid) - 1)
    return {method: 1 - fading * grid.index(method) if method in grid else 1.0 for method in methods}
