"""Chooses a learning rate by the validation split."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Tried:
    """A learning rate, and the validation results at the end of its training."""

    rate: float
    loss: float  # nats per answer token
    accuracy: float | None  # None for free answers


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
