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


def beats(challenger: Tried, champion: Tried, examples: int) -> bool:
    """Whether one rate is to be preferred to another that was tried before it.

    A clear difference in accuracy decides, and the loss where there is none. The loss tells more of two models than
    the accuracy of a few hundred examples does, but both may fall together: over labels of several tokens the loss is
    mostly that of spelling them. Clear is what exceeds a standard error of the higher accuracy, as in the
    one-standard-error rule (Breiman et al. 1984, 3.4.3).

    Args:
        challenger: of the rate that is tried later.
        champion: of the best rate before; of equals it stays.
        examples: of the validation split.
    """
    if challenger.accuracy is not None and champion.accuracy is not None:
        higher = max(challenger.accuracy, champion.accuracy)
        ahead = challenger.accuracy - champion.accuracy
        if abs(ahead) > math.sqrt(higher * (1 - higher) / examples):
            return ahead > 0
    return challenger.loss < champion.loss
