"""Run a study on a machine without DVC, Prefect and network, for example a GPU that is available for minutes.

The commands of dvc.yaml run in long-lived worker processes, because starting a stage takes longer than a short
fine-tune on a GPU. The tables are those of flows.study, and each runner resumes the other's.

--work holds base models, prepared data and first plans, each named after all its inputs. Existing ones are reused,
so they can be made on another machine, for example one with the libraries whose docstrings are a dataset.
"""

import argparse
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any, Final

from ruamel.yaml import YAML

from flows.overrides import PARAMS_FILE, changed
from flows.study import options
from flows.study.agenda import Case
from flows.study.description import Settings, StudyError, only, read_description
from flows.study.item import Item, asked, keep, ready
from flows.study.outlook import outlook
from flows.study.progress import PLAIN, Look, Progress
from flows.study.settings import Places, digest
from flows.study.tables import Tables, sole_writer
from flows.study.worker import LOG
from flows.study.workers import Workers

_PLANNING: Final = ("trace", "fit", "signals", "plan")
_EXAMPLES: Final = """examples:
  python -m flows.study.apart --only-prepare                         on a machine with the libraries
  python -m flows.study.apart --minutes 9 --workers 14 --work /dev/shm/study     on the GPU machine, with data/study
exit status: 0 done or out of time, 1 a job failed, 2 the request was refused, 130 interrupted
"""


@dataclass(frozen=True)
class Folder:
    """What stages left in a folder (see :class:`flows.study.harvest.Artifacts`)."""

    path: Path

    def json(self, path: str) -> Any:
        """The content of a JSON artifact."""
        return json.loads((self.path / path).read_bytes())

    def file(self, path: str) -> Path:
        """Where an artifact lies."""
        return self.path / path

    def has(self, path: str) -> bool:
        """Whether a stage made it."""
        return (self.path / path).exists()


@dataclass(frozen=True)
class Bench:
    """What all jobs share.

    Attributes:
        progress: where the study stands.
        commands: stage → its command, of dvc.yaml.
        workers: who runs them.
        work: where jobs have their folders.
        alone: held while the tables are read or written.
    """

    progress: Progress
    commands: dict[str, list[str]]
    workers: Workers
    work: Path
    alone: Lock = field(default_factory=Lock)

    def open_base(self, case: Case) -> None:
        """Bring a case's base model in, unless it is there."""
        if not self._base(case).exists():
            with self._made(f"base of {case.model}", case, {}, [self.commands["base"]]) as folder:
                _take(folder / "data/base", self._base(case))

    def prepare(self, case: Case) -> None:
        """Prepare a case's data, unless that is done."""
        if not (self._home(case) / "prepared").exists():
            given = {"base": self._base(case)}
            with self._made(f"{_name(case)}: data", case, given, [self.commands["prepare"]]) as folder:
                _take(folder / "data/prepared", self._home(case) / "prepared")

    def plan(self, case: Case) -> None:
        """Make a case's plan, unless it is there: fine-tunes read it."""
        if not self._plan(case).exists():
            self.do(Item.of(self._plain(case)))

    def do(self, item: Item) -> None:
        """Run an item and keep its results."""
        home, began = self._home(item.case), time.monotonic()
        given = {"base": self._base(item.case), "prepared": home / "prepared"}
        if not isinstance(item.work, Look):
            given["plan"] = self._plan(item.case)
        values, _ = asked(item, self.progress)
        with self._made(item.words, item.case, given, self._commands(item), values, item.name) as folder:
            with self.alone:
                keep(item, Folder(folder), self.progress, time.monotonic() - began)
            if isinstance(item.work, Look) and item.work.source == PLAIN and not self._plan(item.case).exists():
                _take(folder / "data/plan", self._plan(item.case))

    def _commands(self, item: Item) -> list[list[str]]:
        if isinstance(item.work, Look):
            return [self.commands[stage] for stage in _PLANNING]
        training = [
            [word.replace("${item.method}", one.method).replace("${item.seed}", str(one.seed)) for word in command]
            for one in item.work
            for command in [self.commands["finetune"]]
        ]
        return [*training, self.commands["evaluate"]]

    @contextmanager
    def _made(
        self,
        words: str,
        case: Case,
        given: Mapping[str, Path],
        commands: Sequence[Sequence[str]],
        values: Settings | None = None,
        name: str | None = None,
    ) -> Iterator[Path]:
        """A folder in which commands have run, beside what was made before; taken away when all is well.

        Args:
            words: what it is, for a reader.
            case: whose.
            given: folders of data that are there already, by their names.
            commands: of stages, in order.
            values: parameters; of the case, where there are none of its own.
            name: of the folder; after the words, where there is none.
        """
        folder = self.work / "jobs" / (name or digest(words))
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "data").mkdir(parents=True)
        (folder / "reports").mkdir()
        for part, path in given.items():
            (folder / "data" / part).symlink_to(path)
        text = (self.progress.places.project / PARAMS_FILE).read_text(encoding="utf-8")
        text = changed(text, values or self.progress.settings[case].values)
        (folder / PARAMS_FILE).write_text(text, encoding="utf-8")
        try:
            self.workers.run(folder, commands)
        except StudyError as error:
            raise StudyError(f"{words}: {error} (all it said: {folder / LOG})") from None
        yield folder
        shutil.rmtree(folder)

    def _base(self, case: Case) -> Path:
        """Named after what it is made of: another model of the same name has a folder of its own."""
        model = self.progress.settings[case].training["model"]
        return self.work / "bases" / f"{case.model},{digest(model)}"

    def _plain(self, case: Case) -> Look:
        """The look at the parameters as they are."""
        return next(look for look in self.progress.every_look if look.case == case and look.source == PLAIN)

    def _plan(self, case: Case) -> Path:
        """Named after what decides it: methods train what it says."""
        return self._home(case) / f"plan,{digest(self._plain(case).settings)}"

    def _home(self, case: Case) -> Path:
        """Named after all that decides what lies in it, like the rows of the tables."""
        return self.work / "cases" / f"{_name(case)},{digest(self.progress.settings[case].training)}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the study from a command line; returns the exit status (see ``--help``)."""
    args = _parser().parse_args(argv)
    deadline = time.monotonic() + 60 * args.minutes
    try:
        with sole_writer(args.out), sole_writer(args.work):
            progress, commands = _progress(args), commands_of(Path())
            workers = Workers(Path().resolve(), args.workers)
            bench = Bench(progress, commands, workers, args.work.resolve())
            faults = _run_all(bench, args.workers, deadline, args.only_prepare)
    except StudyError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("error: interrupted; run again to resume", file=sys.stderr)
        return 130
    print(outlook(progress))
    if progress.tables.runs:
        print(f"the analysis: python -m stages.study --study {args.out}")
    for fault in faults:
        print(f"error: {fault}", file=sys.stderr)
    return 1 if faults else 0


def _progress(args: argparse.Namespace) -> Progress:
    described = read_description(args.description).model_copy(update={"together": args.together})
    places = Places(Path().resolve(), args.data.resolve(), args.models.resolve())
    return Progress(only(described, args.data_sets), places, Tables(args.out), same_code=False)


def commands_of(project: Path) -> dict[str, list[str]]:
    """Every stage's command without ``python -m``, from ``dvc.yaml``."""
    stages = YAML(typ="safe", pure=True).load((project / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    return {name: stage["cmd"].split()[2:] for name, stage in stages.items()}


def _run_all(bench: Bench, at_once: int, deadline: float, only_prepare: bool) -> list[str]:
    """Open every case, then run what is wanted as long as there is time, and stop; returns what went wrong."""
    with ThreadPoolExecutor(at_once) as pool:
        try:
            return _in_turn(bench, pool, at_once, deadline, only_prepare)
        finally:  # the pool waits for what runs, and would begin what waits
            pool.shutdown(wait=False, cancel_futures=True)
            bench.workers.stop()


def _in_turn(bench: Bench, pool: ThreadPoolExecutor, at_once: int, deadline: float, only_prepare: bool) -> list[str]:
    progress, faults = bench.progress, list[str]()
    needed = {item.case for item in ready(progress, [])}
    models = {case.model: case for case in progress.cases if case in needed}
    there = {case.model for case in _all(pool, bench.open_base, list(models.values()), faults)}
    opened = [case for case in progress.cases if case in needed and case.model in there]
    usable = _all(pool, bench.prepare, opened, faults)
    if only_prepare:
        return faults
    usable = _all(pool, bench.plan, usable, faults)
    running: dict[Future[None], Item] = {}
    taken: list[Item] = []
    while True:
        with bench.alone:
            items = [item for item in ready(progress, taken) if item.case in usable]
        for item in items[: at_once - len(running)] if time.monotonic() < deadline else []:
            taken.append(item)
            running[pool.submit(bench.do, item)] = item
        if not running:
            return faults
        ended, _ = wait(running, timeout=max(0.0, deadline - time.monotonic()), return_when=FIRST_COMPLETED)
        if not ended:
            return faults
        for future in ended:
            fault, item = _fault(future), running.pop(future)
            if fault:
                faults.append(fault)
                progress.failed.update(item.fine_tunes)
            print(f"{time.strftime('%X')} {'failed' if fault else 'kept'}: {item.words}", flush=True)


def _all(
    pool: ThreadPoolExecutor, work: Callable[[Case], None], cases: Sequence[Case], faults: list[str]
) -> list[Case]:
    """Do something for every case; returns those for which it was done."""
    futures = {case: pool.submit(work, case) for case in cases}
    found = {case: _fault(future) for case, future in futures.items()}
    faults += [fault for fault in found.values() if fault]
    return [case for case, fault in found.items() if not fault]


def _fault(future: Future[None]) -> str:
    """What a stage refused or broke on; anything else is a bug of ours and is raised."""
    try:
        future.result()
    except StudyError as error:
        return str(error)
    return ""


def _take(made: Path, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    made.rename(place)


def _name(case: Case) -> str:
    return f"{case.data_set},{case.model}"


def _parser() -> argparse.ArgumentParser:
    parser = options.parser("python -m flows.study.apart", __doc__, _EXAMPLES)
    parser.add_argument("--work", type=Path, default=Path("data/study"), help="folder of intermediate results")
    parser.add_argument(
        "--minutes",
        type=float,
        default=60,
        help="stop after this time; unfinished fine-tunes are lost, but models, data and first plans are finished (60)",
    )
    cores = max(1, (os.cpu_count() or 1) - 2)
    parser.add_argument("--workers", type=_count, default=cores, metavar="N", help="number of processes (cores - 2)")
    parser.add_argument("--together", type=_count, default=2, metavar="N", help="fine-tunes per evaluation (2)")
    parser.add_argument("--only-prepare", action="store_true", help="make only base models and data, to copy elsewhere")
    return parser


def _count(word: str) -> int:
    if not word.isdecimal() or int(word) < 1:
        raise argparse.ArgumentTypeError(f"{word!r}: expected a number from 1 on")
    return int(word)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an exit that stops the workers
    sys.exit(main())
