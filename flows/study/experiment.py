"""One experiment of a study: started through DVC, read when it has ended, and cleared away."""

import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from flows.processes import run_streaming
from flows.stage_run import DVC
from flows.study.description import StudyError
from flows.study.item import Item, asked, keep
from flows.study.kept import first_seen, forget, read_kept
from flows.study.progress import Progress
from flows.sweep import RUN_APART, check_names, words
from flows.workspace import Workspace
from salf.errors import UserError

_AT_WORK: Final = ("Running stage '", "Stage '")  # DVC's lines when the workspace is as it was before it started


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


def run_item(item: Item, desk: Desk, environment: dict[str, str], on_line: Callable[[str], None]) -> None:
    """Run an experiment and keep its results.

    Raises:
        StudyError: it failed; the text says why.
        StoppedError: the study was stopped.
    """
    before, began = first_seen(desk.held.project, desk.cache, item.name), time.monotonic()
    # Left by a study that was killed: what had ended then comes back from DVC's cache.
    _remove(item.name, desk.held)
    _run(item, desk, environment, on_line)
    kept = read_kept(desk.held.project, item.name)
    with desk.alone:
        keep(item, kept, desk.progress, time.monotonic() - began)
        if not desk.keep:
            kept.drop_models(before)
            _remove(item.name, desk.held)
        forget(desk.held.project, item.name)


def _run(item: Item, desk: Desk, environment: dict[str, str], on_line: Callable[[str], None]) -> None:
    lines: list[str] = []
    starting = _Starting(desk.alone)

    def told(line: str) -> None:
        lines.append(line)
        if line.startswith(_AT_WORK):
            starting.over()
        if line:
            on_line(line)

    values, target = asked(item, desk.progress)
    command = [*RUN_APART, "--name", item.name, *words(values), target]
    with starting:
        status = run_streaming(command, desk.held.project, environment, told, None, [desk.held.lock], desk.held.stop)
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


def _remove(name: str, held: Workspace) -> None:
    with contextlib.suppress(UserError):  # there is none
        check_names([name], held)
        return
    held.run([*DVC, "exp", "remove", name], lambda _line: None)
