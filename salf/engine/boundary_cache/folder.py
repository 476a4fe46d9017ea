"""Boundary states on disk: one safetensors file per key, in a folder that drops the least recently used ones.

Cached states are used only where everything that decides them is the same. A file is written as it is computed, and
mapped when read.
"""

import fcntl
import hashlib
import json
import os
import shutil
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Final

import numpy as np
import torch
import transformers
from safetensors import SafetensorError, safe_open
from torch import Tensor

from salf.engine.batches import Example
from salf.engine.boundary_cache.states import Layout, Timed
from salf.engine.models.adapter import CausalModel
from salf.engine.models.shards import plain_config
from salf.engine.runtime import Runtime
from salf.errors import UserError
from salf.files import WORK_FOLDER, checksum, digest_of, replacing_file, sha256_file

_NOT_OF_STATES: Final = ("transformers_version", "eos_token_id")  # a fine-tuned folder names another end token
GIB: Final = 1 << 30
_TENSOR: Final = "states"
_TYPES: Final = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.int8: "I8"}
_ALIGNED: Final = 64  # bytes: where the data begins
PROBE_BYTES: Final = 1 << 25  # of the file that a disk's rate is measured with
_RESERVE: Final = 1 << 28  # bytes of the disk that stay free for models, checkpoints and reports


def key_of(model: CausalModel, runtime: Runtime, units: Sequence[str], layout: Layout, *more: Any) -> str:
    """Hex SHA-256 of everything that decides the bits of cached rows of a layout's examples.

    ``units`` are hashes of the embedding's shard and of those of layers 1..boundary; the layers above are no part of
    it: other seeds, methods and the evaluation share the states. ``more``, of keys and values of prompts: the boundary
    that they are above, the space that computing begins at, how they are held, and the key of states filled too.
    """
    config = plain_config(json.loads(model.network.config.to_json_string(use_diff=False)))
    quantised = runtime.frozen_weights in {"int8", "nf4"}  # offloaded layers give the same bits as whole ones
    given = {
        "units": tuple(units),
        "config": digest_of({name: value for name, value in config.items() if name not in _NOT_OF_STATES}),
        "elsewhere": _elsewhere_digest(model),
        "tokens": _token_digest(layout.examples),
        "shared": layout.shared,
        "batch_tokens": layout.batch_tokens,
        "weights": str(model.network.dtype),
        "compute": runtime.dtype_name,
        "frozen": [runtime.frozen_weights, version("bitsandbytes")] if quantised else [],
        "device": _device_facts(runtime),
        "versions": [torch.__version__, transformers.__version__],
        "code": _code_digest(model),
        "keys_values": more,
    }
    return digest_of(given)


def frozen_units(shards: Mapping[str, str], boundary: int) -> tuple[str, ...]:
    """Hashes of a base's shards (file name → SHA-256) up to layer ``boundary``, in order of depth."""
    layers = sorted(name for name in shards if name.startswith("layer-"))
    return tuple(shards[name] for name in ["embedding.safetensors", *layers[:boundary]])


def units_in_memory(model: CausalModel, boundary: int) -> tuple[str, ...]:
    """The same of a model's tensors as they are in memory, quantised ones and adapters included."""
    parts = [model.embedding, *model.layers[:boundary]]
    return tuple(tensor_digest(part.state_dict().items()) for part in parts)


def _elsewhere_digest(model: CausalModel) -> str:
    """Digest of the parameters outside embedding, layers, norm and head, such as a table of positions."""
    parts = (model.embedding, model.layers, model.norm, model.head)
    known = {id(parameter) for part in parts for parameter in part.parameters()}
    named = model.network.named_parameters()
    return tensor_digest((name, parameter) for name, parameter in named if id(parameter) not in known)


def tensor_digest(named: Iterable[tuple[str, Tensor]]) -> str:
    """Hex SHA-256 of tensors as they are in memory, and of their names."""
    digest = hashlib.sha256()
    for name, tensor in named:
        if tensor.is_meta:
            raise UserError("frozen weights are offloaded, and have no hash; a boundary cache in memory needs none")
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _token_digest(examples: Sequence[Example]) -> str:
    """Digest of the tokens that are read, in the order of the examples: it decides which of them share a pass."""
    digest = hashlib.sha256(np.array([len(example.inputs) for example in examples], np.int64).tobytes())
    for example in examples:
        digest.update(np.array(example.inputs, np.int64).tobytes())
    return digest.hexdigest()


def _device_facts(runtime: Runtime) -> list[str | int]:
    """Facts that decide a product's last bits: kernels, and the number of threads."""
    if runtime.device.type == "cuda":
        return ["cuda", torch.cuda.get_device_name(runtime.device)]
    return [runtime.device.type, torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()]


def _code_digest(model: CausalModel) -> str:
    """Digest of the sources that compute states: after a change, older states are not used."""
    here = Path(__file__).parent
    files = [here.parent / "batches.py", *sorted(here.glob("*.py")), *sorted((here.parent / "models").glob("*.py"))]
    if type(model.network).__module__.startswith("transformers_modules."):  # code that came with the model
        files += sorted(Path(model.network.name_or_path).glob("*.py"))
    return digest_of([sha256_file(file) for file in files])


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


def read_states(path: Path, digest: str) -> tuple[Tensor, float] | None:
    """The states in a file, [rows, hidden], and the seconds of computing them.

    ``None`` if it is missing, torn, damaged or of another key. All of it is read once for its checksum, which leaves it
    in the operating system's cache. The states are mapped: read when touched, and never written.
    """
    try:
        with safe_open(path, framework="pt") as file:
            facts, rows = file.metadata(), file.get_tensor(_TENSOR)
        data = checksum(path, start=path.stat().st_size - rows.nbytes)
        fits = facts["key"] == digest and int(facts["crc32"], 16) == data
        return (rows, float(facts["seconds"])) if fits else None
    # Missing, torn, of another format, without our facts (metadata() is None), or with others in their place.
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None


def _header(digest: str, part: Tensor, rows: int, check: int, seconds: float) -> bytes:
    """The bytes before the data: the same number of bytes whatever the checksum and the seconds."""
    size = rows * part.shape[1] * part.element_size()
    tensor = {"dtype": _TYPES[part.dtype], "shape": [rows, part.shape[1]], "data_offsets": [0, size]}
    facts = {"key": digest, "crc32": f"{check:08x}", "seconds": f"{seconds:016.6f}"}
    text = json.dumps({"__metadata__": facts, _TENSOR: tensor}).encode()
    text += b" " * (-(8 + len(text)) % _ALIGNED)
    return len(text).to_bytes(8, "little") + text


@cache
def disk_rate(folder: Path) -> float:
    """Bytes per second that a folder's disk writes and reads back; measured once per process.

    An ``OSError`` says that nothing can be written there.
    """
    data = os.urandom(PROBE_BYTES)
    with TemporaryFile(dir=folder) as file:
        began = time.perf_counter()
        file.write(data)
        os.fsync(file.fileno())
        if hasattr(os, "posix_fadvise"):  # to read the disk, not the operating system's cache
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        file.seek(0)
        file.read()
        return PROBE_BYTES / (time.perf_counter() - began)


@dataclass(frozen=True)
class CacheFolder:
    """Files of boundary states in ``path``, of ``gib`` GiB together at most."""

    path: Path
    gib: float

    def file(self, key: str) -> Path:
        """The file of a key's states."""
        return self.path / f"states-{key[:32]}.safetensors"

    def find(self, key: str) -> tuple[Tensor, float] | None:
        """The key's states, which then count as just used; a damaged file counts as none."""
        found = read_states(self.file(key), key)
        if found is not None:
            with suppress(OSError):  # a folder that is only readable
                os.utime(self.file(key))
        return found

    def room(self) -> int:
        """Bytes that a new file may have if older ones are deleted."""
        self.path.mkdir(parents=True, exist_ok=True)
        held = sum(size for _, size, _ in self._files())
        return min(int(self.gib * GIB), shutil.disk_usage(self.path).free + held - _RESERVE)

    def make_room(self, size: int, what: str = "boundary states") -> None:
        """Delete the least recently used files until ``size`` more bytes fit under the limit and on the disk.

        If they cannot fit, nothing is deleted, and a ``UserError`` says so.
        """
        self._drop_torn()
        if size > (room := self.room()):
            raise UserError(
                f"{self.path}: the {what} need {amount(size)} and there is room for "
                f"{amount(max(room, 0))} (finetune.cache_gib = {self.gib:g}, and {amount(_RESERVE)} of the "
                "disk stay free); free space, raise finetune.cache_gib, set finetune.cache_folder to another disk, or "
                "finetune.cache to memory or off"
            )
        for _, _, file in sorted(self._files()):
            held = sum(size for _, size, _ in self._files())
            if held + size <= self.gib * GIB and shutil.disk_usage(self.path).free >= size + _RESERVE:
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
