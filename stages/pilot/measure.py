"""The small fine-tunes: every boundary of the grid with every number of examples, and the validation loss of each."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from salf.engine.answers import Answer, Reader, Start
from salf.engine.batches import Example
from salf.engine.boundary_cache.cache import Opened
from salf.engine.models.adapter import CausalModel, open_model
from salf.engine.training.loop import train
from salf.engine.training.starts import CACHE_BATCH_TOKENS, begun, open_states
from salf.engine.training.trainable import Trainable, train_mode
from salf.engine.training.validation import Split
from salf.files import read_json, write_json
from salf.parameters import trained_names
from stages.pilot.bench import Bench, Pilot
from stages.pilot.schedule import rates_of


@dataclass(frozen=True)
class Measurements:
    """What the pilots came to.

    Attributes:
        pilots: one for every boundary and number of examples, at the learning rate that won.
        tried: all, those at learning rates that lost too.
        untrained: losses of the validation examples before training.
    """

    pilots: tuple[Pilot, ...]
    tried: tuple[Pilot, ...]
    untrained: tuple[float, ...]


def measure(bench: Bench) -> Measurements:
    """Fine-tune at every boundary, with the largest number of examples first.

    The learning rate of the lowest validation loss there (ties go to the smaller) serves the other sizes too.

    Raises:
        UserError: a learning rate is missing, or a loss is no longer a number.
    """
    pilots: list[Pilot] = []
    tried: list[Pilot] = []
    largest, *smaller = bench.grid.sizes
    for boundary in bench.grid.boundaries:
        place = _Boundary(bench, boundary)
        first = [place.pilot(largest, rate) for rate in rates_of(bench.schedule, boundary)]
        best = min(first, key=lambda pilot: pilot.loss)
        others = [place.pilot(size, best.rate) for size in smaller]
        pilots += [best, *others]
        tried += [*first, *others]
    return Measurements(tuple(pilots), tuple(tried), _untrained(bench))


class _Boundary:
    """One boundary's pilots: they share the states behind the frozen layers."""

    def __init__(self, bench: Bench, boundary: int) -> None:
        self.bench, self.boundary = bench, boundary

    def pilot(self, size: int, rate: float) -> Pilot:
        """Fine-tune on the first ``size`` examples, or take what an interrupted run has done."""
        name = f"boundary-{self.boundary}-examples-{size}-rate-{rate:g}"
        done = _once(self.bench.unfinished / f"{name}.json", lambda: asdict(self._train(size, rate)))
        return Pilot(**{**done, "losses": tuple(done["losses"])})

    def _open(self) -> CausalModel:
        runtime = self.bench.runtime
        return open_model(self.bench.base, runtime.device, frozen=runtime.frozen(self.boundary))

    def _train(self, size: int, rate: float) -> Pilot:
        bench = self.bench
        model = self._open()
        training, validation = begun(model, bench.splits, self._opened, bench.shared)
        anew = bool(self._opened) and self._opened["training"].origin == "off"
        costs, reader = bench.costs(self.boundary, frozen_anew=anew), _LastReading(model, bench)
        done = train(
            _unfreeze(model, self.boundary),
            bench.runtime,
            Split(training.examples[:size], training.start),
            validation,
            reader,
            costs,
            bench.schedule,
            rate,
            bench.seed,
            f"pilot: layers 1–{self.boundary} frozen, {size} examples, rate {rate:g}",
        )
        before = costs.frozen(training.examples[:size], bench.shared) if self.boundary else 0
        return Pilot(self.boundary, size, rate, reader.losses, done.flops - before, anew)

    @cached_property
    def _opened(self) -> dict[str, Opened]:
        """The frozen layers' states of both splits; empty where nothing is frozen."""
        if self.boundary == 0:
            return {}
        bench, schedule = self.bench, self.bench.schedule
        model = self._open()
        passes = dict.fromkeys(bench.splits, schedule.epochs * len(rates_of(schedule, self.boundary)))
        return open_states(
            bench.base, model, bench.runtime, schedule, self.boundary, bench.splits, passes, bench.shared
        )


class _LastReading(Reader):
    """Keeps what every example's loss was when the split was last read."""

    def __init__(self, model: CausalModel, bench: Bench) -> None:
        super().__init__(model, bench.runtime, None, CACHE_BATCH_TOKENS)  # losses alone: no label is looked for
        self.losses: tuple[float, ...] = ()

    def read(
        self,
        examples: Sequence[Example],
        shared: int,
        start: Start | None = None,
        advance: Callable[[int], None] = lambda _: None,
    ) -> list[Answer]:
        """See :class:`Reader`."""
        answers = super().read(examples, shared, start, advance)
        self.losses = tuple(answer.loss for answer in answers)
        return answers


def _unfreeze(model: CausalModel, boundary: int) -> Trainable:
    """Train what a plan with this boundary trains."""
    named = dict(model.network.named_parameters())
    chosen = trained_names(named, model.family, boundary, tied_head=model.tied_head)
    for name in chosen:
        named[name].requires_grad_(True)
    train_mode(model, range(boundary + 1, model.depth + 1))
    return Trainable(model, [named[name] for name in chosen], boundary, None)


def _untrained(bench: Bench) -> tuple[float, ...]:
    def read() -> list[float]:
        reader = _LastReading(open_model(bench.base, bench.runtime.device, frozen=bench.runtime.frozen()), bench)
        return [answer.loss for answer in reader.read(bench.validation, bench.shared)]

    return tuple(_once(bench.unfinished / "untrained.json", read))


def _once(file: Path, make: Callable[[], Any]) -> Any:
    """What ``make`` returns, from the file where it was made before."""
    if not file.exists():
        write_json(file, make())
    return read_json(file)
