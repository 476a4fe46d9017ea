"""DVC experiments: which names are free, the state of a run under a name, what was measured."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flows.processes import run_streaming
from flows.stage_run import DVC

# Runs an experiment in a folder of its own; -P, since this package's modules are not to be found as top ones.
RUN_APART = (
    *(sys.executable, "-P", str(Path(__file__).with_name("dvc_in_utf8.py"))),
    *("--wait-for-lock", "exp", "run", "--temp"),
)


class ExperimentError(Exception):
    """The name cannot be used, or DVC refused to save; the text says why."""


def check_names(names: Sequence[str], project: Path, environment: Mapping[str, str]) -> None:
    """Refuse names that are taken, before hours of work.

    Raises:
        ExperimentError: see there.
    """
    present = _names(project, environment)
    taken = [name for name in names if name in present]
    if taken:
        words = " ".join(taken)
        raise ExperimentError(f"an experiment of that name exists: choose another name, or: dvc exp remove {words}")


def save(name: str, stages: Sequence[str], project: Path, environment: Mapping[str, str]) -> None:
    """Save parameters, lock file and results of the given stages, which are up to date.

    Without the names DVC would write the present parameters into the lock of stages that did not run.

    Raises:
        ExperimentError: see there.
    """
    _dvc(["exp", "save", "--name", name, *stages], project, environment)


def remove(name: str, project: Path, environment: Mapping[str, str]) -> None:
    """Remove an experiment of this name, if there is one.

    Raises:
        ExperimentError: see there.
    """
    if name in _names(project, environment):
        _dvc(["exp", "remove", name], project, environment)


def show(project: Path, environment: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Return the metrics of every experiment on the present commit: name → metrics.

    Raises:
        ExperimentError: see there.
    """
    lines = _dvc(["exp", "show", "--json"], project, environment)
    found: dict[str, dict[str, Any]] = {}
    for revision in json.loads(next(line for line in lines if line.startswith("["))):
        for experiment in revision["experiments"] or []:
            data = experiment["revs"][0]["data"] or {}
            files = {path: content["data"] for path, content in data.get("metrics", {}).items() if "data" in content}
            found[experiment["name"]] = {key: value for content in files.values() for key, value in content.items()}
    return found


def _names(project: Path, environment: Mapping[str, str]) -> set[str]:
    return {line.strip() for line in _dvc(["exp", "list", "--all-commits", "--name-only"], project, environment)}


def _dvc(words: Sequence[str], project: Path, environment: Mapping[str, str]) -> list[str]:
    lines: list[str] = []
    status = run_streaming([*DVC, *words], project, environment, lines.append)
    if status != 0:
        faults = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
        raise ExperimentError(f"experiment: {faults[-1] if faults else f'DVC exited with {status}'}")
    return lines
