"""Arrival: the paper's rule with the task in the target's place.

The paper freezes up to the layer that brings the states most of the way to the answer's word. A word is chosen late;
what the word is chosen by may have been there long before. So the gain of a layer is taken from what a ridge classifier
reads of the task off the raw state at the position that answers (``stages/signals/probe.py``): the share of its
errors, as a logarithm, that the layer takes away. The layer that takes away most is where the task's information
arrives at that position; layers behind it make use of it, and those are trained.

An error of 0 would make any gain infinite: errors count as at least a thousandth, less than a sample of some hundred
examples tells.
"""

import math
from typing import Final

from salf.files import significant
from stages.common.params import Plan
from stages.plan.evidence import Evidence
from stages.plan.selectors.choice import Choice
from stages.plan.selectors.signal import MEASURED_ONCE, signal

_LEAST_ERROR: Final = 1e-3


def arrival(evidence: Evidence, _params: Plan) -> Choice:
    """Freeze up to the layer of 2..L-1 that removes most errors of a classifier at the answer's position."""
    errors = [max(1 - known, _LEAST_ERROR) for known in signal(evidence, "probe", "probe")]
    layers = range(2, evidence.layers)
    gains = {layer: math.log(errors[layer - 1] / errors[layer]) for layer in layers}
    best = max(layers, key=lambda layer: (gains[layer], layer))
    return Choice(
        boundary=best,
        reason=f"layer {best} takes most away from what a classifier at the answer's position gets wrong: "
        f"{errors[best - 1]:.0%} before it, {errors[best]:.0%} behind it",
        certainty=MEASURED_ONCE,
        scores=tuple(significant(gains[k]) if k in gains else None for k in range(evidence.layers + 1)),
    )
