"""Fine-tunes of all contenders in turn, round by round, and what follows from them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from salf.engine.progress import progress
from stages.bench.contender import Contender, Measured
from stages.bench.kept import Kept
from stages.bench.others import HuggingFaceLora, HuggingFaceTrainer
from stages.bench.ours import FineTuner, PlainAllocator
from stages.bench.workloads import Task
from stages.common.benchmark import Allocator, Memory, Point, Spread

OURS: Final = "ours"
TRAINER: Final = "trainer"
LORA: Final = "lora"
PLAIN_ALLOCATOR: Final = "ours, plain allocator"
_KINDS: Final = {OURS: FineTuner, TRAINER: HuggingFaceTrainer, LORA: HuggingFaceLora, PLAIN_ALLOCATOR: PlainAllocator}
_FEWEST_BATCHES: Final = 2
_MEAN_RUN: Final = 0.7  # of a full fine-tune by the Trainer, at most: half of the layers are frozen on the average
_MOST_BATCHES: Final = 48


@dataclass(frozen=True)
class Grid:
    """What is measured.

    Attributes:
        boundaries: ascending; the first is 0.
        epochs: ascending. One run of the most epochs is read at the end of each of these: what comes
            before does not depend on what is still to come.
        half: the boundary at half of the depth.
        repeats: rounds.
        seconds: wanted for one model's fine-tunes.
        allocator: whether what its settings bring is measured too, in one more process.
    """

    boundaries: Sequence[int]
    epochs: Sequence[int]
    half: int
    repeats: int
    seconds: float
    allocator: bool

    @property
    def runs(self) -> list[tuple[str, int]]:
        """The contender and boundary of each run of a round; LoRA adapts all layers, whatever the boundary."""
        ours = [(OURS, boundary) for boundary in self.boundaries]
        trainer = [(TRAINER, boundary) for boundary in self.boundaries]
        plain = [(PLAIN_ALLOCATOR, self.half)] if self.allocator else []
        return [*ours, *trainer, (LORA, 0), *plain]


@dataclass(frozen=True)
class FineTunes:
    """All rounds: (contender, boundary) → what was measured in each."""

    grid: Grid
    examples: int
    measured: dict[tuple[str, int], list[Measured]]

    def seconds(self, contender: str, boundary: int, epochs: int) -> list[float]:
        """By round, up to the end of so many epochs."""
        return [round_["seconds"][epochs - 1] for round_ in self.measured[contender, boundary]]

    def points(self) -> list[Point]:
        """Every boundary with every number of epochs."""
        return [self._point(boundary, epochs) for boundary in self.grid.boundaries for epochs in self.grid.epochs]

    def memory(self) -> list[Memory]:
        """Every boundary; none where the system does not tell."""
        peaks = {run: [lap["peak_bytes"] for lap in laps] for run, laps in self.measured.items()}
        if any(peak is None for laps in peaks.values() for peak in laps):
            return []
        most = {run: max(laps) for run, laps in peaks.items()}
        return [
            Memory(
                boundary=boundary,
                ours=most[OURS, boundary],
                trainer_full=most[TRAINER, 0],
                trainer_frozen=most[TRAINER, boundary],
                trainer_lora=most[LORA, 0],
            )
            for boundary in self.grid.boundaries
        ]

    def allocator(self) -> Allocator | None:
        """What the allocator settings bring at half depth; ``None`` where that was left out."""
        if not self.grid.allocator:
            return None
        half, epochs = self.grid.half, self.grid.epochs[-1]
        without = self.seconds(PLAIN_ALLOCATOR, half, epochs)
        slower = Spread.of_ratios(without, self.seconds(OURS, half, epochs))
        return Allocator(boundary=half, epochs=epochs, slower_without=slower)

    def _point(self, boundary: int, epochs: int) -> Point:
        ours = self.seconds(OURS, boundary, epochs)
        speed_up = Spread.of_ratios(self.seconds(OURS, 0, epochs), ours)
        ideal = self._flops(0, epochs) / self._flops(boundary, epochs)
        return Point(
            boundary=boundary,
            epochs=epochs,
            seconds=Spread.of(ours),
            trainer_full=Spread.of_ratios(self.seconds(TRAINER, 0, epochs), ours),
            trainer_frozen=Spread.of_ratios(self.seconds(TRAINER, boundary, epochs), ours),
            trainer_lora=Spread.of_ratios(self.seconds(LORA, 0, epochs), ours),
            speed_up=speed_up,
            ideal=ideal,
            of_ideal=speed_up.median / ideal,
        )

    def _flops(self, boundary: int, epochs: int) -> int:
        flops: int = self.measured[OURS, boundary][0]["flops"][epochs - 1]
        return flops


def measure_fine_tunes(task: Task, grid: Grid, kept: Kept, logs: Path) -> FineTunes:
    """Run all rounds; every other one in reverse order, so that none always comes behind the same."""
    contenders = {name: Contender(kind, task, logs / f"{task.name}-{name}.log") for name, kind in _KINDS.items()}
    try:
        examples = kept.once(f"{task.name}: examples", lambda: _examples(contenders[TRAINER], task, grid))
        measured: dict[tuple[str, int], list[Measured]] = {run: [] for run in grid.runs}
        epochs, total = grid.epochs[-1], grid.repeats * len(grid.runs)
        with progress(f"fine-tuning {task.name}: {examples} examples, {epochs} epochs", total, "runs") as advance:
            for round_ in range(grid.repeats):
                for name, boundary in grid.runs[:: -1 if round_ % 2 else 1]:
                    key = f"{task.name}: {name} above {boundary}, round {round_}"
                    lap = kept.once(key, partial(_run, contenders[name], task, boundary, epochs, examples))
                    measured[name, boundary].append(lap)
                    advance(1, f"{name} above {boundary}: {lap['seconds'][-1]:.1f} s")
    finally:
        for contender in contenders.values():
            contender.stop()
    return FineTunes(grid, examples, measured)


def _run(contender: Contender, task: Task, boundary: int, epochs: int, examples: int) -> Measured:
    if not contender.running:  # what happens once in a process is not what is compared
        contender.ask(boundary=boundary, epochs=1, examples=task.batch_size)
    return contender.ask(boundary=boundary, epochs=epochs, examples=examples)


def _examples(trainer: Contender, task: Task, grid: Grid) -> int:
    """As many as the time allows, by the Trainer's full fine-tuning, which takes longest."""
    first, second = trainer.ask(boundary=0, epochs=2, examples=task.batch_size)["seconds"]
    step = second - first  # the first epoch is the warm-up
    batches = int(grid.seconds / (grid.repeats * len(grid.runs) * grid.epochs[-1] * _MEAN_RUN * step))
    batches = min(max(batches, _FEWEST_BATCHES), _MOST_BATCHES, len(task.examples) // task.batch_size)
    return batches * task.batch_size
