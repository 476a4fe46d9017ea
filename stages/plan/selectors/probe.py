"""Probes: freeze up to where the task's information has arrived at the position that answers.

A ridge classifier is read off two states of every space (``stages/signals/probe.py``): the one at the position that
predicts the answer, and the mean over the prompt. What the second knows and the first does not lies at other
positions and has yet to be brought over; the layers that bring it are the ones to adapt to a task. Behind the space
where the first has caught up, later layers turn what is there into words. So the layers up to that space are frozen,
and the difference is what a boundary leaves to be brought.

"Has caught up": the difference is within one standard error (Breiman et al. 1984, §3.4.3, judge trees so), counted
over the held-out examples, which both classifiers are asked about.
"""

from stages.common.artifacts import significant
from stages.common.freeze_plan import Certainty
from stages.common.params import Plan
from stages.plan.evidence import Evidence
from stages.plan.selectors.choice import Choice
from stages.plan.selectors.signal import signal


def probe(evidence: Evidence, _params: Plan) -> Choice:
    """Freeze up to the first space whose answer position knows the task as well as the whole prompt does."""
    answer, pooled, errors = (signal(evidence, name, "probe") for name in ("probe", "probe-pooled", "probe-error"))
    missing = [held - arrived for held, arrived in zip(pooled, answer, strict=True)]
    inner = range(1, evidence.layers)
    caught_up = (space for space in inner if missing[space] <= errors[space])
    best = next(caught_up, min(inner, key=lambda space: missing[space]))
    return Choice(
        boundary=best,
        reason=f"at space {best} the answer's position tells {answer[best]:.0%} of the held-out examples right, the "
        f"prompt's mean state {pooled[best]:.0%}: what the prompt holds of the task has arrived",
        certainty=_certainty(missing[best], errors[best]),
        scores=tuple(missing),
    )


def _certainty(missing: float, error: float) -> Certainty:
    low, high = missing - error, missing + error
    words = f"one standard error: the prompt's mean state is {low:+.1%} to {high:+.1%} ahead of the answer's position"
    return Certainty(
        win_share=None, value=significant(missing), low=significant(low), high=significant(high), words=words
    )
