"""How good every boundary is predicted to be, for rules that weigh quality against cost."""

from dataclasses import dataclass

from salf.files import significant
from salf.plan import Certainty
from stages.common.params import Plan
from stages.plan.evidence import DepthLaw, Evidence, PilotPrediction
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
