"""Boundary states on disk: one safetensors file per key, in a folder that drops the least recently used ones.

A file is written as it is computed, and mapped when read.
"""

import fcntl
import json
import os
import shutil
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from salf.engine.boundary_cache.key import Key
from salf.errors import UserError
from salf.files import WORK_FOLDER, checksum, replacing_file

_TENSOR: Final = "states"
_TYPES: Final = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
_ALIGNED: Final = 64  # bytes: where the data begins
# Missing, torn, of another format, without our facts (metadata() is None), or with others in their place.
_UNUSABLE: Final = (OSError, SafetensorError, KeyError, TypeError, ValueError)


@dataclass(frozen=True)
class StatesFile:
    """States that were found on disk.

    Attributes:
        rows: [rows, hidden], mapped: read from disk when touched, and never written.
        seconds: what computing them took, shallower boundaries that they were continued from included.
    """

    rows: Tensor
    seconds: float


def write_states(path: Path, digest: str, parts: Iterable[Tensor], rows: int, seconds: Callable[[], float]) -> Tensor:
    """Write parts [n, hidden] one below the other and return them mapped, [rows, hidden].

    The file has its name only when all of it is on disk.

    Args:
        path: the file.
        digest: of the states' key, 64 hex digits.
        parts: one after the other, ``rows`` rows together.
        rows: all rows.
        seconds: what computing the parts took; asked behind the last one.

    Raises:
        OSError: the disk is full or the folder cannot be written.
    """
    with replacing_file(path) as aside:
        check, header = 0, None
        with aside.open("wb") as file:
            for part in parts:
                if header is None:
                    header = partial(_header, digest, part.dtype, (rows, part.shape[1]))
                    file.write(header(check, 0.0))
                data = part.contiguous().view(torch.uint8).numpy().data
                file.write(data)
                check = zlib.crc32(data, check)
            assert header is not None, "a split holds one example at least"
            file.seek(0)
            file.write(header(check, seconds()))
        with safe_open(aside, framework="pt") as written:
            return written.get_tensor(_TENSOR)


def read_states(path: Path, digest: str) -> StatesFile | None:
    """The states in a file, or ``None`` where it is missing, torn, damaged or of another key.

    All of it is read once for its check sum, which leaves it in the operating system's cache.
    """
    try:
        with safe_open(path, framework="pt") as file:
            facts = file.metadata()
            rows = file.get_tensor(_TENSOR)
        if facts["key"] != digest or int(facts["crc32"], 16) != _of_data(path, rows):
            return None
        return StatesFile(rows, float(facts["seconds"]))
    except _UNUSABLE:
        return None


def seconds_of(path: Path, digest: str) -> float | None:
    """What computing the states in a file took, read without them; ``None`` where they are of no use."""
    try:
        with safe_open(path, framework="pt") as file:
            facts = file.metadata()
        return float(facts["seconds"]) if facts["key"] == digest else None
    except _UNUSABLE:
        return None


def _header(digest: str, dtype: torch.dtype, shape: tuple[int, int], check: int, seconds: float) -> bytes:
    """What comes before the data: the same number of bytes whatever the check sum and the seconds."""
    tensor = {"dtype": _TYPES[dtype], "shape": shape, "data_offsets": [0, shape[0] * shape[1] * dtype.itemsize]}
    facts = {"key": digest, "crc32": f"{check:08x}", "seconds": f"{seconds:016.6f}"}
    text = json.dumps({"__metadata__": facts, _TENSOR: tensor}).encode()
    text += b" " * (-(8 + len(text)) % _ALIGNED)
    return len(text).to_bytes(8, "little") + text


def _of_data(path: Path, rows: Tensor) -> int:
    """CRC-32 of the data at the end of the file."""
    return checksum(path, start=path.stat().st_size - rows.numel() * rows.element_size())


_RESERVE: Final = 1 << 28  # bytes of the disk that stay free for models, checkpoints and reports
_PROBE: Final = 1 << 23
GIB: Final = 1 << 30


@dataclass(frozen=True)
class DiskRates:
    """Bytes per second of the disk under the folder."""

    write: float
    read: float


@dataclass(frozen=True)
class CacheFolder:
    """Files of boundary states in ``path``, together at most ``limit`` bytes."""

    path: Path
    limit: int

    def file(self, key: Key) -> Path:
        """Where the states of a key are, once they are there."""
        return self.path / f"states-{key.digest[:32]}.safetensors"

    def find(self, key: Key) -> StatesFile | None:
        """The key's states, which then count as just used; a damaged file is as good as none."""
        found = read_states(self.file(key), key.digest)
        if found is not None:
            self._touch(key)
        return found

    def seconds_of(self, key: Key) -> float | None:
        """What computing the key's states took, if they are there."""
        return seconds_of(self.file(key), key.digest)

    def write(self, key: Key, parts: Iterable[Tensor], rows: int, seconds: Callable[[], float]) -> Tensor:
        """Write the key's states, for which there is room, and return them mapped: see :func:`write_states`."""
        return write_states(self.file(key), key.digest, parts, rows, seconds)

    def find_shallower(self, key: Key) -> tuple[int, StatesFile] | None:
        """The states of the deepest boundary below the key's that are there, and that boundary."""
        for boundary in range(key.boundary - 1, 0, -1):
            if (found := self.find(key.at(boundary))) is not None:
                return boundary, found
        return None

    def room(self) -> int:
        """Bytes that a new file may have, older ones given up."""
        self.path.mkdir(parents=True, exist_ok=True)
        held = sum(size for _, size, _ in self._files())
        return min(self.limit, shutil.disk_usage(self.path).free + held - _RESERVE)

    def make_room(self, size: int) -> None:
        """Give up the least recently used files until ``size`` more bytes fit under the limit and on the disk.

        Raises:
            UserError: they do not fit, and nothing was given up.
        """
        self._drop_torn()
        if size > (room := self.room()):
            raise UserError(
                f"{self.path}: the boundary states need {amount(size)} and there is room for "
                f"{amount(max(room, 0))} (finetune.cache_gib = {self.limit / GIB:g}, and {amount(_RESERVE)} of the "
                "disk stay free); free space, raise finetune.cache_gib, set finetune.cache_folder to another disk, or "
                "finetune.cache to memory or off"
            )
        for _, _, file in sorted(self._files()):
            held = sum(size for _, size, _ in self._files())
            if held + size <= self.limit and shutil.disk_usage(self.path).free >= size + _RESERVE:
                return
            file.unlink(missing_ok=True)

    def measure(self) -> DiskRates:
        """Write and read a few MiB past the operating system's cache, where it can be told to.

        Raises:
            OSError: the folder cannot be written.
        """
        probe = self.path / WORK_FOLDER / f"probe-{os.getpid()}"
        data = os.urandom(_PROBE)
        try:
            with probe.open("wb") as file:
                began = time.perf_counter()
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
                written = time.perf_counter()
                if hasattr(os, "posix_fadvise"):
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            opened = time.perf_counter()
            probe.read_bytes()
            return DiskRates(_PROBE / (written - began), _PROBE / (time.perf_counter() - opened))
        finally:
            probe.unlink(missing_ok=True)

    def _touch(self, key: Key) -> None:
        """Note the use in the file's time stamp; a folder that is only readable does without."""
        try:
            os.utime(self.file(key))
        except OSError:
            return

    def _files(self) -> list[tuple[float, int, Path]]:
        """Time of last use, size and path of every file of states."""
        found = []
        for file in self.path.glob("states-*.safetensors"):
            try:
                facts = file.stat()
            except FileNotFoundError:  # another process gave it up
                continue
            found.append((facts.st_mtime, facts.st_size, file))
        return found

    def _drop_torn(self) -> None:
        """Remove what a writer left behind that was killed: what no process holds the lock of."""
        for torn in (self.path / WORK_FOLDER).glob("states-*.partial"):
            with _lock(self.path / torn.name.removesuffix(".partial")).open("w") as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                torn.unlink(missing_ok=True)


@contextmanager
def alone(file: Path) -> Iterator[None]:
    """Hold off other processes that want to write the same states; they wait and then find them.

    The lock is the kernel's: it goes with the process that holds it, however that ends.

    Raises:
        OSError: the folder cannot be written.
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


_OF_FREE_MEMORY: Final = 0.5  # the suffix, its optimizer and its activations need the rest
_NEXT_TO_NOTHING: Final = 0.1  # of the seconds of computing
_NOT_WORTH_A_THOUGHT: Final = 0.2  # seconds


@dataclass(frozen=True)
class Verdict:
    """A decision, and the numbers that led to it."""

    yes: bool
    reason: str


def in_memory(size: int, free: int) -> bool:
    """Whether states of so many bytes leave enough of the free memory to training."""
    return size <= _OF_FREE_MEMORY * free


def worth_reading(size: int, computing: float, rates: DiskRates) -> Verdict:
    """Whether states on disk come faster from there than from computing them anew.

    Args:
        size: bytes.
        computing: seconds that computing them took.
        rates: the disk's.
    """
    reading = size / rates.read
    return Verdict(
        reading <= max(computing, _NOT_WORTH_A_THOUGHT),
        f"reading {amount(size)} takes about {reading:.1f} s, computing took {computing:.1f} s",
    )


def worth_writing(size: int, computing: float, room: int, rates: DiskRates) -> Verdict:
    """Whether states that are in memory go to disk too, for other runs.

    Args:
        size: bytes.
        computing: seconds that computing them took.
        room: bytes that the folder can take.
        rates: the disk's.
    """
    if size > room:
        return Verdict(False, f"the cache folder has no room for {amount(size)}")
    writing = size / rates.write
    cheap = writing <= max(_NEXT_TO_NOTHING * computing, _NOT_WORTH_A_THOUGHT)
    return Verdict(cheap, f"writing takes about {writing:.1f} s, computing took {computing:.1f} s")


def disk_rather_than_off(size: int, computing: float, passes: float, room: int, rates: DiskRates) -> Verdict:
    """For states that memory cannot hold: whether to keep them on disk or to compute them for every batch.

    Args:
        size: bytes.
        computing: seconds that computing them once takes, by a sample.
        passes: how often training reads all of them.
        room: bytes that the folder can take.
        rates: the disk's.
    """
    without = f"{amount(size)} are too much for memory; "
    if size > room:
        return Verdict(False, f"{without}the cache folder has no room for them")
    kept, anew = computing + size / rates.write + passes * size / rates.read, passes * computing
    text = f"{without}on disk about {kept:.0f} s over all epochs, computed for every batch {anew:.0f} s"
    return Verdict(kept <= anew, text)
