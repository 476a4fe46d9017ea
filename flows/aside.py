"""Copies of a stage's uncached outputs while it runs.

DVC removes all outputs of a stage before it runs it, and its checkout brings back only those that
are in its cache. What ``dvc.yaml`` keeps out of the cache (``cache: false``) would be lost with a
stage that does not come to a good end.
"""

import os
import shutil
from pathlib import Path
from urllib.parse import quote, unquote

from flows.graph import StageNode

FOLDER = Path(".dvc/tmp/flow-outputs")


def keep_aside(node: StageNode, project: Path) -> None:
    """Copy the outputs that DVC does not cache, as far as they are there.

    Raises:
        OSError: they cannot be copied; none has been touched.
    """
    if not node.uncached:
        return
    copies = _copies(node, project)
    unfinished = copies.with_name(f".{copies.name}")
    for earlier in (copies, unfinished):
        _remove(earlier)
    unfinished.mkdir(parents=True)
    for path in node.uncached:
        if os.path.lexists(project / path):
            _copy(project / path, unfinished / _flat(path))
    unfinished.rename(copies)  # whoever finds the copies of a run that was killed finds whole ones


def put_back(node: StageNode, project: Path) -> None:
    """Put the uncached outputs back as they were when they were copied, and let go of the copies.

    An output that was not there then is removed.

    Raises:
        OSError: one cannot be put back; what remains of the copies stays.
    """
    copies = _copies(node, project)
    if not copies.exists():
        return
    for path in node.uncached:
        _remove(project / path)
        if os.path.lexists(copies / _flat(path)):
            _move(copies / _flat(path), project / path)
    _remove(copies)


def let_go(node: StageNode, project: Path) -> None:
    """Remove the copies of a stage that needs them no more."""
    _remove(_copies(node, project))


def put_back_left(project: Path) -> list[str]:
    """Put back what a run that was killed had copied and that is missing now; returns these paths.

    An output that is there may have been made since: DVC knows whether it is the right one. Call it
    where no other run is at work in the folder.

    Raises:
        OSError: one cannot be put back.
    """
    found = []
    for copy in sorted((project / FOLDER).glob("[!.]*/*")):
        path = unquote(copy.name)
        if not os.path.lexists(project / path):
            _move(copy, project / path)
            found.append(path)
    _remove(project / FOLDER)
    return found


def _copies(node: StageNode, project: Path) -> Path:
    return project / FOLDER / _flat(node.name)


def _flat(text: str) -> str:
    """A stage's name, or an output's path, as the name of one file."""
    return quote(text, safe="")


def _copy(source: Path, target: Path) -> None:
    if source.is_dir() and not source.is_symlink():
        shutil.copytree(source, target, symlinks=True)
    else:
        shutil.copy2(source, target, follow_symlinks=False)


def _move(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(source, target)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
