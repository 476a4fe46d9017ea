"""A number of layers given by hand, as most recipes do."""

from stages.common.params import Plan
from stages.plan.evidence import Evidence
from stages.plan.selectors.choice import Choice


def last_n(evidence: Evidence, params: Plan) -> Choice:
    """Train the last ``plan.last_n`` layers."""
    trained = min(params.last_n, evidence.layers - 1)
    cut = "" if trained == params.last_n else f" (plan.last_n is {params.last_n}; all layers would be full fine-tuning)"
    return Choice(evidence.layers - trained, f"the last {trained} layers train{cut}")
