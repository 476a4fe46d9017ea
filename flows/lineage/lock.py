"""dvc.lock as it stands: what DVC says each stage was made from, and what it made."""

import math
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
    return {stage: plain(entry) for stage, entry in stages.items()}


def plain(value: Any) -> Any:
    """Return what YAML gave as JSON could give it, so that a record of it compares equal.

    Keys become text; dates and numbers without a value in JSON become text too.
    """
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return str(value)
