"""The folder of boundary states: one file per key, the least recently used ones go first."""

import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from torch import Tensor

from salf.engine.boundary_cache.file import StatesFile, read_states, seconds_of, write_states
from salf.engine.boundary_cache.key import Key
from salf.errors import UserError
from salf.files import WORK_FOLDER

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

    @contextmanager
    def alone(self, key: Key) -> Iterator[None]:
        """Hold off other processes that want to write the same states; they wait and then find them.

        The lock is the kernel's: it goes with the process that holds it, however that ends.

        Raises:
            OSError: the folder cannot be written.
        """
        with self._lock(self.file(key)).open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print("another process computes the same boundary states: waiting for them", flush=True)
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield

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

    def _lock(self, file: Path) -> Path:
        room = self.path / WORK_FOLDER
        room.mkdir(parents=True, exist_ok=True)
        return room / f"{file.name}.lock"

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
            with self._lock(self.path / torn.name.removesuffix(".partial")).open("w") as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                torn.unlink(missing_ok=True)


def amount(size: int) -> str:
    """Bytes for people."""
    return f"{size / GIB:.1f} GiB" if size >= GIB else f"{size / 2**20:.1f} MiB"
