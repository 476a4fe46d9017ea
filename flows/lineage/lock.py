"""dvc.lock as it stands: what DVC says each stage was made from, and what it made."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

Entry = dict[str, Any]  # cmd, deps, params, outs, as in dvc.lock
LOCK_FILE = "dvc.lock"


class LockError(Exception):
    """A lock file cannot be read."""


def read_lock(project: Path) -> dict[str, Entry]:
    """Return stage → its entry; no file: nothing.

    Raises:
        LockError: the file is no lock file of DVC's.
    """
    path = project / LOCK_FILE
    try:
        return parse_lock(path.read_text(encoding="utf-8"), LOCK_FILE)
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise LockError(f"{LOCK_FILE}: {error}") from error


def parse_lock(text: str, name: str) -> dict[str, Entry]:
    """Return stage → its entry.

    Args:
        text: the content of a lock file.
        name: what it is called in an error.

    Raises:
        LockError: it is no lock file of DVC's.
    """
    try:
        content = YAML(typ="safe", pure=True).load(text)
    except YAMLError as error:
        raise LockError(f"{name}: damaged: {' '.join(str(error).split())}") from error
    stages = content.get("stages", {}) if isinstance(content, Mapping) else None
    if not isinstance(stages, Mapping) or not all(isinstance(entry, Mapping) for entry in stages.values()):
        raise LockError(f"{name}: damaged: no stages in it")
    return {stage: dict(entry) for stage, entry in stages.items()}
