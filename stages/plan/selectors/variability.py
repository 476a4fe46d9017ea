"""Hidden-state variability: what is already specialised in the task need not be trained.

Xie et al. 2022 (arXiv 2210.10041): a space is well specialised where the states of a class spread little beside the
distance of the classes (ν low, see ``stages/signals/variability.py``); they put a classifier on the space of the lowest
ν and drop the layers above. A causal language model answers with its own head and needs those layers, so here they are
what trains.
"""

import math

from stages.common.params import Plan
from stages.plan.evidence import Evidence
from stages.plan.selectors.choice import AbsentEvidenceError, Choice
from stages.plan.selectors.signal import MEASURED_ONCE, signal


def variability(evidence: Evidence, _params: Plan) -> Choice:
    """Freeze up to the space of 1..L-1 that separates the classes best (hidden-state variability).

    Raises:
        AbsentEvidenceError: it was not measured, or no space tells any class from another.
    """
    values = signal(evidence, "variability", "variability")
    known = [space for space in range(1, evidence.layers) if math.isfinite(values[space])]
    if not known:
        raise AbsentEvidenceError("no space tells one class from another; raise signals.sample in params.yaml")
    best = min(known, key=lambda space: (values[space], -space))
    return Choice(
        boundary=best,
        reason=f"at space {best} classes spread least beside their distance (variability {values[best]:.4g})",
        certainty=MEASURED_ONCE,
        scores=tuple(-value if math.isfinite(value) else None for value in values),
    )
