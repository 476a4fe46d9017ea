"""The environment in which a flow runs DVC, and DVC its stages."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from stages import QUIET

WORKSPACE: Final = "SALF_WORKSPACE"  # marks the processes that work in a project for its flows


def stage_environment(
    inherited: Mapping[str, str], project: Path | None = None, flow_run: tuple[str, str] | None = None
) -> dict[str, str]:
    """Return ``inherited`` with this interpreter first on PATH, unbuffered output and no telemetry.

    ``python`` in a stage's command is then the interpreter of the flow, even if its environment is not activated.
    ``project`` marks the processes of its stages; id and name of the flow run are for the stages' records.
    """
    path = os.pathsep.join([str(Path(sys.executable).parent), inherited.get("PATH", os.defpath)])
    added = {**QUIET, "PATH": path, "PYTHONUNBUFFERED": "1"}
    if project is not None:
        added[WORKSPACE] = str(project)
    if flow_run is not None:
        added["SALF_FLOW_RUN"], added["SALF_FLOW_RUN_NAME"] = flow_run
    return {**inherited, **added}
