"""Reads the ledger and checks its chain; shares no code with its writer, so that one judges the other.

The ledger (``reports/lineage/records.jsonl``) has a line per event; its schema stands in
``stages/common/run_record.py``, which writes it. Beside it lies its head (``records.head``): the number
of records and the SHA-256 of the newest. Whoever rewrites both is not found by it; a head noted down
elsewhere tells that.
"""

import contextlib
import fcntl
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Record = dict[str, Any]

_BEFORE_THE_FIRST = "0" * 64
_COMMON = ("schema", "seq", "previous", "kind", "at")


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong with a ledger: the line (from 1) and what."""

    line: int
    text: str


@dataclass(frozen=True)
class Head:
    """The newest record: its number and the SHA-256 of its line; noted down elsewhere, it tells truncation."""

    seq: int
    sha256: str


class LedgerError(Exception):
    """The ledger cannot be read."""


def read(path: Path) -> list[Record]:
    """Return the records in their order; no file: no records. A half-written last line is left out.

    Raises:
        LedgerError: a line is no record.
    """
    records = []
    for number, line in _lines(path):
        record = _parse(line)
        if record is None:
            raise LedgerError(f"{path}: line {number} is no record; `python -m flows.lineage verify` says more")
        records.append(record)
    return records


def check_chain(path: Path) -> list[Fault]:
    """Return what is wrong with the chain: lines edited, removed, inserted, put in another order, cut off at the end.

    The record after the one that the head tells of is no fault: a writer that was killed in between leaves it.

    Raises:
        LedgerError: ledger or head cannot be read.
    """
    faults = []
    hashes = [_BEFORE_THE_FIRST]
    lines, told = _with_head(path)
    for number, line in lines:
        record = _parse(line)
        if record is None:
            faults.append(Fault(number, "is no record"))
        elif record["previous"] != hashes[-1]:
            faults.append(Fault(number, "does not follow from the line before it: one of the two was changed"))
        elif record["seq"] != number:
            faults.append(Fault(number, f"has the number {record['seq']}"))
        hashes.append(hashlib.sha256(line).hexdigest())
    ends = [f"{number} {sha256}\n".encode() for number, sha256 in list(enumerate(hashes))[-2:]]
    if told is not None and told not in ends:
        text = f"{_head_file(path).name} tells of another end: the newest record was edited, or records were cut off"
        faults.append(Fault(max(1, len(hashes) - 1), text))
    return faults


def has_head(path: Path) -> bool:
    """Whether a head lies beside the ledger; older ones have none until the next record."""
    return _head_file(path).is_file()


def head(path: Path) -> Head | None:
    """Return the newest record's number and hash; no records: ``None``."""
    newest = None
    for number, line in _lines(path):
        newest = Head(number, hashlib.sha256(line).hexdigest())
    return newest


def holds(path: Path, sha256: str) -> bool:
    """Whether a line with this hash (or one that begins so) stands in the ledger."""
    return any(hashlib.sha256(line).hexdigest().startswith(sha256) for _, line in _lines(path))


def _head_file(path: Path) -> Path:
    return path.with_suffix(".head")


def _with_head(path: Path) -> tuple[list[tuple[int, bytes]], bytes | None]:
    """The lines and the head that belong together: no record is appended between the two looks."""
    with contextlib.ExitStack() as stack:
        try:
            with contextlib.suppress(FileNotFoundError):
                fcntl.flock(stack.enter_context(path.open("rb")), fcntl.LOCK_SH)
            told = _head_file(path).read_bytes() if has_head(path) else None
        except OSError as error:
            raise LedgerError(f"{error.filename or path}: {error.strerror}") from error
        return list(_lines(path)), told


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return
    except OSError as error:
        raise LedgerError(f"{path}: {error.strerror}") from error
    *lines, _torn = content.split(b"\n")
    yield from enumerate(lines, start=1)


def _parse(line: bytes) -> Record | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    if not isinstance(record, dict) or not all(key in record for key in _COMMON):
        return None
    return record
