"""Runs a study's jobs: the commands of dvc.yaml in long-lived worker processes, without DVC and Prefect.

Starting a stage takes longer than a short fine-tune on a GPU, so workers stay. The working folder holds base models,
prepared data and first plans, each named after all its inputs: they are reused, and can be made on another machine.
"""

import gc
import json
import multiprocessing
import os
import runpy
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from ruamel.yaml import YAML

from salf.files import write_text
from stages.common.params import PARAMS_FILE
from stages.study.agenda import FineTune
from stages.study.description import Case, Settings
from stages.study.progress import TEXTS, Progress
from stages.study.settings import digest, parameters, plan_settings, training_values

LOG: Final = "log"  # in a task's folder
Commands = list[list[str]]


@dataclass(frozen=True)
class Task:
    """Stages of dvc.yaml to run in a folder of its own, on existing folders of data, with parameters set.

    ``words`` describe it; ``keep`` takes the folder and the seconds. A stage of the matrix runs for the method and seed
    of ``trained``; ``more`` are commands after the stages.
    """

    words: str
    given: Mapping[str, Path]
    stages: Sequence[str]
    values: Settings
    keep: Callable[[Path, float], None]
    trained: tuple[str, int] = ("", 0)
    more: Sequence[list[str]] = ()


class Runner:
    """Runs tasks side by side in ``workers`` processes, and saves what they made; ``faults`` are lines on what failed.

    After ``deadline`` (monotonic clock) no task starts, and running ones are abandoned.
    """

    def __init__(self, progress: Progress, work: Path, workers: int, deadline: float) -> None:
        self.progress, self.work, self.deadline = progress, work, deadline
        self.faults: list[str] = []
        project = progress.places.project
        self._dvc = YAML(typ="safe", pure=True).load((project / "dvc.yaml").read_text("utf-8"))["stages"]
        places = [str(project), *filter(None, [os.environ.get("PYTHONPATH")])]
        os.environ["PYTHONPATH"] = os.pathsep.join(places)  # jobs run in other folders
        os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // workers))
        self._free = [_worker() for _ in range(workers)]

    def run_all(self, *, only_prepare: bool = False) -> list[str]:
        """Prepare every case, then run what is wanted until it is done or time is over; return what failed."""
        try:
            needed = {one.case for one in self.progress.ready([])}
            cases = [case for case in self.progress.settings if case in needed]
            for part in ("base", "prepared") if only_prepare else ("base", "prepared", "plan"):
                places = {self._places(case)[part]: case for case in cases}
                absent = [self._preparation(part, case) for place, case in places.items() if not place.exists()]
                self._run(iter(absent), forever=True)
                cases = [case for case in cases if self._places(case)[part].exists()]
            if not only_prepare:
                self._run(self._wanted(cases))
        finally:
            for process in multiprocessing.active_children():
                process.kill()
        return self.faults

    def _wanted(self, cases: Sequence[Case]) -> Iterator[Task | None]:
        """The next job, as often as a worker is free; ``None``: others must finish before."""
        taken: list[FineTune] = []
        while True:
            ready = [one for one in self.progress.ready(taken) if one.case in cases]
            taken += ready[:1]
            yield self._job(ready[0]) if ready else None

    def _run(self, tasks: Iterator[Task | None], *, forever: bool = False) -> None:
        """Run tasks until there are no more; without ``forever``, until the deadline."""
        running: dict[Future[str], tuple[Task, ProcessPoolExecutor, float]] = {}
        while True:
            while self._free and (forever or time.monotonic() < self.deadline) and (task := next(tasks, None)):
                worker = self._free.pop()
                future = worker.submit(_run_commands, self._folder(task), self._commands(task))
                running[future] = task, worker, time.monotonic()
            left = None if forever else max(0.0, self.deadline - time.monotonic())
            ended, _ = wait(running, timeout=left, return_when=FIRST_COMPLETED)
            if not ended:
                return
            for future in ended:
                task, worker, began = running.pop(future)
                fault = _fault(future)
                self._free.append(_worker() if future.exception() else worker)
                self._finish(task, fault, time.monotonic() - began)

    def _finish(self, task: Task, fault: str, seconds: float) -> None:
        folder = self.work / "jobs" / digest(task.words)
        if fault:
            self.faults.append(f"{task.words}: {fault} (all output: {folder / LOG})")
        else:
            task.keep(folder, seconds)
            shutil.rmtree(folder)
        print(f"{time.strftime('%X')} {'failed' if fault else 'kept'}: {task.words}", flush=True)

    def _folder(self, task: Task) -> Path:
        """A task's folder with its data and parameters (JSON is YAML)."""
        folder = self.work / "jobs" / digest(task.words)
        shutil.rmtree(folder, ignore_errors=True)
        for name in ("data", "reports"):
            (folder / name).mkdir(parents=True)
        for part, path in task.given.items():
            (folder / "data" / part).symlink_to(path)
        params = parameters(self.progress.shipped, task.values)
        write_text(folder / PARAMS_FILE, json.dumps(params, ensure_ascii=False, indent=1))
        return folder

    def _commands(self, task: Task) -> Commands:
        """The commands of a task's stages, without ``python -m``."""
        (method, seed), texts = task.trained, [self._dvc[name]["cmd"] for name in task.stages]
        filled = [text.replace("${item.method}", method).replace("${item.seed}", str(seed)) for text in texts]
        return [*(text.split()[2:] for text in filled), *task.more]

    def _preparation(self, part: str, case: Case) -> Task:
        """The task that makes one of the folders of :meth:`_places`."""
        places, names = self._places(case), list(self._dvc)
        stages = {
            "base": ["base"],
            "prepared": ["prepare"],
            "plan": names[names.index("prepare") + 1 : names.index("finetune")],
        }
        given = {name: place for name, place in places.items() if list(places).index(name) < list(places).index(part)}
        words = f"{case.model if part == 'base' else ', '.join(case)}: {part}"
        values = self.progress.settings[case].values

        def take(folder: Path, _: float) -> None:
            places[part].parent.mkdir(parents=True, exist_ok=True)
            (folder / "data" / part).rename(places[part])

        return Task(words, given, stages[part], values, take)

    def _job(self, one: FineTune) -> Task:
        description, places = self.progress.description, self.progress.places
        values = training_values(self.progress.settings[one.case].values, one, description)
        method, texts = description.trained(one.method), description.texts
        more = []
        if texts and description.arm(one.method).texts:
            words = f"stages.evaluate.texts --base data/base --models data/models/{method}-seed{one.seed} --out {TEXTS}"
            files = [f"{name}={places.data / file}" for name, file in texts.files.items()]
            asked = ["--blocks", str(texts.blocks), "--tokens", str(texts.tokens), "--texts", *files]
            more = [[*words.split(), *asked]]
        keep, stages = partial(self.progress.keep, one), ["finetune", "evaluate"]
        return Task(one.words, self._places(one.case), stages, values, keep, (method, one.seed), more)

    def _places(self, case: Case) -> dict[str, Path]:
        """The folders that fine-tunes read below ``data``, each kept in one named after everything that decides it."""
        settings, project = self.progress.settings[case], self.progress.places.project
        home = self.work / "cases" / f"{','.join(case)},{digest(settings.training)}"
        return {
            "base": self.work / "bases" / f"{case.model},{digest(settings.training['model'])}",
            "prepared": home / "prepared",
            "plan": home / f"plan,{digest(plan_settings(settings.params, project))}",
        }


def _worker() -> ProcessPoolExecutor:
    """One process that stays: what a stage imports is loaded for the next one."""
    fresh = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(1, fresh, signal.signal, (signal.SIGINT, signal.SIG_IGN))


def _fault(future: Future[str]) -> str:
    """The last line of a stage that failed; anything else is a bug and is raised."""
    try:
        return future.result()
    except BrokenProcessPool:
        return "its process was killed; if memory ran out: fewer --workers"


def _run_commands(folder: Path, commands: Commands) -> str:
    """Run commands in this process; return the last line of output if one fails, else an empty text."""
    os.chdir(folder)
    with (folder / LOG).open("w", encoding="utf-8") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    failed = any(_status(command) for command in commands)
    sys.stdout.flush()
    sys.stderr.flush()
    gc.collect()
    lines = (folder / LOG).read_text(encoding="utf-8", errors="replace").split("\n")
    said = [line for line in lines if line.strip()]
    return (said or ["no output"])[-1].strip().removeprefix("error: ") if failed else ""


def _status(command: list[str]) -> int:
    """Run ``python -m`` with these words; return its exit status."""
    sys.argv = command
    try:
        runpy.run_module(command[0], run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 1
    except Exception:
        traceback.print_exc()
        return 1
    return 0
