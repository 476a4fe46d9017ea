"""The environment in which a flow runs DVC, and DVC its stages."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from stages import QUIET

WORKSPACE = "SALF_WORKSPACE"  # marks the processes that work in a project for its flows
_FLOW_RUN = "SALF_FLOW_RUN"
_FLOW_RUN_NAME = "SALF_FLOW_RUN_NAME"
_THREADS = "OMP_NUM_THREADS"


def stage_environment(
    inherited: Mapping[str, str],
    project: Path | None = None,
    flow_run: tuple[str, str] | None = None,
) -> dict[str, str]:
    """Return ``inherited`` with this interpreter first on PATH, unbuffered output and no telemetry.

    ``python`` in a stage's command is then the interpreter that runs the flow, whether or not its
    environment was activated, and a stage's lines arrive as they are printed.

    Args:
        inherited: the flow's own environment.
        project: the folder whose stages are run; its processes can be told by it.
        flow_run: id and name of the flow run, for the stages' own records.
    """
    folder = str(Path(sys.executable).parent)
    path = os.pathsep.join([folder, inherited.get("PATH", os.defpath)])
    added = {**QUIET, "PATH": path, "PYTHONUNBUFFERED": "1"}
    if project is not None:
        added[WORKSPACE] = str(project)
    if flow_run is not None:
        added[_FLOW_RUN], added[_FLOW_RUN_NAME] = flow_run
    return {**inherited, **added}


def with_threads(environment: Mapping[str, str], threads: int | None) -> dict[str, str]:
    """Return the environment with at most ``threads`` threads for a stage's arithmetic; ``None``: as it is.

    Threads of two processes that share cores wait for each other at every barrier: on two cores two
    processes of two threads each were ten times as slow as one after the other.
    """
    if threads is None:
        return dict(environment)
    given = environment.get(_THREADS, "")
    allowed = min(threads, int(given)) if given.isdecimal() and int(given) > 0 else threads
    return {**environment, _THREADS: str(allowed)}
