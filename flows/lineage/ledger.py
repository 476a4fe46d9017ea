"""Reads the ledger, checks its chain, and ties what DVC locked to the runs that made it.

The chain check shares no code with the writer (``salf/ledger.py``), so that one judges the other. Someone who
rewrites both the ledger and its head file is not found by it; a hash noted elsewhere finds that.
"""

import contextlib
import fcntl
import hashlib
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from flows.lineage.history import LockError, read_lock
from salf.errors import UserError
from salf.ledger import End, Locked, LockEntry, Record, Start, append, head_of, ledger_of, parse

RAN, RESTORED, CACHED, OBSERVED = "ran", "restored", "cached", "observed"
_BEFORE_THE_FIRST: Final = "0" * 64
_REWRITTEN_SECONDS: Final = 2.0  # longest that dvc.lock is taken to be in the middle of being written


@dataclass(frozen=True)
class Head:
    """The newest record: its number and the SHA-256 of its line. Noted elsewhere, it reveals a truncated ledger."""

    seq: int
    sha256: str


class LedgerError(UserError):
    """The ledger cannot be read."""


class Ledger:
    """The records in order, and ``starts`` and ``ends`` by run, ``locked`` by stage."""

    def __init__(self, records: Sequence[Record]) -> None:
        self.records = records
        self.starts = {record.run: record for record in records if isinstance(record, Start)}
        self.ends = {record.run: record for record in records if isinstance(record, End)}
        self.locked: dict[str, list[Locked]] = defaultdict(list)
        self._newest_starts: dict[str, Start] = {}
        self._claimed: set[str | None] = set()
        for record in records:
            if isinstance(record, Locked):
                self.locked[record.stage].append(record)
                self._claimed.add(record.run)
            elif isinstance(record, Start) and not record.temporary:
                self._newest_starts[record.stage] = record

    @classmethod
    def read(cls, path: Path) -> "Ledger":
        """Read a ledger; no file: no records. A half-written last line is left out."""
        records = []
        for number, line in _lines(path):
            record = parse(line)
            if record is None:
                raise LedgerError(f"{path}: line {number} is not a record; see `python -m flows.lineage verify`")
            records.append(record)
        return cls(records)

    def newest_start(self, stage: str) -> Start | None:
        """The newest start of a stage in the project itself, not in an experiment's copy."""
        return self._newest_starts.get(stage)

    def newest_locked(self, stage: str) -> Locked | None:
        """The newest ``locked`` record of a stage."""
        return self.locked[stage][-1] if stage in self.locked else None

    def with_entry(self, stage: str, entry: LockEntry) -> Locked | None:
        """The newest record that DVC locked exactly this entry."""
        return next((r for r in reversed(self.locked.get(stage, [])) if r.lock == entry), None)

    def unclaimed_run(self, stage: str) -> str | None:
        """The newest run of a stage, if it succeeded and no ``locked`` record names it."""
        newest = self.newest_start(stage)
        if newest is None or newest.run in self._claimed:
            return None
        end = self.ends.get(newest.run)
        return newest.run if end and end.status == 0 else None

    def maker(self, stage: str, entry: LockEntry) -> str | None:
        """The run that first made what an entry names: DVC restores only results of an earlier run."""
        return next((r.run for r in self.locked.get(stage, []) if r.run is not None and r.lock == entry), None)


def check_chain(path: Path) -> list[tuple[int, str]]:
    """Return what was edited, removed, inserted, reordered or cut off at the end, each with its line (from 1).

    One record beyond the head is no fault: a writer that was killed in between leaves it.
    """
    faults = []
    hashes = [_BEFORE_THE_FIRST]
    lines, head = _with_head(path)
    for number, line in lines:
        record = parse(line)
        if record is None:
            faults.append((number, "is no record"))
        elif record.previous != hashes[-1]:
            faults.append((number, "does not follow from the line before it: one of the two was changed"))
        elif record.seq != number:
            faults.append((number, f"has the number {record.seq}"))
        hashes.append(hashlib.sha256(line).hexdigest())
    ends = [f"{number} {sha256}\n".encode() for number, sha256 in list(enumerate(hashes))[-2:]]
    if head is not None and head not in ends:
        text = f"{head_of(path).name} names another last record: the newest record was edited, or records were removed"
        faults.append((max(1, len(hashes) - 1), text))
    return faults


def head(path: Path) -> Head | None:
    """Return the newest record's number and hash; no records: ``None``."""
    hashes = _hashes(path)
    return Head(len(hashes), hashes[-1]) if hashes else None


def holds(path: Path, sha256: str) -> bool:
    """Whether the ledger has a line whose hash begins with this one."""
    return any(found.startswith(sha256) for found in _hashes(path))


def _hashes(path: Path) -> list[str]:
    return [hashlib.sha256(line).hexdigest() for _, line in _lines(path)]


def record_stage(project: Path, stage: str, outcome: str, flow_run: str | None) -> None:
    """Record what DVC has locked for a stage that was just brought up to date.

    ``outcome`` is what DVC did: ``ran``, ``restored`` or ``cached``. ``flow_run`` is the Prefect run's id.
    """
    entry = _entry(project, stage)
    if entry is None:
        return
    ledger = Ledger.read(ledger_of(project))
    if outcome == CACHED:
        _catch_up(project, ledger, stage, entry, flow_run)
    else:
        run = ledger.unclaimed_run(stage) if outcome == RAN else ledger.maker(stage, entry)
        _append(project, stage, entry, run, outcome, flow_run)


def record_all(project: Path) -> list[str]:
    """Record every stage of dvc.lock whose entry differs from its newest record, and return their names."""
    ledger = Ledger.read(ledger_of(project))
    return [stage for stage, entry in read_lock(project).items() if _catch_up(project, ledger, stage, entry, None)]


def _entry(project: Path, stage: str) -> LockEntry | None:
    """The entry of a stage that was just brought up to date.

    DVC rewrites dvc.lock in place: while another stage ends, the file is cut short for a moment.
    """
    patience = time.monotonic() + _REWRITTEN_SECONDS
    while True:
        try:
            entry = read_lock(project).get(stage)
        except LockError:
            if time.monotonic() > patience:
                raise
            entry = None
        if entry is not None or time.monotonic() > patience:
            return entry
        time.sleep(0.05)


def _catch_up(project: Path, ledger: Ledger, stage: str, entry: LockEntry, flow_run: str | None) -> bool:
    newest = ledger.newest_locked(stage)
    if newest is not None and newest.lock == entry:
        return False
    if run := ledger.unclaimed_run(stage):
        _append(project, stage, entry, run, RAN, flow_run)
    else:
        run = ledger.maker(stage, entry)
        _append(project, stage, entry, run, RESTORED if run else OBSERVED, flow_run)
    return True


def _append(project: Path, stage: str, entry: LockEntry, run: str | None, outcome: str, flow_run: str | None) -> None:
    facts = {"run": run, "stage": stage, "outcome": outcome, "lock": entry, "flow_run": flow_run}
    append(ledger_of(project), Locked.model_validate(facts))


def _with_head(path: Path) -> tuple[list[tuple[int, bytes]], bytes | None]:
    """The lines and the head that belong together: no record is appended between the two looks."""
    with contextlib.ExitStack() as stack:
        try:
            with contextlib.suppress(FileNotFoundError):
                fcntl.flock(stack.enter_context(path.open("rb")), fcntl.LOCK_SH)
            head = head_of(path).read_bytes() if head_of(path).is_file() else None
        except OSError as error:
            raise LedgerError(f"{error.filename or path}: {error.strerror}") from error
        return list(_lines(path)), head


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return
    except OSError as error:
        raise LedgerError(f"{path}: {error.strerror}") from error
    *lines, _torn = content.split(b"\n")
    yield from enumerate(lines, start=1)
