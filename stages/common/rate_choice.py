"""Which of two learning rates won on the validation split."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Tried:
    """How the model trained at a learning rate stood on the validation split in the end.

    Attributes:
        loss: nats per answer token.
        accuracy: 0 to 1; ``None`` for free answers.
    """

    loss: float
    accuracy: float | None


def beats(challenger: Tried, champion: Tried, examples: int, highest: float | None = None) -> bool:
    """Whether one rate is to be preferred to another that was tried before it.

    Of the rates whose accuracy is within one standard error of the highest, the one of the lowest loss is the best
    (the one-standard-error rule: Breiman et al. 1984, 3.4.3). The loss tells more of two models than the accuracy of a
    few hundred examples does, but both may fall together: over labels of several tokens the loss is mostly that of
    spelling them.

    Args:
        challenger: of the rate that is tried later.
        champion: of the best rate before; of equals it stays.
        examples: of the validation split.
        highest: accuracy of any rate before; the champion's where it is not known.
    """
    if challenger.accuracy is not None and champion.accuracy is not None:
        best = max(challenger.accuracy, champion.accuracy, highest or 0.0)
        share = (best * examples + 2) / (examples + 4)  # a perfect score has an error, too (Agresti and Coull 1998)
        least = best - math.sqrt(share * (1 - share) / examples)
        if min(challenger.accuracy, champion.accuracy) < least:
            return challenger.accuracy >= least
    return challenger.loss < champion.loss
