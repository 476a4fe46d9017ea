"""Backups of a stage's uncached outputs while it runs.

DVC removes all outputs of a stage before it runs it, and restores only those in its cache. What ``dvc.yaml`` keeps
out of the cache (``cache: false``) would be lost with a stage that fails.
"""

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, unquote

if TYPE_CHECKING:
    from flows.graph import StageNode

FOLDER: Final = Path(".dvc/tmp/flow-outputs")


def keep_aside(node: "StageNode", project: Path) -> None:
    """Copy the stage's uncached outputs that exist."""
    if not node.uncached:
        return
    copies = _copies(node, project)
    unfinished = copies.with_name(f".{copies.name}")
    for earlier in (copies, unfinished):
        _remove(earlier)
    unfinished.mkdir(parents=True)
    for path in node.uncached:
        source, target = project / path, unfinished / _flat(path)
        if source.is_dir() and not source.is_symlink():
            shutil.copytree(source, target, symlinks=True)
        elif os.path.lexists(source):
            shutil.copy2(source, target, follow_symlinks=False)
    unfinished.rename(copies)  # so that the copies of a killed run are complete, or unfinished by their name


def put_back(node: "StageNode", project: Path) -> None:
    """Restore the uncached outputs as they were copied, and remove the copies. New outputs are removed."""
    copies = _copies(node, project)
    if not copies.exists():
        return
    for path in node.uncached:
        _remove(project / path)
        if os.path.lexists(copies / _flat(path)):
            _move(copies / _flat(path), project / path)
    _remove(copies)


def let_go(node: "StageNode", project: Path) -> None:
    """Remove the copies of a stage that no longer needs them."""
    _remove(_copies(node, project))


def put_back_left(project: Path) -> list[str]:
    """Restore what a killed run had copied and that is missing now; returns these paths.

    An output that exists may be newer: DVC knows whether it is the right one. Call it where no other run is active.
    """
    found = []
    for copy in sorted((project / FOLDER).glob("[!.]*/*")):
        path = unquote(copy.name)
        if not os.path.lexists(project / path):
            _move(copy, project / path)
            found.append(path)
    _remove(project / FOLDER)
    return found


def _copies(node: "StageNode", project: Path) -> Path:
    return project / FOLDER / _flat(node.name)


def _flat(text: str) -> str:
    """A stage's name, or an output's path, as the name of one file."""
    return quote(text, safe="")


def _move(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(source, target)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
