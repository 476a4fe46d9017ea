"""The cheapest boundary: behind the last layer."""

from stages.common.params import Plan
from stages.plan.evidence import Evidence
from stages.plan.selectors.choice import Choice


def none(evidence: Evidence, _params: Plan) -> Choice:
    """Freeze every layer: only the final norm trains, and an untied head."""
    return Choice(evidence.layers, "every layer is frozen: only what follows the last layer trains")
