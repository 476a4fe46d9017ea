"""The rule of thumb that any evidence has to beat."""

from stages.common.params import Plan
from stages.plan.evidence import Evidence
from stages.plan.selectors.choice import Choice


def half(evidence: Evidence, _params: Plan) -> Choice:
    """Freeze the lower half of the layers, whatever the task."""
    return Choice(boundary=evidence.layers // 2, reason="the lower half of the layers is frozen")
