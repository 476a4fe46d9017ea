"""How much the machine's own speed changed while the benchmark ran: what the ratios have to be read with."""

from collections.abc import Sequence
from typing import Final

from stages.common.benchmark import ModelResult

_TOLD: Final = 1.25  # slowest over fastest repeat of one and the same run, from which on it is said


def noise(models: Sequence[ModelResult]) -> list[str]:
    """A line for every model whose own repeats differ much."""
    lines = []
    for model in models:
        point = max(model.points, key=lambda one: one.seconds.high / one.seconds.low)
        low, high = point.seconds.low, point.seconds.high
        if high / low >= _TOLD:
            lines.append(
                f"{model.workload.model}: the machine's speed changed between repeats: one and the same run of ours "
                f"(boundary {point.boundary}, epochs: {point.epochs}) took {low:.3g} to {high:.3g} s"
            )
    return lines
