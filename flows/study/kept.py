"""What an experiment left, read from its commit and DVC's cache; nothing is checked out."""

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from dvc.exceptions import DvcException
from dvc.repo import Repo

from flows.lineage.history import LOCK_FILE, LockError, parse_lock, read_lock
from flows.lineage.project import cache_path, read_manifest
from flows.study.description import StudyError
from flows.study.tables import write_aside

_MODELS: Final = "data/models/"


@dataclass(frozen=True)
class Kept:
    """An experiment's commit.

    Attributes:
        project: the project.
        cache: DVC's cache of objects.
        ref: the commit's full name in git.
        outs: path → DVC's name of what every stage made.
    """

    project: Path
    cache: Path
    ref: str
    outs: dict[str, str]

    def json(self, path: str) -> Any:
        """A JSON artifact: one of git's, one of DVC's, or a file in a folder of DVC's.

        Raises:
            StudyError: the experiment has none of this name.
        """
        name = self._known(path)
        if name is not None and cache_path(self.cache, name).exists():
            return json.loads(cache_path(self.cache, name).read_bytes())
        return json.loads(_git(self.project, "show", f"{self.ref}:{path}"))

    def file(self, path: str) -> Path:
        """Where DVC's cache keeps an output, or a file of an output folder.

        Raises:
            StudyError: there is none.
        """
        name = self._known(path)
        if name is None or not cache_path(self.cache, name).exists():
            raise StudyError(f"{self.ref}: {path} is not in DVC's cache")
        return cache_path(self.cache, name)

    def has(self, path: str) -> bool:
        """Whether a stage made such an output."""
        return self._known(path) is not None

    def drop_models(self, before: frozenset[str]) -> None:
        """Remove the weights that this experiment brought into the cache.

        What was there before it, and what the workspace or this experiment's base model names, stays.

        Args:
            before: names of the objects that the cache held before the experiment ran.
        """
        lock = read_lock(self.project)
        present = {name for entry in lock.values() for name in entry.outputs.values()}
        kept = present | {name for path, name in self.outs.items() if not path.startswith(_MODELS)}
        stays = before | {md5 for name in kept for md5 in [name, *read_manifest(self.cache, name).values()]}
        models = [name for path, name in self.outs.items() if path.startswith(_MODELS)]
        for name in models:
            for md5 in [*read_manifest(self.cache, name).values(), name]:
                if md5 not in stays:
                    cache_path(self.cache, md5).unlink(missing_ok=True)

    def _known(self, path: str) -> str | None:
        if path in self.outs:
            return self.outs[path]
        folder = next((out for out in self.outs if path.startswith(f"{out}/")), None)
        manifest = read_manifest(self.cache, self.outs[folder]) if folder else None
        return (manifest or {}).get(path.removeprefix(f"{folder}/"))


def read_kept(project: Path, experiment: str) -> Kept:
    """Read an experiment of this name.

    Raises:
        StudyError: there is none, or it is damaged.
    """
    refs = _git(project, "for-each-ref", "--format=%(refname)", "refs/exps").split()
    ref = next((ref for ref in refs if ref.endswith(f"/{experiment}")), None)
    if ref is None:
        raise StudyError(f"{experiment}: DVC kept no experiment of this name")
    try:
        lock = parse_lock(_git(project, "show", f"{ref}:{LOCK_FILE}"))
    except LockError as error:
        raise StudyError(str(error)) from None
    outs = dict(pair for entry in lock.values() for pair in entry.outputs.items())
    return Kept(project, object_cache(project), ref, outs)


def object_cache(project: Path) -> Path:
    """The folder in which DVC keeps objects by their hash.

    Raises:
        StudyError: the folder is no DVC project.
    """
    try:
        with Repo(str(project)) as repo:
            return Path(repo.cache.local.path)
    except DvcException as error:
        raise StudyError(" ".join(str(error).split())) from error


def objects(cache: Path) -> frozenset[str]:
    """Names of all objects in the cache."""
    return frozenset(file.parent.name + file.name for file in cache.glob("??/*"))


def first_seen(project: Path, cache: Path, experiment: str) -> frozenset[str]:
    """The objects that the cache held before an experiment was first begun.

    Written down until :func:`forget`: one that is killed has models in the cache already, and its next run finds
    them there; they are none of what was there before it.
    """
    note = _note(project, experiment)
    if not note.exists():
        names = "\n".join(sorted(objects(cache)))
        write_aside(note, lambda aside: aside.write_text(names, encoding="utf-8"))
    return frozenset(note.read_text(encoding="utf-8").split())


def forget(project: Path, experiment: str) -> None:
    """An experiment's results are kept: what was there before it does not matter any more."""
    _note(project, experiment).unlink(missing_ok=True)


def _note(project: Path, experiment: str) -> Path:
    return project / ".dvc" / "tmp" / "study" / experiment


def _git(project: Path, *words: str) -> str:
    done = subprocess.run(["git", *words], cwd=project, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise StudyError(f"git {words[0]}: {' '.join(done.stderr.split())}")
    return done.stdout
