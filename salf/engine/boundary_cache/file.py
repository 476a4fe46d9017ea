"""Boundary states as a file: one tensor in the safetensors format, written as it is computed, mapped when read."""

import json
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from salf.files import checksum, replacing_file

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
