"""dvc.lock as it is now and as git knows it: what DVC says each stage was made from, and what it made."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from salf.errors import UserError
from salf.files import git
from salf.ledger import LockEntry

LOCK_FILE = "dvc.lock"


class LockError(UserError):
    """A lock file cannot be read."""


class NotFoundError(UserError):
    """Nothing that is known matches the request."""


def read_lock(project: Path) -> dict[str, LockEntry]:
    """Return stage → its entry in dvc.lock; no file: nothing."""
    try:
        return parse_lock((project / LOCK_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise LockError(f"{LOCK_FILE}: {error}") from error


def parse_lock(text: str) -> dict[str, LockEntry]:
    """Return stage → its entry in the text of a lock file."""
    try:
        stages = YAML(typ="safe", pure=True).load(text).get("stages", {})
        return {stage: lock_entry(entry) for stage, entry in stages.items()}
    except (YAMLError, ValidationError, AttributeError) as error:
        raise LockError(f"{LOCK_FILE}: damaged: {' '.join(str(error).split())}") from error


def lock_entry(loaded: Any) -> LockEntry:
    """Return an entry of dvc.lock, or of DVC's run cache, from loaded YAML."""
    return LockEntry.model_validate(plain(loaded))


def plain(value: Any) -> Any:
    """Return YAML values as JSON would give them, so that a record of them compares equal.

    Keys become text; dates and non-finite numbers become text too.
    """
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return str(value)


def entries_at(project: Path, commit: str) -> dict[str, LockEntry]:
    """dvc.lock as it was at a commit; none, or a damaged one: nothing."""
    try:
        found = git(project, "show", f"{commit}:./{LOCK_FILE}") or b"{}"
        return parse_lock(found.decode(errors="replace"))
    except LockError:
        return {}


def declared_stages(text: bytes | None) -> set[str]:
    """The names in a ``dvc.yaml``, without matrix items; no file, or a damaged one: nothing."""
    try:
        return set(YAML(typ="safe", pure=True).load(text or b"{}").get("stages", {}))
    except (YAMLError, AttributeError, TypeError):
        return set()


def commits_of_lock(project: Path) -> Iterator[str]:
    """Commits of every branch and experiment that changed dvc.lock, newest first."""
    found = git(project, "log", "--all", "--format=%H", "--", LOCK_FILE)
    yield from (found or b"").decode().split()


def changed_files(project: Path, commit: str, paths: Sequence[str]) -> list[str]:
    """Differences below the paths since a commit, like ``M stages/fit/gains.py``; empty where git cannot tell."""
    found = git(project, "diff", "--name-status", "--no-renames", "--relative", "-z", commit, "--", *paths)
    if found is None:
        return []
    fields = found.decode(errors="replace").split("\0")[:-1]
    lines = [f"{status} {path}" for status, path in zip(fields[::2], fields[1::2], strict=True)]
    others = git(project, "ls-files", "--others", "--exclude-standard", "-z", "--", *paths) or b""
    lines += [f"A {path}" for path in others.decode(errors="replace").split("\0")[:-1]]
    return sorted(lines, key=lambda line: line[2:])
