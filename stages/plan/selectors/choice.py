"""What every rule answers: a boundary, why it, and how sure the evidence is."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from stages.common.freeze_plan import Certainty, RunnerUp
from stages.common.params import Plan
from stages.plan.evidence import Evidence

FIXED_RULE: Final = Certainty(
    win_share=None, value=None, low=None, high=None, words="a fixed rule: nothing is estimated"
)


@dataclass(frozen=True)
class Choice:
    """A boundary and why; ``fallback`` says in words when other evidence decided than was asked for."""

    boundary: int
    reason: str
    certainty: Certainty = FIXED_RULE
    runners_up: tuple[RunnerUp, ...] = ()
    fallback: str | None = None


Selector = Callable[[Evidence, Plan], Choice]
