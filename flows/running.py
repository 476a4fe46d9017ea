"""The parts that all Prefect flows here share: command line, the workspace, the tasks at work, and how it ends."""

import argparse
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Final
from uuid import UUID

from prefect import State, get_run_logger
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.exceptions import ObjectNotFound
from prefect.futures import PrefectFuture, as_completed, wait
from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Crashed, Failed, Running
from prefect.task_runners import ThreadPoolTaskRunner
from pydantic import Field

from flows import report, server
from flows.environment import stage_environment
from flows.processes import end_cleanly
from flows.workspace import Workspace, clear_away, sole_run
from salf.children import end_with
from salf.errors import BAD_INPUT, INTERRUPTED, UserError

THREADS: Any = ThreadPoolTaskRunner()  # one thread per active stage, each waiting for its process
STOP_SECONDS: Final = 120.0  # longest that stages may take to stop
_STARTED_BY_A_WORKER: Final = "PREFECT__FLOW_RUN_ID"  # set by Prefect in the process that a worker starts

DottedName = Annotated[str, Field(pattern=r"^[^.\s]+(\.[^.\s]+)*$")]
ExperimentName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)*$", max_length=100)]
SideBySide = Annotated[int, Field(ge=0, le=64)]


@contextmanager
def workspace(project: Path, wait: bool) -> Iterator[Workspace]:
    """Hold the project for the current flow run, cleared of what a killed run left; see :func:`sole_run`."""
    logger = get_run_logger()
    name, identity = flow_run.name or "unnamed", str(flow_run.id)

    def on_wait(message: str) -> None:
        logger.info(message)
        _set_state(identity, Running(name="Waiting", message=message))

    if _STARTED_BY_A_WORKER in os.environ:
        end_with(os.getppid())  # nobody could cancel this run any more
    with sole_run(project, name, wait, on_wait, identity) as held:
        if wait:
            _set_state(identity, Running())
        bury(held, name)
        clear_away(held, logger.warning)
        yield held


def bury(held: Workspace, found_by: str) -> None:
    """Tell Prefect about the killed run that held the workspace before; it would go on showing it as running."""
    if held.died is None or held.died.flow_run is None:
        return
    message = f"process {held.died.pid} ended without a report; found by {found_by!r}"
    with get_client(sync_client=True) as client:
        try:
            run = client.read_flow_run(UUID(held.died.flow_run))
        except (ObjectNotFound, ValueError):  # recorded by another server
            return
        if run.state is None or run.state.is_final():
            return
        of_run = FlowRunFilter(id=FlowRunFilterId(any_=[run.id]))
        for task in client.read_task_runs(flow_run_filter=of_run):
            if task.state is None or not task.state.is_final():
                client.set_task_run_state(task.id, Crashed(message=message), force=True)
        client.set_flow_run_state(run.id, Crashed(message=message), force=True)


def run_all(
    starts: Mapping[str, Callable[..., PrefectFuture[Any]]],
    held: Workspace,
    at_once: int,
    needs: Mapping[str, Collection[str]] | None = None,
) -> dict[str, PrefectFuture[Any]]:
    """Submit tasks by name, at most ``at_once`` of them active, and return those that ended, in that order.

    With ``needs`` a task starts when all that it needs have ended well, and none starts after a failure. If this is
    left by an exception (a cancelled flow, a lost worker, a bug), the active tasks stop with it.
    """
    waiting, active, ended = dict(starts), dict[PrefectFuture[Any], str](), dict[str, PrefectFuture[Any]]()
    needs_of, ends_early = needs or {}, needs is not None
    try:
        while waiting or active:
            ready = [name for name in waiting if ended.keys() >= set(needs_of.get(name, ()))]
            for name in ready[: at_once - len(active)]:
                after = [ended[needed] for needed in needs_of.get(name, ())]
                active[waiting.pop(name)(wait_for=after, return_state=False)] = name
            future = next(as_completed(list(active)))
            future.wait()  # or its state would be asked of the server, which learns it a little later
            ended[active.pop(future)] = future
            if ends_early and not future.state.is_completed():
                waiting.clear()
    except BaseException:
        held.stop.set()
        wait(list(active), timeout=STOP_SECONDS)
        raise
    return ended


def failed(message: str, name: str = "Failed") -> State[Any]:
    """The end of a run that failed (``Refused``: nothing was started): one clear line instead of a traceback."""
    get_run_logger().error(message)
    return Failed(name=name, message=message)


def command_line(module: str, description: str, examples: str, *, of_stages: bool = True) -> argparse.ArgumentParser:
    """Return the parser of a flow's module, with the options that flows share."""
    parser = argparse.ArgumentParser(
        prog=f"python -m flows.{module}",
        description=description,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--wait", action="store_true", help="wait for a run that is active in this folder")
    if of_stages:
        parser.add_argument("--targets", nargs="+", default=[], metavar="STAGE", help="these stages and what they need")
        parser.add_argument("--side-by-side", type=int, default=0, metavar="N", help="how many at once (0: auto)")
    return parser


def run_flow(run: Callable[..., Any], **parameters: Any) -> int:
    """Run a flow and print how it ended; returns the exit status.

    It is 0 for a completed run, 1 for a failed one, 2 for a refused one, and 130 after Ctrl-C.
    """
    end_cleanly()
    try:
        url = server.configured() or server.start(stage_environment(os.environ))[0]
        with temporary_settings({PREFECT_API_URL: url}):
            state: State[Any] = run(**parameters, return_state=True)
    except UserError as error:
        return report(str(error), BAD_INPUT)
    except KeyboardInterrupt:
        return report("interrupted; run again to resume", INTERRUPTED)
    if state.is_completed():
        print(state.message)
        return 0
    message = " ".join((state.message or state.name or "failed").split())
    _, invalid, which = message.partition("invalid parameters:")  # as Prefect puts it
    return report(which.strip(" -") or message, BAD_INPUT if invalid or state.name == "Refused" else 1)


def _set_state(identity: str, state: State[Any]) -> None:
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(UUID(identity), state, force=True)
