"""The paper's rule (Gu et al., arXiv 2406.11753): the layer k* with the largest gain ends the frozen part."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from salf.errors import UserError
from salf.files import significant
from salf.plan import Certainty, RunnerUp
from salf.settings import OF_THE_POWER_LAW, GainName, Quantity
from stages.common.params import Plan
from stages.plan.evidence import Evidence, LayerGain
from stages.plan.selectors.choice import AbsentEvidenceError, Choice, Selector

SURE: Final = 0.9  # share of resamples from which a choice is called sure
FAIRLY_SURE: Final = 0.5
_RUNNERS_UP: Final = 3
_WORDS: Final[Mapping[GainName, str]] = {
    "observed": "observed gain",
    "ratio": "gain relative to the law's (capability ratio)",
    "local": "local-law exponent",
    "marginal": "marginal gain predicted by the law",
}


@dataclass(frozen=True)
class Basis:
    """Which gain of which quantity decides, and why it is not the one that was asked for."""

    quantity: Quantity
    gain: GainName
    fallback: str | None


def basis_of(evidence: Evidence, params: Plan) -> Basis:
    """The gain that decides: the one asked for, or the nearest that the trace supports.

    Raises:
        UserError: the trace has no gains at all.
    """
    quantity, notes = params.quantity, list[str]()
    if quantity not in evidence.laws:
        notes.append(f"the {quantity} was not traced (trace.losses is 0): the deviation decides")
        quantity = "deviation"
    gain = params.gain
    if fault := _unusable(evidence, quantity, gain):
        notes.append(f"{fault}: the observed gain of the {quantity} decides instead of the {_WORDS[gain]}")
        gain = "observed"
    if not evidence.gains.get((quantity, gain)):
        raise UserError(f"no layer has an {_WORDS[gain]} of the {quantity}; run again: dvc repro fit")
    return Basis(quantity, gain, "; ".join(notes) or None)


def salf(evidence: Evidence, params: Plan) -> Choice:
    """Freeze up to the layer of 2..L-1 with the largest gain (layer 1's gain is the embedding step's)."""
    return _largest(evidence, basis_of(evidence, params))


def salf_by(quantity: Quantity, gain: GainName) -> Selector:
    """The paper's rule by one gain of one quantity, with nothing in its place where the trace does not support it."""

    def by_this_gain(evidence: Evidence, _params: Plan) -> Choice:
        if quantity not in evidence.laws:
            raise AbsentEvidenceError(f"the {quantity} was not traced: set trace.losses")
        if fault := _unusable(evidence, quantity, gain):
            raise AbsentEvidenceError(fault)
        return _largest(evidence, Basis(quantity, gain, None))

    by_this_gain.__doc__ = f"Freeze up to the layer of the largest {_WORDS[gain]} of the {quantity}."
    return by_this_gain


def _largest(evidence: Evidence, basis: Basis) -> Choice:
    gains = evidence.gains[basis.quantity, basis.gain]
    best = max(gains, key=lambda gain: (gain.value, gain.layer))
    return Choice(
        boundary=best.layer,
        reason=_salf_reason(best, basis, evidence.layers),
        certainty=_certainty(best, gains),
        runners_up=_runners_up(best, gains),
        fallback=basis.fallback,
        scores=_scores(gains, evidence.layers),
    )


def _scores(gains: tuple[LayerGain, ...], layers: int) -> tuple[float | None, ...]:
    """The rule prefers the boundary of the larger gain; of those that it may not choose it says nothing."""
    by_layer = {gain.layer: gain.value for gain in gains}
    return tuple(by_layer.get(boundary) for boundary in range(layers + 1))


def _unusable(evidence: Evidence, quantity: Quantity, gain: GainName) -> str | None:
    law = evidence.laws[quantity]
    if gain in OF_THE_POWER_LAW and not law.power_fits:
        return f"no power law over the whole depth fits the {quantity} ({law.verdict.rstrip('.')})"
    if not evidence.gains.get((quantity, gain)):
        return f"no layer has a {_WORDS[gain]} of the {quantity}"
    return None


def _salf_reason(best: LayerGain, basis: Basis, layers: int) -> str:
    reason = (
        f"layer {best.layer} has the largest {_WORDS[basis.gain]} of the {basis.quantity} "
        f"({best.value:.4g}) among layers 2 to {layers - 1}"
    )
    if best.value <= 0:
        reason += f"; no layer reduces the {basis.quantity}, so this choice means little"
    return reason


def _certainty(best: LayerGain, gains: tuple[LayerGain, ...]) -> Certainty:
    share = f"layer {best.layer} wins {best.win_share:.0%} of resamples"
    rival = max(gains, key=lambda gain: gain.win_share)
    if best.win_share >= SURE:
        words = f"sure: {share}"
    elif best.win_share >= FAIRLY_SURE:
        words = f"fairly sure: {share}"
    else:
        words = f"unsure: {share}"
        if rival.layer != best.layer and rival.win_share >= best.win_share:
            words += f", layer {rival.layer} {rival.win_share:.0%}"
    low, high = (significant(x) if math.isfinite(x) else None for x in (best.low, best.high))
    return Certainty(
        win_share=significant(best.win_share), value=significant(best.value), low=low, high=high, words=words
    )


def _runners_up(best: LayerGain, gains: tuple[LayerGain, ...]) -> tuple[RunnerUp, ...]:
    others = sorted((g for g in gains if g != best), key=lambda g: (-g.win_share, -g.value))
    return tuple(
        RunnerUp(boundary=g.layer, value=significant(g.value), win_share=significant(g.win_share))
        for g in others[:_RUNNERS_UP]
    )
