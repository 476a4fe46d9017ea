"""Chooses between learning rates, and between the arms of a race, by the validation split."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from salf.records import RaceStanding

LEVEL: Final = 0.05  # of a whole race: its tests share it


@dataclass(frozen=True)
class Tried:
    """A learning rate, and the validation results at the end of its training, or so far."""

    rate: float
    loss: float  # nats per answer token
    accuracy: float | None  # None for free answers
    losses: Sequence[float] = ()  # of every example
    hits: Sequence[bool] = ()  # whether each was answered right; empty for free answers


def choose(tried: Sequence[Tried], examples: int) -> Tried:
    """Return the rate with the lowest loss, of those whose accuracy is within one standard error of the highest.

    This is the one-standard-error rule (Breiman et al. 1984, 3.4.3): the loss separates two models better than the
    accuracy of a few hundred examples does, but over labels of several tokens it is mostly that of spelling them.
    Of equal losses the higher accuracy wins, then the lower rate. ``examples`` are those of the validation split.
    """
    best = max(one.accuracy or 0.0 for one in tried)
    share = (best * examples + 2) / (examples + 4)  # a perfect score has an error, too (Agresti and Coull 1998)
    least = best - math.sqrt(share * (1 - share) / examples)
    within = [one for one in tried if one.accuracy is None or one.accuracy >= least]
    return min(within, key=lambda one: (one.loss, -(one.accuracy or 0.0), one.rate))


def standings(arms: Mapping[int, Tried], level: float | None, keep: int | None) -> list[RaceStanding]:
    """Compare the arms of a race with the one that leads by :func:`choose`, on the same validation examples.

    An arm is dropped if its accuracy is significantly lower (exact McNemar test), or if its losses are significantly
    higher (paired t-test) and its accuracy is not significantly higher. Both tests are one-sided, at ``level``. Of
    those that are left, the best ``keep`` stay; ``None``: all. Without a level nothing is tested: the leader has won.

    With ``level`` = :data:`LEVEL` / (tests per comparison x other arms x looks), an arm that is as good as every other
    is dropped as worse with a probability of at most :data:`LEVEL` (Bonferroni), whichever arm leads.
    """
    ranked = ranking(arms)
    found, staying = [], 0
    for number in ranked:
        standing = _compared(number, arms[number], None if number == ranked[0] else arms[ranked[0]], level)
        if standing.fate == "stays" and staying == keep:
            standing = standing.model_copy(update={"fate": "too many"})
        staying += standing.fate in ("leads", "stays")
        found.append(standing)
    return sorted(found, key=lambda one: one.arm)


def ranking(arms: Mapping[int, Tried]) -> list[int]:
    """The arms from the best on: the one that :func:`choose` chooses, then of the others, and so on."""
    left, ranked = dict(arms), []
    while left:
        examples = max(1, len(next(iter(left.values())).losses))
        best = choose(list(left.values()), examples)
        ranked.append(next(number for number, one in left.items() if one == best))
        del left[ranked[-1]]
    return ranked


def _compared(number: int, one: Tried, leader: Tried | None, level: float | None) -> RaceStanding:
    """An arm's standing; without a ``leader`` it is the one that leads."""
    facts = {"arm": number, "validation_loss": one.loss, "validation_accuracy": one.accuracy}
    if level is None or leader is None:
        fates = ("leads", "stays") if level is not None else ("won", "lost")
        return RaceStanding(**facts, p_accuracy=None, p_loss=None, fate=fates[leader is not None])
    from scipy import stats  # a second's import, which a race alone needs

    p_accuracy = p_better = None
    if one.hits:
        mine, theirs = np.array(one.hits, bool), np.array(leader.hits, bool)
        lost, won = int((theirs & ~mine).sum()), int((mine & ~theirs).sum())
        p_accuracy, p_better = (float(stats.binom.sf(n - 1, lost + won, 0.5)) for n in (lost, won))
    p_loss = float(stats.ttest_rel(one.losses, leader.losses, alternative="greater").pvalue)
    p_loss = 1.0 if math.isnan(p_loss) else p_loss  # all differences are 0
    fate = "stays"
    if p_accuracy is not None and p_accuracy <= level:
        fate = "worse accuracy"
    elif p_loss <= level and not (p_better is not None and p_better <= level):
        fate = "worse loss"
    return RaceStanding(**facts, p_accuracy=p_accuracy, p_loss=p_loss, fate=fate)
