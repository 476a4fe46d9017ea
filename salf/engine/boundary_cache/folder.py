"""Boundary states on disk: one safetensors file per key, in a folder that drops the least recently used ones.

A file is written as it is computed, and mapped when read.
"""

import fcntl
import json
import os
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from salf.engine.boundary_cache.key import Key
from salf.engine.boundary_cache.states import Timed
from salf.errors import UserError
from salf.files import WORK_FOLDER, checksum, replacing_file

GIB: Final = 1 << 30
_TENSOR: Final = "states"
_TYPES: Final = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.int8: "I8"}
_ALIGNED: Final = 64  # bytes: where the data begins
# Missing, torn, of another format, without our facts (metadata() is None), or with others in their place.
_UNUSABLE: Final = (OSError, SafetensorError, KeyError, TypeError, ValueError)
_RESERVE: Final = 1 << 28  # bytes of the disk that stay free for models, checkpoints and reports


@dataclass(frozen=True)
class StatesFile:
    """States that were found on disk."""

    rows: Tensor  # [rows, hidden], mapped: read from disk when touched, and never written
    seconds: float  # of computing them, including shallower boundaries that they were continued from


def write_states(path: Path, digest: str, parts: Timed, rows: int) -> Tensor:
    """Write parts [n, hidden] one below the other and return them mapped, [rows, hidden].

    The file gets its name only when all of it is on disk. ``digest``: the key's 64 hex digits. An ``OSError`` says
    that the disk is full or read-only.
    """
    with replacing_file(path) as aside:
        check = 0
        with aside.open("wb") as file:
            for part in parts:
                if not file.tell():
                    file.write(_header(digest, part, rows, check, 0.0))
                data = part.contiguous().view(torch.uint8).numpy().data
                file.write(data)
                check = zlib.crc32(data, check)
            file.seek(0)
            file.write(_header(digest, part, rows, check, parts.seconds))
        with safe_open(aside, framework="pt") as written:
            return written.get_tensor(_TENSOR)


def read_states(path: Path, digest: str) -> StatesFile | None:
    """The states in a file, or ``None`` if it is missing, torn, damaged or of another key.

    All of it is read once for its checksum, which leaves it in the operating system's cache.
    """
    try:
        with safe_open(path, framework="pt") as file:
            facts, rows = file.metadata(), file.get_tensor(_TENSOR)
        data = checksum(path, start=path.stat().st_size - rows.nbytes)
        fits = facts["key"] == digest and int(facts["crc32"], 16) == data
        return StatesFile(rows, float(facts["seconds"])) if fits else None
    except _UNUSABLE:
        return None


def _header(digest: str, part: Tensor, rows: int, check: int, seconds: float) -> bytes:
    """The bytes before the data: the same number of bytes whatever the checksum and the seconds."""
    size = rows * part.shape[1] * part.element_size()
    tensor = {"dtype": _TYPES[part.dtype], "shape": [rows, part.shape[1]], "data_offsets": [0, size]}
    facts = {"key": digest, "crc32": f"{check:08x}", "seconds": f"{seconds:016.6f}"}
    text = json.dumps({"__metadata__": facts, _TENSOR: tensor}).encode()
    text += b" " * (-(8 + len(text)) % _ALIGNED)
    return len(text).to_bytes(8, "little") + text


@dataclass(frozen=True)
class CacheFolder:
    """Files of boundary states in ``path``, together at most ``limit`` bytes."""

    path: Path
    limit: int

    def file(self, key: Key) -> Path:
        """The file of a key's states."""
        return self.path / f"states-{key.digest[:32]}.safetensors"

    def find(self, key: Key) -> StatesFile | None:
        """The key's states, which then count as just used; a damaged file counts as none."""
        found = read_states(self.file(key), key.digest)
        if found is not None:
            with suppress(OSError):  # a folder that is only readable
                os.utime(self.file(key))
        return found

    def find_shallower(self, key: Key) -> tuple[int, StatesFile] | None:
        """The deepest boundary below the key's whose states are on disk, and these."""
        for boundary in range(key.boundary - 1, 0, -1):
            if (found := self.find(key.at(boundary))) is not None:
                return boundary, found
        return None

    def room(self) -> int:
        """Bytes that a new file may have if older ones are deleted."""
        self.path.mkdir(parents=True, exist_ok=True)
        held = sum(size for _, size, _ in self._files())
        return min(self.limit, shutil.disk_usage(self.path).free + held - _RESERVE)

    def make_room(self, size: int, what: str = "boundary states") -> None:
        """Delete the least recently used files until ``size`` more bytes fit under the limit and on the disk.

        If they cannot fit, nothing is deleted, and a ``UserError`` says so.
        """
        self._drop_torn()
        if size > (room := self.room()):
            raise UserError(
                f"{self.path}: the {what} need {amount(size)} and there is room for "
                f"{amount(max(room, 0))} (finetune.cache_gib = {self.limit / GIB:g}, and {amount(_RESERVE)} of the "
                "disk stay free); free space, raise finetune.cache_gib, set finetune.cache_folder to another disk, or "
                "finetune.cache to memory or off"
            )
        for _, _, file in sorted(self._files()):
            held = sum(size for _, size, _ in self._files())
            if held + size <= self.limit and shutil.disk_usage(self.path).free >= size + _RESERVE:
                return
            file.unlink(missing_ok=True)

    def _files(self) -> list[tuple[float, int, Path]]:
        """Time of last use, size and path of every file of states."""
        found = []
        for file in self.path.glob("states-*.safetensors"):
            with suppress(FileNotFoundError):  # another process deleted it
                facts = file.stat()
                found.append((facts.st_mtime, facts.st_size, file))
        return found

    def _drop_torn(self) -> None:
        """Remove what a killed writer left: what no process holds the lock of."""
        for torn in (self.path / WORK_FOLDER).glob("states-*.partial"):
            with _lock(self.path / torn.name.removesuffix(".partial")).open("w") as lock, suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                torn.unlink(missing_ok=True)


@contextmanager
def alone(file: Path) -> Iterator[None]:
    """Hold off other processes that want to write the same states; they wait and then find them.

    The lock is the kernel's: it goes with the process that holds it, however that ends.
    """
    with _lock(file).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("another process computes the same boundary states: waiting for them", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _lock(file: Path) -> Path:
    room = file.parent / WORK_FOLDER
    room.mkdir(parents=True, exist_ok=True)
    return room / f"{file.name}.lock"


def amount(size: int) -> str:
    """Bytes for people."""
    return f"{size / GIB:.1f} GiB" if size >= GIB else f"{size / 2**20:.1f} MiB"
