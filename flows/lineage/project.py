"""The project as ``dvc.yaml`` and ``params.yaml`` describe it now, read through DVC."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dvc.exceptions import DvcException
from dvc.repo import Repo

from flows.lineage.artifacts import FOLDER, Hasher
from flows.lineage.lock import Entry, plain
from stages.common import run_record


class ProjectError(Exception):
    """The folder is no DVC project, or its ``dvc.yaml`` or parameters cannot be read."""


@dataclass(frozen=True)
class Declared:
    """A stage as ``dvc.yaml`` declares it, values filled in.

    Attributes:
        command: its command line.
        deps: paths that it reads.
        params: parameter file → name → value as set now; a name that the file no longer has is absent.
        outs: path → whether DVC keeps it in its cache.
    """

    command: str
    deps: tuple[str, ...]
    params: Mapping[str, Mapping[str, Any]]
    outs: Mapping[str, bool]


class Project:
    """A DVC project that is open for reading.

    Attributes:
        root: its folder.
        ledger: its ledger.
        cache: where DVC's cache keeps objects by their hash.
        run_cache: where DVC notes what ran before.
        stages: what ``dvc.yaml`` declares.
        added: files under ``dvc add``: the pointer's path → an entry whose ``outs`` it names.
        hasher: shared, so that linked files are read once.
    """

    def __init__(self, repo: Any) -> None:
        self.root = Path(repo.root_dir).resolve()
        self.ledger = run_record.ledger_of(self.root)
        self.cache = Path(repo.cache.local.path)
        self.run_cache = self.cache.parents[1] / "runs"
        self.stages: dict[str, Declared] = {
            stage.name: _declared(stage) for stage in repo.index.stages if hasattr(stage, "name")
        }
        self.added: dict[str, Entry] = {
            Path(stage.path_in_repo).as_posix(): {"outs": [_pointed_at(out, self.root) for out in stage.outs]}
            for stage in repo.index.stages
            if not hasattr(stage, "name")
        }
        self.hasher = Hasher()
        self._repo = repo

    def files_of(self, folder: Path) -> list[Path]:
        """Files below a folder of the project, without those that ``.dvcignore`` names."""
        return sorted(Path(file) for file in self._repo.dvcignore.find(self._repo.fs, str(folder)))

    def place(self, path: str) -> Path:
        """Where a path of dvc.yaml's lies; data may lie beside the project (``../data``)."""
        return Path(os.path.normpath(self.root / path))

    def name_of(self, path: str) -> str | None:
        """DVC's name for what lies at a path of the project now; ``None``: nothing does."""
        place = self.place(path)
        if place.is_dir():
            return self.hasher.of_folder(place, self.files_of(place))
        return self.hasher.md5(place) if place.is_file() else None


@contextmanager
def open_project(root: Path) -> Iterator[Project]:
    """Open the project at ``root``.

    Raises:
        ProjectError: it is no DVC project, or its ``dvc.yaml`` is not valid.
    """
    try:
        with Repo(str(root)) as repo:
            yield Project(repo)
    except DvcException as error:
        raise ProjectError(" ".join(str(error).split())) from error


def is_folder(name: str) -> bool:
    """Whether a name of DVC's stands for a folder."""
    return name.endswith(FOLDER)


def _pointed_at(out: Any, root: Path) -> dict[str, Any]:
    return {"path": Path(out.fs_path).relative_to(root).as_posix(), "md5": out.hash_info.value}


def _declared(stage: Any) -> Declared:
    reads_params = [dep for dep in stage.deps if hasattr(dep, "params")]
    return Declared(
        command=stage.cmd if isinstance(stage.cmd, str) else "\n".join(stage.cmd),
        deps=tuple(dep.def_path for dep in stage.deps if not hasattr(dep, "params")),
        params={dep.def_path: plain(dep.read_params(flatten=False)) for dep in reads_params},
        outs={out.def_path: out.use_cache for out in stage.outs},
    )
