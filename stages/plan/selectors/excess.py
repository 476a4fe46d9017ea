"""From how much every layer matters to a boundary: keep more of what matters than of the cost.

Training above boundary k keeps the share Σ_{l>k} w_l / Σ_l w_l of the layers' weights w (gradient, signal) and costs
a share of full fine-tuning's FLOPs. The boundary is where the first exceeds the second most: the point of a cumulative
curve that lies farthest above its diagonal (the statistic of a CUSUM test for one change, and Youden's J). Where the
weights lie evenly over the depth, or early, nothing exceeds and full fine-tuning is what the rule says.
"""

from stages.plan.evidence import Evidence, Signal
from stages.plan.selectors.choice import Choice
from stages.plan.selectors.signal import MEASURED_ONCE


def most_excess(evidence: Evidence, weights: Signal, what: str) -> Choice:
    """The boundary of 0..L-1 whose share of the weights of layers 1..L exceeds its share of the cost most.

    Args:
        evidence: for the costs.
        weights: non-negative, by layer; index 0 is not read.
        what: names the weights in the reason.
    """
    total = sum(weights[1:])
    kept = [sum(weights[boundary + 1 :]) / total if total else 0.0 for boundary in range(evidence.layers + 1)]
    scores = tuple(keeps - point.flops_share for keeps, point in zip(kept, evidence.frontier, strict=True))
    best = max(range(evidence.layers), key=lambda boundary: (scores[boundary], boundary))
    cost = evidence.frontier[best].flops_share
    return Choice(
        boundary=best,
        reason=f"the layers above {best} hold {kept[best]:.0%} of {what} for {cost:.0%} of the cost",
        certainty=MEASURED_ONCE,
        scores=scores,
    )
