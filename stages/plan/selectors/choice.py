"""What every rule answers: a boundary, why it, how sure the evidence is, and what it predicts of the others."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from salf.errors import UserError
from salf.plan import Certainty, RunnerUp
from salf.settings import SignalKind
from stages.common.params import Plan
from stages.plan.evidence import Evidence, Signal

FIXED_RULE: Final = Certainty(
    win_share=None, value=None, low=None, high=None, words="a fixed rule: nothing is estimated"
)
MEASURED_ONCE: Final = Certainty(
    win_share=None, value=None, low=None, high=None, words="measured on one sample: how sure it is, nothing says"
)


class AbsentEvidenceError(UserError):
    """A rule's evidence is not there; the text says what makes it."""


@dataclass(frozen=True)
class Choice:
    """A boundary and why.

    Attributes:
        fallback: says in words when other evidence decided than was asked for.
        scores: what the rule predicts for the boundaries 0..L, higher for better expected quality, in units of its
            own; None at a boundary that it says nothing of, and altogether where it predicts nothing.
    """

    boundary: int
    reason: str
    certainty: Certainty = FIXED_RULE
    runners_up: tuple[RunnerUp, ...] = ()
    fallback: str | None = None
    scores: tuple[float | None, ...] | None = None

    @property
    def fixed(self) -> bool:
        """Whether the boundary is a depth given beforehand, and rests on no evidence."""
        return self.certainty == FIXED_RULE


Selector = Callable[[Evidence, Plan], Choice]


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
