"""Small fine-tunes decide: freeze as much as their prediction cannot tell from the best.

The stage ``pilot`` predicts the validation loss of every boundary from a few small fine-tunes and the joint law of
Zhang et al. (arXiv 2402.17193). Of the boundaries whose loss is within one standard error of the best one's the
cheapest is taken: the rule by which Breiman et al. (1984, §3.4.3) choose the size of a tree. The standard error is
that of the difference to the best, over resamples that draw validation examples for all boundaries together.
"""

from salf.files import significant
from salf.plan import Certainty
from stages.common.params import Plan
from stages.plan.evidence import Evidence, PilotPrediction, PredictedLoss
from stages.plan.selectors.choice import AbsentEvidenceError, Choice


def pilot(evidence: Evidence, params: Plan) -> Choice:
    """Freeze up to the deepest boundary whose loss, predicted by small fine-tunes, is not worse than the best.

    "Not worse": by at most ``plan.tolerance`` standard errors of the difference. Of those up to the deepest pilot: what
    lies behind it is extrapolated. Behind layer L no layer trains, and that is the rule ``none``.

    Raises:
        AbsentEvidenceError: there were no pilots.
    """
    predicted = evidence.pilot
    if predicted is None:
        raise AbsentEvidenceError("set pilot.enabled to true")
    rows = predicted.predictions[: min(predicted.deepest + 1, evidence.layers)]
    least = min(row.loss for row in rows)
    chosen = [row for row in rows if row.loss - least <= params.tolerance * row.excess_error or row.loss == least][-1]
    return Choice(
        boundary=chosen.boundary,
        reason=_reason(chosen, least, predicted, params.tolerance),
        certainty=_certainty(chosen, predicted),
        fallback=predicted.fallback,
        scores=tuple(-row.loss for row in predicted.predictions),
    )


def _reason(chosen: PredictedLoss, least: float, predicted: PilotPrediction, tolerance: float) -> str:
    return (
        f"boundary {chosen.boundary} is the deepest whose loss, as pilots predict it ({chosen.loss:.4g}), is within "
        f"{tolerance:g} standard errors ({chosen.excess_error:.2g}) of the best ({least:.4g}), of those up to the "
        f"deepest pilot, {predicted.deepest}; the pilots cost {predicted.flops.share:.2f} times one full fine-tune"
    )


def _certainty(chosen: PredictedLoss, predicted: PilotPrediction) -> Certainty:
    how = "the law of all pilots" if predicted.law.holds else "the largest pilots, interpolated, without a law"
    return Certainty(
        win_share=None,
        value=significant(chosen.loss),
        low=significant(chosen.low),
        high=significant(chosen.high),
        words=f"validation loss {chosen.low:.4g} to {chosen.high:.4g} by {how}",
    )
