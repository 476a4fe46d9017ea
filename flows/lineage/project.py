"""The project as ``dvc.yaml``, ``params.yaml`` and ``dvc.lock`` describe it, now and in git; its files, DVC's cache.

Content is hashed here as DVC does it, because DVC's own notes are what is judged: a file's name is the MD5 of
its bytes, a folder's the MD5 of a list of its files' names and MD5s, with ``.dir`` appended.
"""

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from dvc.scm import SCMError, resolve_rev
from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from flows.graph import graph_of, opened
from salf.errors import UserError
from salf.files import git
from salf.ledger import FOLDER, LockedPath, LockEntry, folder_name, ledger_of

LOCK_FILE: Final = "dvc.lock"
UNREADABLE: Final = "unreadable: "  # begins what stands for the hash of a file that cannot be read


class LockError(UserError):
    """A lock file cannot be read."""


class NotFoundError(UserError):
    """Nothing that is known matches the request."""


class Hasher:
    """Hashes of files; a file that has several names (hard links) is read once."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, int, int, int, int], str] = {}

    def digest(self, path: Path, algorithm: str = "md5") -> str:
        """Hex digest of a file's bytes; of a file that cannot be read, the reason, which is no file's digest."""
        try:
            with path.open("rb") as file:
                facts = os.fstat(file.fileno())
                key = (algorithm, facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns)
                if key not in self._known:
                    self._known[key] = hashlib.file_digest(file, algorithm).hexdigest()
        except OSError as error:
            return f"{UNREADABLE}{error.strerror}"
        return self._known[key]

    def of_folder(self, folder: Path, files: Iterable[Path]) -> str:
        """DVC's name of a folder with these files."""
        return folder_name({file.relative_to(folder).as_posix(): self.digest(file) for file in files})


class Project:
    """A DVC project that is open for reading, its stages as ``dvc.yaml`` declares them, and its files.

    ``added`` are the files under ``dvc add``: the pointer's path → an entry whose ``outs`` it names.
    """

    def __init__(self, repo: Any) -> None:
        self.root = Path(repo.root_dir).resolve()
        self.ledger = ledger_of(self.root)
        self.cache = Path(repo.cache.local.path)
        self.stages = {node.name: node for node in graph_of(repo) if node.command}
        self.added: dict[str, LockEntry] = {}
        for pointer in repo.index.stages:
            if not pointer.cmd:
                paths = [(Path(out.fs_path).relative_to(self.root), out.hash_info.value) for out in pointer.outs]
                outs = [LockedPath(path=path.as_posix(), md5=name) for path, name in paths]
                self.added[Path(pointer.path_in_repo).as_posix()] = LockEntry(outs=outs)
        self.hasher = Hasher()
        self._repo = repo

    def files_of(self, folder: Path) -> list[Path]:
        """Files below a folder of the project, without those that ``.dvcignore`` names."""
        return sorted(Path(file) for file in self._repo.dvcignore.find(self._repo.fs, str(folder)))

    def strangers(self, path: str) -> dict[str, str]:
        """What DVC does not hash at an artifact's path, or not as it is: path → why."""
        place = self.place(path)
        tracked = set(self.files_of(place))
        found = {}
        for top, folders, files in os.walk(place):
            for file in (Path(top, name) for name in (*folders, *files)):
                if self._leads_away(file):
                    found[file] = f"is a link to {os.readlink(file)}"
                elif file not in tracked and not file.is_dir():
                    found[file] = "is hidden from DVC by .dvcignore"
        if self._leads_away(place):
            found[place] = f"is a link to {os.readlink(place)}"
        return {Path(os.path.relpath(file, self.root)).as_posix(): why for file, why in sorted(found.items())}

    def commit(self, name: str) -> str:
        """The full hash of a commit, branch, tag or experiment."""
        try:
            return resolve_rev(self._repo.scm, name)
        except SCMError as error:
            raise NotFoundError(f"no commit, branch, tag or experiment {name!r}: {error}") from None

    def entries_at(self, commit: str) -> dict[str, LockEntry]:
        """dvc.lock as it was at a commit; none, or a damaged one: nothing."""
        try:
            found = git(self.root, "show", f"{commit}:./{LOCK_FILE}") or b"{}"
            return parse_lock(found.decode(errors="replace"))
        except LockError:
            return {}

    def remembers(self, entry: LockEntry) -> bool:
        """Whether DVC's cache of runs has exactly this entry: it ran, and was taken from there."""
        for file in (self.cache.parents[1] / "runs").glob("*/*/*"):
            text = file.read_text(encoding="utf-8", errors="replace")
            if all(name in text for name in entry.outputs.values()):
                with contextlib.suppress(YAMLError, ValidationError):
                    if lock_entry(YAML(typ="safe", pure=True).load(text)) == entry:
                        return True
        return False

    def lost_stages(self) -> set[str]:
        """The names, without matrix items, that the last commit has in dvc.yaml, and the present one has no more."""
        graph, committed = self.root / "dvc.yaml", git(self.root, "show", "HEAD:./dvc.yaml")
        return _names(committed) - _names(graph.read_bytes() if graph.is_file() else None)

    def changed_files(self, commit: str, path: str) -> list[str]:
        """Differences below a path since a commit, like ``M stages/fit/gains.py``; empty where git cannot tell."""
        found = git(self.root, "diff", "--name-status", "--no-renames", "--relative", "-z", commit, "--", path)
        if found is None:
            return []
        fields = found.decode(errors="replace").split("\0")[:-1]
        lines = [f"{status} {path}" for status, path in zip(fields[::2], fields[1::2], strict=True)]
        others = git(self.root, "ls-files", "--others", "--exclude-standard", "-z", "--", path) or b""
        lines += [f"A {path}" for path in others.decode(errors="replace").split("\0")[:-1]]
        return sorted(lines, key=lambda line: line[2:])

    def place(self, path: str) -> Path:
        """The absolute path of one in dvc.yaml; data may be outside the project (``../data``)."""
        return Path(os.path.normpath(self.root / path))

    def name_of(self, path: str) -> str | None:
        """DVC's name of the present content of a path; ``None``: nothing is there."""
        place = self.place(path)
        if place.is_dir():
            return self.hasher.of_folder(place, self.files_of(place))
        return self.hasher.digest(place) if place.is_file() else None

    def cached(self, name: str) -> Path:
        """The place of an object in DVC's cache."""
        return self.cache / name[:2] / name[2:]

    def manifest(self, name: str) -> dict[str, str]:
        """Relative path → MD5 of a cached folder's files; empty: no folder, not in the cache, or damaged."""
        try:
            content = self.cached(name).read_bytes() if name.endswith(FOLDER) else b"[]"
            manifest = {entry["relpath"]: entry["md5"] for entry in json.loads(content)}
        except (OSError, ValueError, KeyError, TypeError):
            return {}
        return manifest if folder_name(manifest) == name else {}

    def _leads_away(self, place: Path) -> bool:
        """Whether a path is a link to elsewhere than DVC's cache, from where DVC itself may link files."""
        return place.is_symlink() and not place.resolve().is_relative_to(self.cache.resolve())


@contextmanager
def open_project(root: Path) -> Iterator[Project]:
    """Open the project at ``root``."""
    with opened(root) as repo:
        yield Project(repo)


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


def overlap(path: str, other: str) -> bool:
    """Whether two paths are the same or one contains the other."""
    return path == other or path.startswith(f"{other}/") or other.startswith(f"{path}/")


def _names(graph: bytes | None) -> set[str]:
    """The stages in the text of a dvc.yaml; no file, or a damaged one: none."""
    try:
        return set(YAML(typ="safe", pure=True).load(graph or b"{}").get("stages", {}))
    except (YAMLError, AttributeError, TypeError):
        return set()
