"""One experiment of a study: started through DVC, read when it has ended, and cleared away."""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from flows.experiment import RUN_APART, remove
from flows.held import Workspace
from flows.processes import run_streaming
from flows.study import harvest
from flows.study.agenda import Case, FineTune
from flows.study.description import Settings, StudyError
from flows.study.kept import Kept, first_seen, forget, read_kept
from flows.study.progress import Look, Progress
from flows.study.settings import digest, for_training, words

_AT_WORK: Final = ("Running stage '", "Stage '")  # DVC's lines when the workspace is as it was before it started


@dataclass(frozen=True)
class Item:
    """Something to run: a plan to look at, or fine-tunes; the name says which."""

    name: str
    work: Look | tuple[FineTune, ...] = field(compare=False)

    @property
    def case(self) -> Case:
        """Data set and model."""
        return self.work.case if isinstance(self.work, Look) else self.work[0].case

    @property
    def fine_tunes(self) -> tuple[FineTune, ...]:
        """Those in it."""
        return () if isinstance(self.work, Look) else self.work

    @property
    def words(self) -> str:
        """What it is, for a reader."""
        where = f"{self.case.data_set}, {self.case.model}"
        if isinstance(self.work, Look):
            return f"{where}: plan ({self.work.source})"
        methods = ", ".join(one.method for one in self.work)
        return f"{where}, seed {self.work[0].seed}: {methods} at equal {self.work[0].budget}"

    @classmethod
    def of(cls, work: Look | tuple[FineTune, ...]) -> "Item":
        """Named after what it is: the same work has the same name wherever it is run."""
        told = (work.source, work.values) if isinstance(work, Look) else [repr(one) for one in work]
        return cls(f"study-{digest(told)}", work)


@dataclass(frozen=True)
class Desk:
    """What all experiments of a study share.

    Attributes:
        held: the workspace.
        progress: where the study stands.
        cache: DVC's cache of objects.
        keep: leave experiments and models where DVC put them.
        alone: held while DVC puts the workspace's changes aside to start an experiment, and while tables are
            written: the one would take the other's half-done work away.
    """

    held: Workspace
    progress: Progress
    cache: Path
    keep: bool
    alone: threading.Lock = field(default_factory=threading.Lock)


def ready(progress: Progress, taken: Sequence[Item]) -> list[Item]:
    """What can be started now, in order.

    Case by case the plan that tells the model's depth and the coarse grid, so that every data set has its curve
    early; then the other plans, since they say which boundaries are wanted; then those: see ``Progress.rank``.

    Args:
        progress: where the study stands.
        taken: what is running or has failed.
    """
    busy = {fine_tune for item in taken for fine_tune in item.fine_tunes}
    wanted = [fine_tune for fine_tune in progress.wanted(progress.known()) if fine_tune not in busy]
    items = [Item.of(look) for look in progress.looks()] + [Item.of(batch) for batch in progress.next_batches(wanted)]
    return sorted((item for item in items if item not in taken), key=lambda item: progress.rank(item.work))


def run_item(item: Item, desk: Desk, environment: dict[str, str], on_line: Callable[[str], None]) -> None:
    """Run an experiment and keep its results.

    Raises:
        StudyError: it failed; the text says why.
        StoppedError: the study was stopped.
    """
    before, began = first_seen(desk.held.project, desk.cache, item.name), time.monotonic()
    # Left by a study that was killed: what had ended then comes back from DVC's cache.
    remove(item.name, desk.held.project, environment)
    _run(item, desk, environment, on_line)
    kept = read_kept(desk.held.project, item.name)
    with desk.alone:
        if isinstance(item.work, Look):
            _keep_look(item.work, kept, desk.progress)
        else:
            _keep_runs(item.work, kept, desk.progress, time.monotonic() - began)
        if not desk.keep:
            kept.drop_models(before)
            remove(item.name, desk.held.project, environment)
        forget(desk.held.project, item.name)


def _run(item: Item, desk: Desk, environment: dict[str, str], on_line: Callable[[str], None]) -> None:
    lines: list[str] = []
    starting = _Starting(desk.alone)

    def keep(line: str) -> None:
        lines.append(line)
        if line.startswith(_AT_WORK):
            starting.over()
        if line:
            on_line(line)

    values, target = _asked(item, desk.progress)
    command = [*RUN_APART, "--name", item.name, *words(values), target]
    with starting:
        status = run_streaming(command, desk.held.project, environment, keep, None, [desk.held.lock], desk.held.stop)
    if status != 0:
        faults = [line for line in lines if line.startswith("error: ")] or [x for x in lines if x.startswith("ERROR: ")]
        raise StudyError(f"{item.words}: {faults[-1].partition(': ')[2] if faults else f'DVC exited with {status}'}")


class _Starting:
    """Holds the lock until an experiment is at work, or has ended before."""

    def __init__(self, lock: threading.Lock) -> None:
        self._lock, self._mine = lock, False

    def __enter__(self) -> None:
        self._lock.acquire()
        self._mine = True

    def over(self) -> None:
        """The workspace is as it was: others may start, or write."""
        if self._mine:
            self._mine = False
            self._lock.release()

    def __exit__(self, *_: object) -> None:
        self.over()


def _asked(item: Item, progress: Progress) -> tuple[Settings, str]:
    """Values of parameters, and the stage up to which the experiment runs."""
    if isinstance(item.work, Look):
        return item.work.values, "plan"
    return for_training(progress.settings[item.case].values, item.work), "evaluate"


def _keep_look(look: Look, kept: Kept, progress: Progress) -> None:
    name = progress.tables.keep_settings(look.settings)
    rows = [{**row, "settings": name} for row in harvest.choices(look, kept)]
    progress.tables.keep_choices(rows, harvest.intervals(look, kept))


def _keep_runs(batch: tuple[FineTune, ...], kept: Kept, progress: Progress, seconds: float) -> None:
    """Every row carries its part of the experiment's time, shared out by the size of the fine-tunes."""
    layers = progress.known().layers[batch[0].case]
    facts = {**progress.facts(batch[0].case), **harvest.where(), "layers": layers}
    for (row, said), fine_tune, wall in zip(
        harvest.results(kept, batch, facts), batch, harvest.shared_out(seconds, batch, layers), strict=True
    ):
        progress.tables.keep_run({**row, **progress.method_facts(fine_tune), "seconds_wall": wall}, said)
