"""The embedded model and task: those of this project's folder, or made in a folder of their own."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

import stages
from salf.errors import UserError
from salf.files import read_json
from stages.common.params import PARAMS_FILE


@dataclass(frozen=True)
class Prepared:
    """A project folder with parameters, base model and prepared data."""

    folder: Path
    base: Path
    data: Path


def embedded_task(aside: Path) -> Prepared:
    """Where model and data lie; they are made below ``aside`` where the project's own are others or missing.

    Raises:
        UserError: a stage that makes them failed; holds its message.
    """
    here = Prepared(Path.cwd(), Path.cwd() / "data/base", Path.cwd() / "data/prepared")
    if _source(here.base / "base.json") == "embedded" and _source(here.data / "meta.json") == "docstrings":
        return here
    aside.mkdir(parents=True, exist_ok=True)
    made = Prepared(aside, aside / "base", aside / "prepared")
    _write_params(aside)
    if not made.base.exists():
        _run(aside, "base", "--out", "base")
    if not made.data.exists():
        _run(aside, "prepare", "--base", "base", "--out", "prepared")
    return made


def stage_environment() -> dict[str, str]:
    """An environment in which ``python -m stages.…`` works in any folder."""
    return {**os.environ, "PYTHONPATH": str(Path(stages.__path__[0]).parent)}


def _source(record: Path) -> str | None:
    found: Any = read_json(record)["source"] if record.exists() else None
    return found["kind"] if isinstance(found, dict) else found


def _write_params(folder: Path) -> None:
    yaml = YAML()
    params = yaml.load(PARAMS_FILE.read_text(encoding="utf-8"))
    params["model"]["source"], params["data"]["source"] = "embedded", "docstrings"
    with (folder / PARAMS_FILE.name).open("w", encoding="utf-8") as file:
        yaml.dump(params, file)


def _run(folder: Path, stage: str, *options: str) -> None:
    command = [sys.executable, "-m", f"stages.{stage}", *options]
    done = subprocess.run(command, cwd=folder, env=stage_environment(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"the embedded task cannot be made: {' '.join(done.stderr.split())[-500:]}")
