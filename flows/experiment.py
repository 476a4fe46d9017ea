"""Saves the state of a run as a DVC experiment under a name."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from flows.processes import run_streaming
from flows.stage_run import DVC


class ExperimentError(Exception):
    """The name cannot be used, or DVC refused to save; the text says why."""


def check_name(name: str, project: Path, environment: Mapping[str, str]) -> None:
    """Refuse a name that is taken, before hours of work.

    Raises:
        ExperimentError: see there.
    """
    lines = _dvc(["exp", "list", "--all-commits", "--name-only"], project, environment)
    if name in (line.strip() for line in lines):
        raise ExperimentError(f"an experiment {name!r} exists; choose another name, or: dvc exp remove {name}")


def save(name: str, stages: Sequence[str], project: Path, environment: Mapping[str, str]) -> None:
    """Save parameters, lock file and results of the given stages, which are up to date.

    Without the names DVC would write the present parameters into the lock of stages that did not run.

    Raises:
        ExperimentError: see there.
    """
    _dvc(["exp", "save", "--name", name, *stages], project, environment)


def _dvc(words: Sequence[str], project: Path, environment: Mapping[str, str]) -> list[str]:
    lines: list[str] = []
    status = run_streaming([*DVC, *words], project, environment, lines.append)
    if status != 0:
        faults = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
        raise ExperimentError(f"experiment: {faults[-1] if faults else f'DVC exited with {status}'}")
    return lines
