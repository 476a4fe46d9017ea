"""Selectors that weigh a predicted quality against the cost."""

from dataclasses import dataclass

from salf.files import significant
from salf.plan import Certainty
from stages.common.params import Plan
from stages.plan.evidence import DepthLaw, Evidence, PilotPrediction, PredictedLoss
from stages.plan.selectors.choice import AbsentEvidenceError, Choice
from stages.plan.selectors.salf import basis_of


@dataclass(frozen=True)
class Prediction:
    """Predicted quality of the boundaries 0..L.

    Attributes:
        quality: higher is better, [L+1].
        margin: half the width of its interval, in the same units, [L+1].
        words: what is predicted.
        reach: the deepest boundary of which it speaks; behind it, it is extrapolated.
        fallback: says in words when other evidence predicts than was asked for.
    """

    quality: tuple[float, ...]
    margin: tuple[float, ...]
    words: str
    reach: int
    fallback: str | None

    def certainty(self, boundary: int) -> Certainty:
        """How sure the prediction is of a boundary."""
        value, margin = self.quality[boundary], self.margin[boundary]
        return Certainty(
            win_share=None,
            value=significant(value),
            low=significant(value - margin),
            high=significant(value + margin),
            words=f"predicted quality {value - margin:.4g} to {value + margin:.4g}: {self.words}",
        )


def predicted_quality(evidence: Evidence, params: Plan) -> Prediction:
    """What pilots predict, where there were any; else what the scaling law promises."""
    return _of_law(evidence, params) if evidence.pilot is None else _of_pilots(evidence.pilot)


def _of_pilots(pilot: PilotPrediction) -> Prediction:
    """The negative of the predicted validation loss."""
    quality = tuple(-row.loss for row in pilot.predictions)
    margin = tuple((row.high - row.low) / 2 for row in pilot.predictions)
    return Prediction(quality, margin, "negative validation loss, by pilots", pilot.deepest, pilot.fallback)


def _of_law(evidence: Evidence, params: Plan) -> Prediction:
    """The reduction of the law's quantity that training above each boundary can still change.

    Layer 1's own step starts from the embedding output and is nobody's reduction: boundaries 0 and 1 get the same.
    """
    basis = basis_of(evidence, params)
    law = evidence.laws[basis.quantity]
    end = law.predicted(evidence.layers)
    quality = tuple(law.predicted(max(boundary, 1)) - end for boundary in range(evidence.layers + 1))
    words = f"reduction of the {basis.quantity} that is left to train, {'by the law' if law.fits else 'as observed'}"
    notes = [basis.fallback] if basis.fallback else []
    if not law.fits:
        notes.append(f"no law fits the {basis.quantity} ({law.verdict.rstrip('.')}): its observed mean predicts")
    return Prediction(quality, _half_widths(law), words, evidence.layers, "; ".join(notes) or None)


def _half_widths(law: DepthLaw) -> tuple[float, ...]:
    return tuple((high - low) / 2 for low, high in zip(law.low, law.high, strict=True))


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


def pilot(evidence: Evidence, params: Plan) -> Choice:
    """Freeze up to the deepest boundary whose loss, predicted by small fine-tunes, is not worse than the best.

    The stage ``pilot`` predicts the validation loss of every boundary from a few small fine-tunes and the joint law
    of Zhang et al. (arXiv 2402.17193). Of the boundaries whose loss is within one standard error of the best one's
    the cheapest is taken: the rule by which Breiman et al. (1984, §3.4.3) choose the size of a tree. The standard
    error is that of the difference to the best, over resamples that draw validation examples for all boundaries
    together.

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
