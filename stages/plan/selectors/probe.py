"""Probes: freeze the layers that compute what the model knows of the task, and train those that make use of it.

A ridge classifier on the mean of the prompt's states tells what the sequence holds of the task at a space, wherever in
the sequence it lies (``stages/signals/probe.py``). Where that no longer grows with depth, the layers below have
computed what there is; the layers above bring it to the position that answers and turn it into words, and that is what
fine-tuning has to change. So the boundary is the first space that knows as much as the best one.

"As much": within one standard error of the difference, counted over the held-out examples, which both spaces are
asked about: the rule by which Breiman et al. (1984, §3.4.3) choose the size of a tree.

What it predicts of a boundary is what lies in the sequence there and not yet at the position that answers: what the
layers above can still bring.
"""

from salf.files import significant
from salf.plan import Certainty
from stages.common.params import Plan
from stages.plan.evidence import Evidence
from stages.plan.selectors.choice import Choice
from stages.plan.selectors.signal import signal


def probe(evidence: Evidence, _params: Plan) -> Choice:
    """Freeze up to the first space of 1..L-1 whose prompt states predict the task as well as the best space's."""
    answer, pooled, errors = (signal(evidence, name, "probe") for name in ("probe", "probe-pooled", "probe-error"))
    short = [max(pooled) - known for known in pooled]
    inner = range(1, evidence.layers)
    best = next((space for space in inner if short[space] <= errors[space]), min(inner, key=short.__getitem__))
    words_alone = "; so do the embeddings: the task needs no layer to be told, and this says little of depth"
    return Choice(
        boundary=best,
        reason=f"space {best} is the first whose prompt states know the task as well as any space's: they tell "
        f"{pooled[best]:.0%} of the held-out examples right, the best {max(pooled):.0%}"
        f"{words_alone if short[0] <= errors[0] else ''}",
        certainty=_certainty(short[best], errors[best]),
        scores=tuple(held - arrived for held, arrived in zip(pooled, answer, strict=True)),
    )


def _certainty(short: float, error: float) -> Certainty:
    low, high = short - error, short + error
    words = f"one standard error: the best space is {low:+.1%} to {high:+.1%} ahead"
    return Certainty(
        win_share=None, value=significant(short), low=significant(low), high=significant(high), words=words
    )
