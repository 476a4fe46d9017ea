"""The study as a Prefect flow: a task per DVC experiment, and the analysis of what there is in the end."""

import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from prefect import State, flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.futures import as_completed, wait
from prefect.states import Cancelled, Completed, Failed
from pydantic import Field

from flows import environment as machine
from flows.environment import with_threads
from flows.processes import StoppedError, run_streaming
from flows.running import STOP_SECONDS, THREADS, SideBySide, failed, refused, workspace
from flows.study import harvest
from flows.study.description import DESCRIPTION, StudyError, only, read_description
from flows.study.experiment import Desk, run_item
from flows.study.forecast import Forecast, Machine
from flows.study.item import Item, ready
from flows.study.kept import object_cache
from flows.study.outlook import outlook
from flows.study.progress import Look, Progress
from flows.study.settings import Places
from flows.study.tables import Tables, sole_writer
from flows.summary import duration
from flows.workspace import Workspace, WorkspaceBusyError
from salf.errors import UserError
from salf.ledger import ledger_of


@flow(name="salf-study", task_runner=THREADS)
def study(
    description: Path = DESCRIPTION,
    data: Path = Path("../shared/data"),
    models: Path = Path("../shared/models"),
    out: Path = Path("reports/study"),
    project: Path = Path("."),
    data_sets: list[str] = [],  # noqa: B006 (Prefect shows the default in its form; it is never changed)
    budget_hours: Annotated[float, Field(gt=0)] | None = None,
    side_by_side: SideBySide = 0,
    same_code: bool = False,
    keep: bool = False,
    wait: bool = False,
) -> State[Any]:
    """Run what is left of a study, as far as its budget reaches, and write the analysis.

    Args:
        description: what is studied.
        data: the folder of data sets.
        models: the folder of models.
        out: the folder of tables and figures.
        project: the folder that holds `dvc.yaml`.
        data_sets: only these of the description; none: all.
        budget_hours: instead of the description's.
        side_by_side: how many experiments may run at once; 0: as many as the machine allows.
        same_code: results of another version of the stages do not count.
        keep: keep every experiment and its models; otherwise the tables alone stay.
        wait: wait for another run in this folder instead of refusing.
    """
    project = project.resolve()
    try:
        wanted = only(read_description(project / description), data_sets)
        with workspace(project, wait) as held, sole_writer(project / out):
            places = Places(project, project / data, project / models)
            progress = Progress(wanted, places, Tables(project / out), same_code)
            desk = Desk(_recorded(held), progress, object_cache(project), keep)
            faults = _run_all(desk, budget_hours or wanted.budget_hours, machine.side_by_side(side_by_side))
            _analyse(desk, project / out)
    except (StudyError, UserError, WorkspaceBusyError) as error:
        return refused(str(error))
    if faults:
        return failed(f"{len(faults)} experiments failed: {faults[0]}")
    return Completed(message=outlook(progress))


def _recorded(held: Workspace) -> Workspace:
    """DVC removes an experiment's folder in the end: its runs are recorded in the project's own ledger."""
    return replace(held, environment={**held.environment, "SALF_LEDGER": str(ledger_of(held.project))})


def _run_all(desk: Desk, budget_hours: float, at_once: int) -> list[str]:
    """Run what is left until it is done or the budget is spent; returns what went wrong."""
    logger, deadline = get_run_logger(), time.monotonic() + 3600 * budget_hours
    running: dict[Any, Item] = {}
    broken: list[Item] = []
    faults: list[str] = []
    logger.info("%s; budget: %s", outlook(desk.progress), duration(3600 * budget_hours))
    try:
        while _start(running, broken, desk, deadline, at_once):
            future = next(as_completed(list(running)))
            future.wait()
            item = running.pop(future)
            if not future.state.is_completed():
                faults.append(str(future.state.message or future.state.name))
                broken.append(item)
                desk.progress.failed.update(item.fine_tunes)
            logger.info(outlook(desk.progress))
    except BaseException:  # cancelled, the worker is gone, a bug: no experiment outlives its flow
        desk.held.stop.set()
        wait(list(running), timeout=STOP_SECONDS)
        raise
    return faults


def _start(
    running: dict[Any, Item], broken: Sequence[Item], desk: Desk, deadline: float, at_once: int
) -> dict[Any, Item]:
    """Start as many experiments as may run at once and will end within the budget; returns those that run."""
    threads = None if at_once == 1 else max(1, machine.cores() // at_once)
    while len(running) < at_once:
        items = ready(desk.progress, [*running.values(), *broken])
        if not items or not _fits(items[0], desk.progress, deadline):
            break
        future = _experiment.with_options(name=items[0].name, task_run_name=items[0].words).submit(
            items[0], desk, threads, return_state=False
        )
        running[future] = items[0]
    return running


def _fits(item: Item, progress: Progress, deadline: float) -> bool:
    """Whether an experiment is expected to end within the budget; one that nobody can foresee may begin within it."""
    forecast = Forecast(progress.tables.runs, progress.tables.choices, Machine.of(harvest.where()))
    if isinstance(item.work, Look):
        seconds = forecast.of_plans([item.work])
    else:
        seconds = forecast.seconds(item.work, progress.known().layers)
    left = deadline - time.monotonic()
    if left > (seconds or 0):
        return True
    get_run_logger().info("the budget is spent: %s is left for another call", item.words)
    return False


@task(cache_policy=NO_CACHE, persist_result=False)
def _experiment(item: Item, desk: Desk, threads: int | None) -> Any:
    logger = get_run_logger()
    logger.info("%s: %s", item.name, item.words)
    try:
        run_item(item, desk, with_threads(desk.held.environment, threads), logger.info)
    except StoppedError:
        return Cancelled(message=f"{item.words}: stopped with its flow")
    except (StudyError, UserError) as error:
        return Failed(message=str(error))
    return Completed(name="Kept", message=item.words)


def _analyse(desk: Desk, out: Path) -> None:
    if not desk.progress.tables.runs:
        return
    command = [sys.executable, "-m", "stages.study", "--study", str(out)]
    lines: list[str] = []
    status = run_streaming(command, desk.held.project, desk.held.environment, lines.append)
    for line in lines:
        get_run_logger().info(line)
    if status != 0:
        raise StudyError(f"the analysis failed: {lines[-1] if lines else f'exit status {status}'}")
