"""The environment in which a flow runs DVC, and DVC its stages."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

_QUIET = {
    "DO_NOT_TRACK": "1",
    "DVC_NO_ANALYTICS": "1",
    "ITERATIVE_DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}


def stage_environment(inherited: Mapping[str, str]) -> dict[str, str]:
    """Return ``inherited`` with this interpreter first on PATH, unbuffered output and no telemetry.

    ``python`` in a stage's command is then the interpreter that runs the flow, whether or not its
    environment was activated, and a stage's lines arrive as they are printed.
    """
    folder = str(Path(sys.executable).parent)
    path = os.pathsep.join([folder, inherited.get("PATH", os.defpath)])
    return {**inherited, **_QUIET, "PATH": path, "PYTHONUNBUFFERED": "1"}
