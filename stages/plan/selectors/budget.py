"""The best that a budget buys."""

from stages.common.params import Plan
from stages.plan.evidence import Evidence
from stages.plan.selectors.choice import Choice
from stages.plan.selectors.prediction import predicted_quality


def budget(evidence: Evidence, params: Plan) -> Choice:
    """Take the best predicted quality within ``plan.budget``; of equals the cheapest.

    Where all that is paid for lies behind the prediction's reach, the shallowest of it. A budget that nothing fits
    gives the cheapest boundary, L, which the plan then refuses.
    """
    predicted = predicted_quality(evidence, params)
    paid = [point.boundary for point in evidence.frontier if point.flops_share <= params.budget] or [evidence.layers]
    known = [boundary for boundary in paid if boundary <= predicted.reach] or [min(paid)]
    best = max(known, key=lambda boundary: (predicted.quality[boundary], boundary))
    return Choice(
        boundary=best,
        reason=f"of the boundaries that cost at most {params.budget:.0%} of full fine-tuning, {best} has the best "
        f"predicted quality ({predicted.quality[best]:.4g}: {predicted.words})",
        certainty=predicted.certainty(best),
        fallback=predicted.fallback,
        scores=predicted.quality,
    )
