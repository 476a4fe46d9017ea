"""Takes a signal out of the evidence."""

from typing import Final

from salf.plan import Certainty
from salf.settings import SignalKind
from stages.plan.evidence import Evidence, Signal
from stages.plan.selectors.choice import AbsentEvidenceError

MEASURED_ONCE: Final = Certainty(
    win_share=None, value=None, low=None, high=None, words="measured on one sample: how sure it is, nothing says"
)


def signal(evidence: Evidence, name: str, kind: SignalKind) -> Signal:
    """The values of a signal by space or layer 0..L.

    Args:
        evidence: what there is.
        name: the signal.
        kind: what measures it.

    Raises:
        AbsentEvidenceError: it was not measured.
    """
    if name not in evidence.signals:
        raise AbsentEvidenceError(
            f"its signal was not measured; add {kind} to signals.kinds in params.yaml (where it is there already, "
            "these examples cannot give it: dvc repro --force --single-item signals says why)"
        )
    return evidence.signals[name]
