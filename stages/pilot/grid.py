"""Which boundaries and how many examples the pilots take."""

from dataclasses import dataclass
from typing import Self

from stages.common.params import Pilot


@dataclass(frozen=True)
class Grid:
    """Every boundary is fine-tuned with every number of examples.

    Attributes:
        boundaries: ascending, so that states behind a deeper one go on from those of a shallower one.
        sizes: numbers of examples, descending: learning rates are chosen at the largest.
    """

    boundaries: tuple[int, ...]
    sizes: tuple[int, ...]

    @classmethod
    def of(cls, params: Pilot, layers: int, examples: int) -> Self:
        """The parameters' shares of so many layers and so many training examples; those that coincide count once."""
        boundaries = {round(share * layers) for share in params.boundaries}
        sizes = {max(1, round(share * examples)) for share in params.sizes}
        return cls(tuple(sorted(boundaries)), tuple(sorted(sizes, reverse=True)))
