"""Full fine-tuning: what every other rule is measured against."""

from stages.common.params import Plan
from stages.plan.evidence import Evidence
from stages.plan.selectors.choice import Choice


def full(_evidence: Evidence, _params: Plan) -> Choice:
    """Freeze nothing."""
    return Choice(0, "full fine-tuning: nothing is frozen")
