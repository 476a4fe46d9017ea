"""The parts that all Prefect flows here share: command line, the workspace, and how a run ends."""

import argparse
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated, Any, Final

from prefect import State, get_run_logger
from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Failed
from pydantic import Field

from flows import report, server
from flows.processes import end_cleanly
from flows.workspace import Workspace, sole_run, stage_environment
from salf.children import end_with
from salf.errors import BAD_INPUT, INTERRUPTED, UserError

_STARTED_BY_A_WORKER: Final = "PREFECT__FLOW_RUN_ID"  # set by Prefect in the process that a worker starts

DottedName = Annotated[str, Field(pattern=r"^[^.\s]+(\.[^.\s]+)*$")]


def workspace(project: Path, wait: bool) -> AbstractContextManager[Workspace]:
    """Hold the project for the current flow run; see :func:`sole_run`."""
    if _STARTED_BY_A_WORKER in os.environ:
        end_with(os.getppid())  # nobody could cancel this run any more
    return sole_run(project, flow_run.name or "unnamed", wait, get_run_logger().warning, str(flow_run.id))


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
