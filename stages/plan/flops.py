"""Operations of a fine-tune above a boundary, over the sums of a cost model."""

from dataclasses import dataclass

from stages.common.cost import ModelShape, forward_flops, training_flops
from stages.common.freeze_plan import CostModel


@dataclass(frozen=True)
class BoundaryFlops:
    """Operations of the frozen layers' pass over the data, and of one epoch above them."""

    frozen: int
    epoch: int

    @classmethod
    def of(cls, shape: ModelShape, work: CostModel, boundary: int) -> "BoundaryFlops":
        """Count a boundary of 0..L."""
        sums = (work.queries, work.attended, work.positions, work.seen)
        return cls(
            frozen=forward_flops(shape, boundary, work.frozen_queries, work.frozen_attended),
            epoch=training_flops(shape, boundary, *sums, recompute=work.recompute),
        )

    def cached(self, epochs: int) -> int:
        """All epochs, the frozen layers' output computed once."""
        return self.frozen + epochs * self.epoch

    def uncached(self, epochs: int) -> int:
        """All epochs, the frozen layers computed in each."""
        return epochs * (self.frozen + self.epoch)
