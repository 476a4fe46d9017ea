"""What all pilots have in common, and what each of them came to."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from salf.cost import ModelShape
from salf.engine.batches import Example
from salf.engine.runtime import Runtime
from salf.engine.training.costs import Costs
from salf.engine.training.starts import Splits
from salf.settings import Finetune
from stages.pilot.grid import Grid


@dataclass(frozen=True)
class Bench:
    """What all pilots have in common.

    Attributes:
        base: the model's folder.
        grid: which boundaries, and how many examples.
        schedule: of every pilot.
        everything: all training examples.
        drawn: some of them in the order of the draw: a pilot on n examples takes the first n.
        full_epochs: of the fine-tunes that the pilots speak for.
        shared: tokens of the beginning that all prompts share.
        seed: of the order of examples.
        unfinished: where the pilots that are done are kept until all are.
    """

    base: Path
    grid: Grid
    runtime: Runtime
    schedule: Finetune
    shape: ModelShape
    everything: Sequence[Example]
    drawn: Sequence[Example]
    validation: Sequence[Example]
    full_epochs: int
    shared: int
    seed: int
    unfinished: Path

    @property
    def splits(self) -> Splits:
        """What pilots learn from, the largest of them from all of it, and what they are judged by."""
        return {"training": self.drawn, "validation": self.validation}

    def costs(self, boundary: int, *, frozen_anew: bool = False) -> Costs:
        """Counts the operations of training a boundary's weights."""
        recompute = self.schedule.gradient_checkpointing
        return Costs(self.shape, boundary, "weights", 0, frozen_anew=frozen_anew, recompute=recompute)


@dataclass(frozen=True)
class Pilot:
    """A small fine-tune that is done.

    Attributes:
        boundary: layers 1..boundary were frozen.
        examples: how many it learned from.
        rate: peak learning rate.
        losses: of every validation example at the end, nats per answer token.
        flops: operations of its optimizer steps.
        frozen_anew: the frozen layers ran for every batch, since their states could not be kept.
    """

    boundary: int
    examples: int
    rate: float
    losses: tuple[float, ...]
    flops: int
    frozen_anew: bool

    @property
    def loss(self) -> float:
        """Mean over the validation examples."""
        return sum(self.losses) / len(self.losses)
