"""Names artifacts by their content as DVC does, computed here anew: DVC's own notes are what is judged.

A file is named by the MD5 of its bytes; a folder by the MD5 of a list of its files' names and MD5s,
with ``.dir`` behind it.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from flows.lineage.lock import Entry

_CHUNK = 1 << 20
FOLDER = ".dir"  # what DVC puts behind the hash of a folder


class Hasher:
    """Hashes of files; a file that has several names (hard links) is read once."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, int, int, int, int], str] = {}

    def md5(self, file: Path) -> str:
        """Hex MD5 of a file's bytes."""
        return self._hash("md5", file)

    def sha256(self, file: Path) -> str:
        """Hex SHA-256 of a file's bytes."""
        return self._hash("sha256", file)

    def of_folder(self, folder: Path, files: Iterable[Path]) -> str:
        """DVC's name of a folder with these files."""
        return folder_name({file.relative_to(folder).as_posix(): self.md5(file) for file in files})

    def _hash(self, algorithm: str, path: Path) -> str:
        with path.open("rb") as file:
            facts = os.fstat(file.fileno())
            key = (algorithm, facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns)
            if key not in self._known:
                digest = hashlib.new(algorithm, usedforsecurity=False)
                while chunk := file.read(_CHUNK):
                    digest.update(chunk)
                self._known[key] = digest.hexdigest()
        return self._known[key]


def folder_name(manifest: Mapping[str, str]) -> str:
    """DVC's name of a folder: relative path → MD5 in, hash with ``.dir`` out."""
    entries = [{"md5": md5, "relpath": path} for path, md5 in sorted(manifest.items())]
    return hashlib.md5(json.dumps(entries, sort_keys=True).encode(), usedforsecurity=False).hexdigest() + FOLDER


def files_below(folder: Path) -> list[Path]:
    """All files below a folder, for folders that DVC's ignore file says nothing about."""
    return sorted(file for file in folder.rglob("*") if file.is_file())


def cache_path(cache: Path, name: str) -> Path:
    """Where DVC's cache keeps the object of this name."""
    return cache / name[:2] / name[2:]


def read_manifest(cache: Path, name: str) -> dict[str, str] | None:
    """Relative path → MD5 of a cached folder's files; ``None``: not in the cache, or damaged."""
    try:
        content = cache_path(cache, name).read_bytes()
        if hashlib.md5(content, usedforsecurity=False).hexdigest() + FOLDER != name:
            return None
        return {entry["relpath"]: entry["md5"] for entry in json.loads(content)}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def named(entry: Entry, section: str) -> Iterator[tuple[str, str]]:
    """Path and name of what stands under ``deps`` or ``outs`` of a lock entry."""
    for item in entry.get(section) or []:
        if name := item.get("md5"):
            yield item["path"], name


def overlap(path: str, other: str) -> bool:
    """Whether two paths are the same or one lies in the other."""
    return path == other or path.startswith(f"{other}/") or other.startswith(f"{path}/")
