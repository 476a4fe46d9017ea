"""The cheapest that is as good as full fine-tuning, as far as the prediction can tell."""

from stages.common.params import Plan
from stages.plan.evidence import Evidence
from stages.plan.selectors.choice import Choice
from stages.plan.selectors.prediction import predicted_quality


def tolerance(evidence: Evidence, params: Plan) -> Choice:
    """Take the cheapest boundary whose predicted quality is within ``plan.tolerance`` of full fine-tuning's.

    The tolerance counts half-widths of the prediction's own interval, so it knows no units. Costs fall with the
    boundary: the cheapest is the deepest, of those within the prediction's reach. Behind layer L no layer trains, and
    that is the rule ``none``.
    """
    predicted = predicted_quality(evidence, params)
    whole = predicted.quality[0]
    within = [
        boundary
        for boundary in range(min(predicted.reach + 1, evidence.layers))
        if predicted.quality[boundary] >= whole - params.tolerance * predicted.margin[boundary]
    ]
    best = within[-1]
    return Choice(
        boundary=best,
        reason=f"boundary {best} is the deepest whose predicted quality ({predicted.quality[best]:.4g}: "
        f"{predicted.words}) is within {params.tolerance:g} half-widths of its interval "
        f"({predicted.margin[best]:.2g}) of full fine-tuning's ({whole:.4g})",
        certainty=predicted.certainty(best),
        fallback=predicted.fallback,
        scores=predicted.quality,
    )
