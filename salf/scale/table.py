"""Predictions on a terminal, and what became of them."""

import math
from collections.abc import Sequence

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from salf.scale.comparison import Compared
from salf.scale.machine import GIB, Machine
from salf.scale.prediction import Boundary, Prediction

_UNITS = (("days", 86_400), ("h", 3600), ("min", 60))


def print_prediction(prediction: Prediction, console: Console) -> None:
    """Print a row per boundary, and below what was assumed."""
    shape = prediction.model.shape
    title = f"{prediction.model.name} ({prediction.model.origin}): {shape.parameters:,} parameters"
    table = Table(title=f"{title}, {shape.layers} layers, one {prediction.machine.name}", box=SIMPLE)
    headings = ["frozen up to", "trained", "FLOPs", "of full", "time", "memory", "cache"]
    if prediction.machine.memory_bytes:
        headings.append("devices")
    for heading in headings:
        table.add_column(heading, justify="right")
    for boundary in prediction.boundaries:
        table.add_row(*_cells(boundary, prediction.machine.memory_bytes))
    console.print(table)
    for line in prediction.assumptions:
        console.print(f"- {line}", highlight=False, markup=False, soft_wrap=True)


def print_comparison(compared: Sequence[Compared], machine: Machine, console: Console) -> None:
    """Print a row per fine-tune that was made here."""
    table = Table(title=f"Predicted and measured: this chain's fine-tunes at {machine.words}", box=SIMPLE)
    table.add_column("run")
    for heading in ("frozen up to", "predicted", "measured", "predicted / measured"):
        table.add_column(heading, justify="right")
    for one in compared:
        seconds = (duration(one.predicted_seconds), duration(one.measured_seconds))
        table.add_row(one.run, str(one.boundary), *seconds, f"{one.ratio:.2f}")
    console.print(table)
    held = "- measured: training steps, and the frozen layers' pass over the training split; no loading or validation"
    console.print(held, highlight=False, soft_wrap=True)


def _cells(boundary: Boundary, device_bytes: int | None) -> list[str]:
    cells = [
        str(boundary.boundary),
        f"{boundary.trained_parameters / 1e9:.3g} B",
        f"{boundary.flops:.2e}",
        f"{boundary.flops_share:.0%}",
        duration(boundary.seconds),
        f"{boundary.memory.peak / GIB:.3g} GiB",
        f"{boundary.cache_bytes / GIB:.3g} GiB" if boundary.cache_bytes else "",
    ]
    return [*cells, str(math.ceil(boundary.memory.peak / device_bytes))] if device_bytes else cells


def duration(seconds: float) -> str:
    """Seconds in the largest unit that leaves at least one."""
    unit, length = next(((unit, length) for unit, length in _UNITS if seconds >= length), ("s", 1))
    return f"{seconds / length:.3g} {unit}"
