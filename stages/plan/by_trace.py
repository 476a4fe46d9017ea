"""Selectors that read the trace: the largest gain (the paper's), and quality that the law or pilots predict.

That the layer of the largest gain, k*, ends the frozen part is second-hand (a caption of the paper's figure, Gu et
al., arXiv 2406.11753). The gains are reconstructions (:mod:`salf.gains`), the budget and the tolerance are ours.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from salf.errors import UserError
from salf.evidence import DepthLaw, Evidence, LayerGain
from salf.files import significant
from salf.plan_records import Certainty, RunnerUp
from salf.selectors import GAINS, OF_THE_POWER_LAW, GainName, Quantity
from stages.common.params import Plan
from stages.plan.budget import Budget
from stages.plan.choice import AbsentEvidenceError, Choice, certainty

_SURE: Final = {0.9: "sure", 0.5: "fairly sure"}  # by the share of resamples from which on a choice is called that
_RUNNERS_UP: Final = 3


class Basis(NamedTuple):
    """The quantity and gain that decide, and why they are not the requested ones."""

    quantity: Quantity
    gain: GainName
    fallback: str | None


def basis_of(evidence: Evidence, params: Plan) -> Basis:
    """The gain that decides: the requested one, or the nearest that the trace supports."""
    quantity, gain, notes = params.quantity, params.gain, list[str]()
    if quantity not in evidence.laws:
        notes.append(f"the {quantity} was not traced (trace.losses is 0): the deviation decides")
        quantity = "deviation"
    if fault := _fault(evidence, quantity, gain):
        notes.append(f"{fault}: the observed gain of the {quantity} decides instead of the {GAINS[gain]}")
        gain = "observed"
    if not evidence.gains.get((quantity, gain)):
        raise UserError(f"no layer has an {GAINS[gain]} of the {quantity}; run again: dvc repro fit")
    return Basis(quantity, gain, "; ".join(notes) or None)


def _fault(evidence: Evidence, quantity: Quantity, gain: GainName) -> str | None:
    """Why a gain of a traced quantity cannot decide."""
    law = evidence.laws[quantity]
    if gain in OF_THE_POWER_LAW and not law.power_fits:
        return f"no power law over the whole depth fits the {quantity} ({law.verdict.rstrip('.')})"
    if not evidence.gains.get((quantity, gain)):
        return f"no layer has a {GAINS[gain]} of the {quantity} (if fit did not compute it, run again: dvc repro fit)"
    return None


def salf(evidence: Evidence, params: Plan) -> Choice:
    """Freeze up to the layer of 2..L-1 with the largest gain (second-hand); layer 1's is the embedding step's."""
    return _largest(evidence, basis_of(evidence, params))


def salf_alone(evidence: Evidence, params: Plan) -> Choice:
    """The same by exactly this gain of this quantity."""
    if params.quantity not in evidence.laws:
        raise AbsentEvidenceError(f"the {params.quantity} was not traced: set trace.losses")
    if fault := _fault(evidence, params.quantity, params.gain):
        raise AbsentEvidenceError(fault)
    return _largest(evidence, Basis(params.quantity, params.gain, None))


def _largest(evidence: Evidence, basis: Basis) -> Choice:
    gains = evidence.gains[basis.quantity, basis.gain]
    best = max(gains, key=lambda gain: (gain.value, gain.layer))
    others = sorted((g for g in gains if g != best), key=lambda g: (-g.win_share, -g.value))
    by_layer = {gain.layer: gain.value for gain in gains}
    reason = (
        f"layer {best.layer} has the largest {GAINS[basis.gain]} of the {basis.quantity} "
        f"({best.value:.4g}) among layers 2 to {evidence.layers - 1}"
    )
    if best.value <= 0:
        reason += f"; no layer reduces the {basis.quantity}, so this choice means little"
    return Choice(
        best.layer,
        reason,
        _certainty(best, gains),
        tuple(
            RunnerUp(boundary=g.layer, value=significant(g.value), win_share=significant(g.win_share))
            for g in others[:_RUNNERS_UP]
        ),
        basis.fallback,
        tuple(by_layer.get(boundary) for boundary in range(evidence.layers + 1)),
        _interval(gains, evidence.confidence),
        _warning(evidence.laws[basis.quantity], basis) if basis.gain == "law" else None,
    )


def _interval(gains: Sequence[LayerGain], confidence: float) -> tuple[int, int] | None:
    """The bootstrap interval of the layer that wins; ``None``: the gain was not resampled."""
    shares = np.cumsum([gain.win_share for gain in gains])
    if not shares[-1] > 1 - 1e-6:
        return None
    low, high = np.searchsorted(shares, np.array([1 - confidence, 1 + confidence]) / 2 - 1e-9)
    return gains[low].layer, gains[high].layer


def _warning(law: DepthLaw, basis: Basis) -> str | None:
    if law.falling is None or law.falling.fits:
        return None
    why = "; ".join(law.falling.faults)
    return f"the power law of the {basis.quantity} from space {law.falling.first_space} on does not fit: {why}"


def _certainty(best: LayerGain, gains: tuple[LayerGain, ...]) -> Certainty:
    how = next((words for share, words in _SURE.items() if best.win_share >= share), "unsure")
    words = f"{how}: layer {best.layer} wins {best.win_share:.0%} of resamples"
    rival = max(gains, key=lambda gain: gain.win_share)
    if how == "unsure" and rival.layer != best.layer and rival.win_share >= best.win_share:
        words += f", layer {rival.layer} {rival.win_share:.0%}"
    low, high = (significant(x) if math.isfinite(x) else None for x in (best.low, best.high))
    return Certainty(
        win_share=significant(best.win_share), value=significant(best.value), low=low, high=high, words=words
    )


@dataclass(frozen=True)
class Prediction:
    """Predicted quality of the boundaries 0..L."""

    quality: tuple[float, ...]  # higher is better, [L+1]
    margin: tuple[float, ...]  # half the width of its interval, in the same units, [L+1]
    words: str  # what is predicted
    reach: int  # the deepest boundary that it is about; above that it is extrapolated
    fallback: str | None  # what predicts instead of the requested evidence, in words

    def choice(self, boundary: int, reason: str) -> Choice:
        """The choice of a boundary, with the prediction's certainty and scores."""
        value, margin = self.quality[boundary], self.margin[boundary]
        low, high = value - margin, value + margin
        sure = certainty(f"predicted quality {low:.4g} to {high:.4g}: {self.words}", value, low, high)
        return Choice(boundary, reason, sure, fallback=self.fallback, scores=self.quality)


def _predicted(evidence: Evidence, params: Plan) -> Prediction:
    """The pilots' predictions, if there are any; otherwise the scaling law's.

    The law's prediction is the reduction of its quantity that training above a boundary can still change. Layer 1
    starts from the embedding output, which is no layer's reduction: boundaries 0 and 1 get the same.
    """
    if evidence.pilot:
        rows, pilots = evidence.pilot.predictions, evidence.pilot
        quality, margin = tuple(-row.loss for row in rows), tuple((row.high - row.low) / 2 for row in rows)
        return Prediction(quality, margin, "negative validation loss, by pilots", pilots.deepest, pilots.fallback)
    basis = basis_of(evidence, params)
    law = evidence.laws[basis.quantity]
    end = law.predicted(evidence.layers)
    quality = tuple(law.predicted(max(boundary, 1)) - end for boundary in range(evidence.layers + 1))
    margin = tuple((high - low) / 2 for low, high in zip(law.low, law.high, strict=True))
    words = f"reduction of the {basis.quantity} that is left to train, {'by the law' if law.fits else 'as observed'}"
    notes = [basis.fallback] if basis.fallback else []
    if not law.fits:
        notes.append(f"no law fits the {basis.quantity} ({law.verdict.rstrip('.')}): its observed mean predicts")
    return Prediction(quality, margin, words, evidence.layers, "; ".join(notes) or None)


def budget(evidence: Evidence, params: Plan) -> Choice:
    """Take the best predicted quality within ``plan.budget`` (ours); the cheapest of equals.

    If all boundaries within the budget are beyond the prediction's reach, the shallowest of them. A budget that
    nothing fits gives the cheapest boundary, L, which the plan then refuses.
    """
    predicted = _predicted(evidence, params)
    limit = Budget.of(params, evidence.frontier)
    paid = [boundary for boundary in range(evidence.layers + 1) if limit.pays_for(boundary)] or [evidence.layers]
    known = [boundary for boundary in paid if boundary <= predicted.reach] or [min(paid)]
    best = max(known, key=lambda boundary: (predicted.quality[boundary], boundary))
    return predicted.choice(
        best,
        f"of the boundaries that cost at most {limit.words(limit.limit)}{limit.whole}, {best} has the best "
        f"predicted quality ({predicted.quality[best]:.4g}: {predicted.words})",
    )


def tolerance(evidence: Evidence, params: Plan) -> Choice:
    """Take the cheapest boundary whose predicted quality is within ``plan.tolerance`` of full fine-tuning's (ours).

    The tolerance counts half-widths of the prediction's own interval, so it has no units. Costs fall with the
    boundary: the cheapest is the deepest within the prediction's reach, below L (selector ``none``).
    """
    predicted = _predicted(evidence, params)
    whole = predicted.quality[0]
    best = max(
        boundary
        for boundary in range(min(predicted.reach + 1, evidence.layers))
        if predicted.quality[boundary] >= whole - params.tolerance * predicted.margin[boundary]
    )
    return predicted.choice(
        best,
        f"boundary {best} is the deepest whose predicted quality ({predicted.quality[best]:.4g}: "
        f"{predicted.words}) is within {params.tolerance:g} half-widths of its interval "
        f"({predicted.margin[best]:.2g}) of full fine-tuning's ({whole:.4g})",
    )


def pilot(evidence: Evidence, params: Plan) -> Choice:
    """Freeze up to the deepest boundary whose loss, predicted by small fine-tunes, is not worse than the best.

    "Not worse": by at most ``plan.tolerance`` standard errors of the paired difference to the best (Breiman et al.
    1984, §3.4.3), up to the deepest pilot and below L (selector ``none``).
    """
    pilots = evidence.pilot
    assert pilots  # its evidence, by its entry
    rows = pilots.predictions[: min(pilots.deepest + 1, evidence.layers)]
    least = min(row.loss for row in rows)
    chosen = [row for row in rows if row.loss - least <= params.tolerance * row.excess_error or row.loss == least][-1]
    how = "the law of all pilots" if pilots.law.holds else "the largest pilots, interpolated, without a law"
    words = f"validation loss {chosen.low:.4g} to {chosen.high:.4g} by {how}"
    return Choice(
        chosen.boundary,
        f"boundary {chosen.boundary} is the deepest whose loss, as pilots predict it ({chosen.loss:.4g}), is within "
        f"{params.tolerance:g} standard errors ({chosen.excess_error:.2g}) of the best ({least:.4g}), of those up to "
        f"the deepest pilot, {pilots.deepest}; the pilots cost {pilots.flops.share:.2f} times one full fine-tune",
        certainty(words, chosen.loss, chosen.low, chosen.high),
        fallback=pilots.fallback,
        scores=tuple(-row.loss for row in pilots.predictions),
    )
