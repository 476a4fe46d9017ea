"""Reads the ledger, checks its chain, and ties what DVC locked to the runs that made it.

The chain check shares no code with the writer (``salf/ledger.py``), so that one judges the other. Someone who
rewrites both the ledger and its head file is not found by it; a hash noted elsewhere finds that.
"""

import contextlib
import fcntl
import hashlib
import json
import shlex
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final, TypeVar

from flows.lineage.project import LockError, read_lock
from salf.errors import UserError
from salf.ledger import Aside, End, Head, Locked, LockEntry, Record, Repair, Start, append, head_of, ledger_of, parse

RAN, RESTORED, CACHED, OBSERVED = "ran", "restored", "cached", "observed"
_BEFORE_THE_FIRST: Final = "0" * 64
_REWRITTEN_SECONDS: Final = 2.0  # longest that dvc.lock is taken to be in the middle of being written

Kind = TypeVar("Kind", bound=Record)


@dataclass(frozen=True, slots=True)
class Lock:
    """What is kept of a ``locked`` record; the place is where its line begins."""

    seq: int
    stage: str
    run: str | None
    outcome: str
    outputs: dict[str, str]
    inputs: bytes  # digest of command, dependencies and parameters
    entry: bytes  # digest of the whole entry
    place: int


class Ledger:
    """A ledger after one pass over its lines: where its records are, and what is wrong with it.

    No file: no records. A half-written last line is left out.
    ``faults`` are line numbers (from 1) with what was damaged, edited, removed, inserted, reordered or cut off at
    the end; the other records are read all the same. A record itself is read on demand: of each, only what is looked
    up is kept, so that tens of thousands take tens of megabytes.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.faults: list[tuple[int, str]] = []
        self.hashes: list[str] = []
        self.locked: dict[str, list[Lock]] = defaultdict(list)
        self.repairs: list[Repair] = []
        self.is_torn = False  # a half-written line follows
        self._places: dict[tuple[str, str], int] = {}  # kind and run, or "newest" and stage → where the line begins
        self._asides: set[int] = set()
        try:
            with contextlib.ExitStack() as stack:
                with contextlib.suppress(FileNotFoundError):
                    file = stack.enter_context(path.open("rb"))
                    fcntl.flock(file, fcntl.LOCK_SH)  # the head belongs to it: nothing is appended meanwhile
                    place = 0
                    for line in _whole_lines(file):
                        self._add(place, line)
                        place += len(line) + 1
                    self.is_torn = place < file.tell()
                self._check_end()
        except OSError as error:
            raise UserError(f"{error.filename or path}: {error.strerror}") from error

    @property
    def head(self) -> Head | None:
        """The newest record, as its line says; that of the head file is compared with it."""
        return Head(len(self.hashes), self.hashes[-1]) if self.hashes else None

    def start(self, run: str | None) -> Start | None:
        """The start of a run."""
        return self._at(self._places.get(("start", run or "")), Start)

    def end(self, run: str | None) -> End | None:
        """The end of a run."""
        return self._at(self._places.get(("end", run or "")), End)

    def killed(self) -> list[Start]:
        """Starts without an end."""
        runs = [run for kind, run in self._places if kind == "start" and ("end", run) not in self._places]
        return list(filter(None, map(self.start, runs)))

    def record(self, lock: Lock) -> Locked:
        """The whole record."""
        found = self._at(lock.place, Locked)
        if found is None:
            raise UserError(f"{self.path}: changed while it was read")
        return found

    def entry(self, lock: Lock) -> LockEntry:
        """The whole entry of dvc.lock in a record."""
        return self.record(lock).lock

    def newest_start(self, stage: str) -> Start | None:
        """The newest start of a stage in the project itself, not in an experiment's copy."""
        return self._at(self._places.get(("newest", stage)), Start)

    def newest_locked(self, stage: str) -> Lock | None:
        """The newest ``locked`` record of a stage."""
        return self.locked[stage][-1] if stage in self.locked else None

    def with_entry(self, stage: str, entry: LockEntry) -> Lock | None:
        """The newest record that DVC locked exactly this entry."""
        return next(reversed(self._with(stage, entry)), None)

    def maker(self, stage: str, entry: LockEntry) -> str | None:
        """The run that first made what an entry names: DVC restores only results of an earlier run."""
        return next((lock.run for lock in self._with(stage, entry) if lock.run), None)

    def made_otherwise(self, stage: str, entry: LockEntry) -> Lock | None:
        """The newest record of a run with the same inputs and other outputs."""
        inputs, whole = digests(entry)
        same = (lock for lock in reversed(self.locked.get(stage, [])) if lock.run and lock.inputs == inputs)
        return next((lock for lock in same if lock.entry != whole), None)

    def unclaimed_run(self, stage: str, entry: LockEntry) -> str | None:
        """The newest run of a stage that no ``locked`` record names, if it succeeded with the entry's command."""
        newest = self.newest_start(stage)
        claimed = {lock.run for lock in self.locked.get(stage, [])}
        if newest is None or newest.run in claimed or not _is_command(newest.command, entry):
            return None
        end = self.end(newest.run)
        return newest.run if end and end.status == 0 else None

    def written_otherwise(self, run: str | None, entry: LockEntry) -> list[str]:
        """The outputs of an entry that are not what the run had written when it ended."""
        end = self.end(run)
        return [path for path, name in entry.outputs.items() if end and end.outputs.get(path, name) != name]

    def _with(self, stage: str, entry: LockEntry) -> list[Lock]:
        _, whole = digests(entry)
        return [lock for lock in self.locked.get(stage, []) if lock.entry == whole]

    def _at(self, place: int | None, kind: type[Kind]) -> Kind | None:
        if place is None:
            return None
        with self.path.open("rb") as file:
            file.seek(place)
            record = parse(file.readline())
        return record if isinstance(record, kind) else None

    def _add(self, place: int, line: bytes) -> None:
        record, number = parse(line), len(self.hashes) + 1
        if record is None:
            self.faults.append((number, "is not a record"))
        elif record.previous != (self.hashes[-1] if self.hashes else _BEFORE_THE_FIRST):
            self.faults.append((number, "does not follow from the line before it: one of the two was changed"))
        elif record.seq != number:
            self.faults.append((number, f"has the number {record.seq}"))
        self.hashes.append(record.sha256 if isinstance(record, Aside) else hashlib.sha256(line).hexdigest())
        match record:
            case Start() | End():
                self._places[record.kind, record.run] = place
                if isinstance(record, Start) and not record.temporary:
                    self._places["newest", record.stage] = place
            case Locked():
                outputs = {sys.intern(path): name for path, name in record.lock.outputs.items()}
                words = (sys.intern(record.stage), record.run, sys.intern(record.outcome))
                lock = Lock(record.seq, *words, outputs, *digests(record.lock), place)
                self.locked[lock.stage].append(lock)
            case Repair():
                self.repairs.append(record)
            case Aside():
                self._asides.add(number)

    def _check_end(self) -> None:
        file, count = head_of(self.path), len(self.hashes)
        ends = [f"{number} {sha256}\n" for number, sha256 in enumerate([_BEFORE_THE_FIRST, *self.hashes])][-2:]
        # One record beyond the head is no fault: a writer that was killed in between leaves it.
        if not file.is_file() and count > 1:
            self.faults.append(
                (count, f"{file.name} is gone, which proves the newest record (to write it again: repair)")
            )
        elif file.is_file() and file.read_text(encoding="utf-8", errors="replace") not in ends:
            text = f"{file.name} names another last record: the newest record was edited, or records were removed"
            self.faults.append((max(1, count), text))
        unexplained = self._asides.difference(*(repair.put_aside for repair in self.repairs))
        self.faults += [(number, "was put aside, and no record says so") for number in sorted(unexplained)]


def read_records(path: Path) -> Iterator[Record]:
    """Yield the records of a ledger in order."""
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        yield from filter(None, map(parse, _whole_lines(file)))


def digests(entry: LockEntry) -> tuple[bytes, bytes]:
    """Digests of what a stage read (command, dependencies, parameters) and of its whole entry."""
    facts = entry.model_dump(exclude_unset=True)
    inputs = _digest([facts.pop(key, None) for key in ("cmd", "deps", "params")])
    return inputs, _digest([inputs.hex(), facts])


def _digest(value: object) -> bytes:
    text = json.dumps(value, sort_keys=True).encode()
    return hashlib.blake2b(text, digest_size=16).digest()


def _is_command(command: list[str], entry: LockEntry) -> bool:
    """Whether a process's command is in an entry's, whatever starts it there (``torchrun``, ``.venv/bin/python``)."""
    cmd = entry.cmd if isinstance(entry.cmd, str) else " && ".join(entry.cmd or [])
    with contextlib.suppress(ValueError):  # quotes that do not close
        return f"{shlex.join(command[1:])} " in f"{shlex.join(shlex.split(cmd))} "
    return False


def record_stage(project: Path, stage: str, outcome: str, flow_run: str | None) -> None:
    """Record what DVC has locked for a stage that was just brought up to date.

    ``outcome`` is what DVC did: ``ran``, ``restored`` or ``cached``. ``flow_run`` is the Prefect run's id.
    """
    if entry := _entry(project, stage):
        _record(Ledger(ledger_of(project)), stage, entry, outcome, flow_run)


def record_all(project: Path) -> list[str]:
    """Record every stage of dvc.lock whose entry differs from its newest record, and return their names."""
    ledger = Ledger(ledger_of(project))
    return [stage for stage, entry in read_lock(project).items() if _record(ledger, stage, entry, CACHED, None)]


def _entry(project: Path, stage: str) -> LockEntry | None:
    """The entry of a stage that was just brought up to date.

    DVC rewrites dvc.lock in place: while another stage ends, the file is cut short for a moment.
    """
    patience = time.monotonic() + _REWRITTEN_SECONDS
    while time.monotonic() < patience:
        with contextlib.suppress(LockError):
            if entry := read_lock(project).get(stage):
                return entry
        time.sleep(0.05)
    return read_lock(project).get(stage)


def _record(ledger: Ledger, stage: str, entry: LockEntry, outcome: str, flow_run: str | None) -> bool:
    """Append an entry with its run; where DVC had nothing to do, only one that is not recorded yet."""
    newest = ledger.newest_locked(stage)
    if outcome == CACHED and newest is not None and newest.entry == digests(entry)[1]:
        return False
    run = ledger.unclaimed_run(stage, entry)
    if ledger.written_otherwise(run, entry):
        run = None
    maker = ledger.maker(stage, entry)
    if outcome == CACHED:
        outcome = RAN if run else RESTORED if maker else OBSERVED
    run = run if outcome == RAN else maker
    facts = {"run": run, "stage": stage, "outcome": outcome, "lock": entry, "flow_run": flow_run}
    append(ledger.path, Locked.model_validate(facts))
    return True


def _whole_lines(file: IO[bytes]) -> Iterator[bytes]:
    return (line[:-1] for line in file if line.endswith(b"\n"))
