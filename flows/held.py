"""What every flow here does first: hold the workspace, and clear away what a killed run left."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect import State, get_run_logger
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.exceptions import ObjectNotFound
from prefect.runtime import flow_run
from prefect.states import Crashed, Failed, Running
from prefect.task_runners import ThreadPoolTaskRunner

from flows.aside import put_back_left
from flows.environment import stage_environment
from flows.leftovers import clear
from flows.overrides import take_back
from flows.workspace import Hold, Holder, sole_run, stop_leftovers

THREADS: Any = ThreadPoolTaskRunner()  # one thread per stage at work, each waiting for its process
_POLL_SECONDS = 1.0
_STARTED_BY_A_WORKER = "PREFECT__FLOW_RUN_ID"  # set by Prefect in the process that a worker starts


@dataclass(frozen=True)
class Workspace:
    """What every task of one flow run shares.

    Attributes:
        project: the folder that holds ``dvc.yaml``.
        environment: in which DVC and the stages run.
        lock: descriptor of the workspace's lock, to hand on.
        flow_run: id of the flow run.
        flow_run_name: its name.
        stop: once set, stages that are at work are stopped.
    """

    project: Path
    environment: dict[str, str]
    lock: int
    flow_run: str
    flow_run_name: str
    stop: threading.Event = field(default_factory=threading.Event)


@contextmanager
def workspace(project: Path, wait: bool) -> Iterator[Workspace]:
    """Hold the project for the current flow run.

    A run that held it before and was killed is told so to Prefect, which would go on showing it as
    running; its processes are ended, outputs that it had kept aside put back, its overrides taken
    back. When the block is left by an exception (a cancelled flow, a lost worker), ``stop`` is set.

    Raises:
        WorkspaceBusyError: another run holds the project and ``wait`` is false; the text names it.
    """
    logger = get_run_logger()
    name, identity = flow_run.name or "unnamed", str(flow_run.id)

    waited = threading.Event()

    def on_wait(message: str) -> None:
        waited.set()
        logger.info(message)
        _set_state(identity, Running(name="Waiting", message=message))

    with _ends_with_its_worker(), sole_run(project, name, wait, on_wait, identity) as hold:
        if waited.is_set():
            _set_state(identity, Running())
        clear_away(project, hold, name, logger.warning)
        environment = stage_environment(os.environ, project, (identity, name))
        held = Workspace(project, environment, hold.descriptor, identity, name)
        try:
            yield held
        finally:
            held.stop.set()


def clear_away(project: Path, hold: Hold, found_by: str, tell: Callable[[str], None]) -> None:
    """Clear away what a killed run left in the workspace: state in Prefect, processes, lost outputs, overrides.

    Args:
        project: the workspace.
        hold: its lock, held by the caller.
        found_by: the caller's name, for the dead run's last state.
        tell: called with a line for everything that was found.
    """
    if hold.died:
        message = f"process {hold.died.pid} ended without a word; found by {found_by!r}"
        tell(f"the run {hold.died.run!r} was killed: {message}")
        _bury(hold.died, message)
    for pid in stop_leftovers(project):
        tell(f"ended process {pid}, left running by a run that no longer exists")
    for line in clear(project):
        tell(line)
    if back := put_back_left(project):
        tell(f"restored the outputs that a killed run had backed up: {', '.join(back)}")
    if take_back(project):
        tell("removed the parameter overrides of a killed run")


def refused(message: str) -> State[Any]:
    """The end of a run that asked for something impossible: nothing was started."""
    return failed(message, "Refused")


def failed(message: str, name: str = "Failed") -> State[Any]:
    """The end of a run that failed: a state with one clear line instead of a traceback."""
    get_run_logger().error(message)
    return Failed(name=name, message=message)


@contextmanager
def _ends_with_its_worker() -> Iterator[None]:
    """Stop this process as soon as the worker that started it is gone: nobody could cancel it any more."""
    if _STARTED_BY_A_WORKER not in os.environ:
        yield
        return
    over = threading.Event()
    parent, logger = os.getppid(), get_run_logger()

    def watch() -> None:
        while not over.wait(_POLL_SECONDS):
            if os.getppid() != parent:
                _silence()
                logger.error("the worker that started this run (process %d) has ended; stopping", parent)
                os.kill(os.getpid(), signal.SIGTERM)  # Prefect's engine takes it as the end of the run
                return

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _silence() -> None:
    """Send the terminal's output nowhere: a line for a reader that is gone would end the thread that writes it."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    os.close(nowhere)


def _bury(holder: Holder, message: str) -> None:
    if holder.flow_run is None:
        return
    with get_client(sync_client=True) as client:
        try:
            run = client.read_flow_run(UUID(holder.flow_run))
        except (ObjectNotFound, ValueError):  # recorded by another server
            return
        if run.state is None or run.state.is_final():
            return
        of_run = FlowRunFilter(id=FlowRunFilterId(any_=[run.id]))
        for task in client.read_task_runs(flow_run_filter=of_run):
            if task.state is None or not task.state.is_final():
                client.set_task_run_state(task.id, Crashed(message=message), force=True)
        client.set_flow_run_state(run.id, Crashed(message=message), force=True)


def _set_state(identity: str, state: State[Any]) -> None:
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(UUID(identity), state, force=True)
