"""Counts the operations of all pilots, and of the full fine-tune that they are held against."""

from collections.abc import Sequence
from dataclasses import dataclass

from salf.engine.training.loop import epoch_batches
from stages.pilot.bench import Bench, Pilot
from stages.pilot.schedule import rates_of


@dataclass(frozen=True)
class Operations:
    """Floating-point operations, as ``salf/cost.py`` counts them.

    Attributes:
        frozen: the frozen layers' passes over training and validation examples. Every boundary's counts from
            the embeddings up, though states go on from those of a shallower boundary where these were kept.
        training: optimizer steps, at learning rates that lost too.
        reading: the validation split, read once untrained and once after every pilot.
        full: one full fine-tune on all training examples at one learning rate, validation left out.
    """

    frozen: int
    training: int
    reading: int
    full: int

    @property
    def total(self) -> int:
        """All that the pilots cost."""
        return self.frozen + self.training + self.reading

    @property
    def share(self) -> float:
        """The same as a share of one full fine-tune."""
        return self.total / self.full


def planned(bench: Bench) -> Operations:
    """What the pilots are going to take, where every boundary's states can be kept."""
    pilots = [
        Pilot(boundary, size, rate, (), steps_flops(bench, boundary, size, bench.schedule.epochs), False)
        for boundary in bench.grid.boundaries
        for place, size in enumerate(bench.grid.sizes)
        for rate in rates_of(bench.schedule, boundary)[: None if place == 0 else 1]
    ]
    return counted(bench, pilots)


def counted(bench: Bench, pilots: Sequence[Pilot]) -> Operations:
    """What these pilots took."""
    opened = {pilot.boundary: bench.costs(pilot.boundary, frozen_anew=pilot.frozen_anew) for pilot in pilots}
    splits = (bench.drawn, bench.validation)
    return Operations(
        frozen=sum(costs.frozen(split, bench.shared) for costs in opened.values() for split in splits),
        training=sum(pilot.flops for pilot in pilots),
        reading=bench.costs(0).reading(bench.validation, bench.shared)
        + sum(opened[pilot.boundary].reading(bench.validation, bench.shared) for pilot in pilots),
        full=steps_flops(bench, 0, len(bench.everything), bench.full_epochs),
    )


def steps_flops(bench: Bench, boundary: int, size: int, epochs: int) -> int:
    """All optimizer steps on so many examples, states kept; where batches are padded, as if all epochs drew alike."""
    examples = (bench.drawn if size <= len(bench.drawn) else bench.everything)[:size]
    epoch = next(epoch_batches(examples, bench.shared, bench.schedule, bench.seed, processes=1))
    return epochs * sum(bench.costs(boundary).step(parts, bench.shared) for parts in epoch)
