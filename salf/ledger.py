"""The ledger: a record of every run, one JSON line each, to which lines are only ever appended.

Each line holds the hash of the line before it, and the head file next to the ledger (``records.head``) the number of
records and the newest one's hash: an edit or a cut is found (``python -m flows.lineage verify``). A ``start`` without
an ``end`` is a killed run. A record holds no environment variable, no user or host name, and no path outside the
project.
"""

import contextlib
import fcntl
import hashlib
import json
import os
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path, PurePosixPath
from typing import Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from salf.files import replacing_file, write_text

LEDGER: Final = Path("reports/lineage/records.jsonl")
SCHEMA: Final = 1
GENESIS: Final = "0" * 64  # the hash before the first line
FOLDER: Final = ".dir"  # what DVC appends to the hash of a folder
_CHAIN: Final = {"version", "seq", "previous", "kind", "at"}


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="allow")


class LockedPath(_Part):
    """A path in dvc.lock; ``md5`` is DVC's hash of its content, which ends in ``.dir`` for a folder."""

    path: str
    md5: str | None = None
    size: int | None = None

    @property
    def is_folder(self) -> bool:
        """Whether DVC tracks it as a folder."""
        return bool(self.md5 and self.md5.endswith(FOLDER))

    @property
    def is_inside(self) -> bool:
        """Whether it is in the project."""
        path = PurePosixPath(self.path)
        return not path.is_absolute() and ".." not in path.parts

    @property
    def shown(self) -> str:
        """Its path as others may see it; outside the project only the last name."""
        return self.path if self.is_inside else PurePosixPath(self.path).name


class LockEntry(_Part):
    """A stage's entry in dvc.lock; further keys are kept, and count when entries are compared."""

    cmd: str | list[str] | None = None
    deps: list[LockedPath] = []
    params: dict[str, Any] = {}
    outs: list[LockedPath] = []

    @property
    def inputs(self) -> dict[str, str]:
        """Path → hash of what the stage read."""
        return {item.path: item.md5 for item in self.deps if item.md5}

    @property
    def outputs(self) -> dict[str, str]:
        """Path → hash of what the stage wrote."""
        return {item.path: item.md5 for item in self.outs if item.md5}


class Machine(_Part):
    """A machine, without its name and without paths."""

    system: str
    cores: int
    memory_bytes: int
    cpu: str | None
    accelerators: list[str]

    @classmethod
    def here(cls) -> Self:
        """Describe this machine."""
        name = os.uname()
        affinity = getattr(os, "sched_getaffinity", None)  # macOS has none
        cards = (_field(file, "Model") for file in Path("/proc/driver/nvidia/gpus").glob("*/information"))
        return cls(
            system=f"{name.sysname} {name.release} {name.machine}",
            cores=len(affinity(0)) if affinity else os.cpu_count() or 1,
            memory_bytes=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
            cpu=_field(Path("/proc/cpuinfo"), "model name"),
            accelerators=sorted(filter(None, cards)),
        )


class Record(_Part):
    """A line of the ledger; :func:`append` sets the number, the hash of the line before, and the time."""

    kind: str
    version: int = Field(default=SCHEMA, alias="schema")
    seq: int = 0
    previous: str = GENESIS
    at: str = ""


class Start(Record):
    """The start of a stage's process; facts that are unknown (outside of git, in old ledgers) are ``None``."""

    kind: Literal["start"] = "start"
    run: str
    stage: str  # DVC's name, with the matrix item
    command: list[str] = []
    temporary: bool = False  # the stage ran in an experiment's copy of the project
    commit: str | None = None
    branch: str | None = None
    detached: bool | None = None
    shallow: bool | None = None
    dirty: bool | None = None  # files differ from the commit
    dirty_files_sha256: str | None = None  # of their names and contents
    flow_run: str | None = None
    flow_run_name: str | None = None
    versions: dict[str, str] = {}
    machine: Machine | None = None
    seed: int | None = None


class End(Record):
    """The end of a run: its exit status, its wall-clock time, and the outputs of a successful one."""

    kind: Literal["end"] = "end"
    run: str
    status: int
    seconds: float
    outputs: dict[str, str] = {}  # path → DVC's name of its content


class Locked(Record):
    """An entry of dvc.lock and the run that made it; ``run`` is ``None`` where no run is known."""

    kind: Literal["locked"] = "locked"
    run: str | None
    stage: str
    outcome: Literal["ran", "restored", "cached", "observed"]
    lock: LockEntry
    flow_run: str | None = None


class Repair(Record):
    """A half-written last line was cut off, damaged lines were put aside, or a lost head file was written."""

    kind: Literal["repair"] = "repair"
    cut_bytes: int = 0
    put_aside: list[int] = []  # numbers of the lines
    new_head: bool = False


class Aside(Record):
    """Takes the place of a damaged line; the records around it keep their bytes and their proof."""

    kind: Literal["aside"] = "aside"
    sha256: str  # of the line before the damage, as the next line or the head has it


@dataclass(frozen=True)
class Head:
    """The newest record: its number and the SHA-256 of its line. Noted elsewhere, it reveals a truncated ledger."""

    seq: int
    sha256: str

    def __str__(self) -> str:
        return f"{self.seq} {self.sha256}"


_KINDS: Final = {kind.model_fields["kind"].default: kind for kind in (Start, End, Locked, Repair, Aside)}


def ledger_of(project: Path) -> Path:
    """Return the ledger of a project; the variable ``SALF_LEDGER`` names another one."""
    override = os.environ.get("SALF_LEDGER")
    return Path(override) if override else project / LEDGER


def head_of(ledger: Path) -> Path:
    """Return the head file of a ledger."""
    return ledger.with_suffix(".head")


def parse(line: bytes) -> Record | None:
    """Read one line; ``None`` if it is not a record. A record of an unknown kind keeps its facts."""
    try:
        raw = json.loads(line)
        record = _KINDS.get(raw["kind"], Record).model_validate(raw)
    except (ValueError, TypeError, KeyError):
        return None
    return record if record.model_fields_set >= _CHAIN else None


def folder_name(manifest: Mapping[str, str]) -> str:
    """DVC's name of a folder, from relative path → MD5 of its files."""
    entries = [{"md5": md5, "relpath": path} for path, md5 in sorted(manifest.items())]
    return hashlib.md5(json.dumps(entries, sort_keys=True).encode(), usedforsecurity=False).hexdigest() + FOLDER


def append(ledger: Path, record: Record) -> None:
    """Append a record and flush it to disk; where that fails, the ledger is unchanged.

    A head file that is lost, or disagrees with the ledger, stays so as evidence.
    """
    ledger.parent.mkdir(parents=True, exist_ok=True)
    with ledger.open("a+b", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if not (ledger.exists() and os.path.samestat(os.fstat(file.fileno()), ledger.stat())):
            append(ledger, record)  # meanwhile a repair put another file in its place
            return
        before, newest, torn = _ending(ledger)
        head = head_of(ledger) if _follows(head_of(ledger), before, newest) else None
        if torn:
            _put_aside(ledger, torn)
            file.truncate(file.seek(0, os.SEEK_END) - len(torn))
            newest = _extend(file, head, newest, Repair(cut_bytes=len(torn)))
        _extend(file, head, newest, record)


def repair(ledger: Path) -> Repair:
    """Put damaged lines aside (in ``records.torn``), write a lost head file, and record what was done.

    Edited records, and a head that names another end, stay as they are: they are evidence.
    """
    head = head_of(ledger)
    with ledger.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        lines = file.read().split(b"\n")  # the last is empty, or half-written
        done = Repair(
            put_aside=[number for number, line in enumerate(lines[:-1], 1) if parse(line) is None],
            new_head=len(lines) > 1 and not head.is_file(),
        )
        words = head.read_text(encoding="utf-8", errors="replace").split() if head.is_file() else []
        for number in done.put_aside:
            line, following = lines[number - 1], parse(lines[number])
            _put_aside(ledger, line)
            by_head = words[1] if words[:1] == [str(number)] else hashlib.sha256(line).hexdigest()
            previous = Head(number - 1, _hash(lines[number - 2]) if number > 1 else GENESIS)
            lines[number - 1] = _line(Aside(sha256=following.previous if following else by_head), previous)
        if done.put_aside:
            with replacing_file(ledger) as aside:
                aside.write_bytes(b"\n".join(lines))
        if done.new_head:
            write_text(head, f"{_ending(ledger)[1]}\n")
    if done.put_aside or done.new_head:
        append(ledger, done)
    return done


def _ending(ledger: Path) -> tuple[Head, Head, bytes]:
    """The newest record and the one before it, and what was half-written after them."""
    count, last, torn = 0, deque([b"", b""], maxlen=2), b""
    with ledger.open("rb") as lines:
        for line in lines:
            if line.endswith(b"\n"):
                count += 1
                last.append(line[:-1])
            else:
                torn = line
    before, newest = (_hash(line) if line else GENESIS for line in last)
    return Head(count - 1, before), Head(count, newest), torn


def _hash(line: bytes) -> str:
    record = parse(line)
    return record.sha256 if isinstance(record, Aside) else hashlib.sha256(line).hexdigest()


def _follows(head: Path, before: Head, newest: Head) -> bool:
    """Whether the head file is to follow what is appended."""
    if not head.exists():
        return newest.seq <= 1
    # A writer that was killed between the record and the head leaves that of the record before.
    return head.read_bytes() in (f"{newest}\n".encode(), f"{before}\n".encode())


def _put_aside(ledger: Path, line: bytes) -> None:
    with ledger.with_name("records.torn").open("ab") as aside:
        aside.write(line + b"\n")
        aside.flush()
        os.fsync(aside.fileno())


def _line(record: Record, newest: Head) -> bytes:
    now = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    chain = {"kind": record.kind, "schema": SCHEMA, "seq": newest.seq + 1, "previous": newest.sha256, "at": now}
    facts = record.model_dump(by_alias=True, exclude_unset=True) | chain
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode(errors="backslashreplace")  # an argument that is no UTF-8: JSON's own escape


def _extend(file: FileIO, head: Path | None, newest: Head, record: Record) -> Head:
    line = _line(record, newest)
    written = Head(newest.seq + 1, hashlib.sha256(line).hexdigest())
    size, rest = file.seek(0, os.SEEK_END), memoryview(line + b"\n")
    try:
        while rest:  # a full disk takes a part first and refuses the rest
            rest = rest[file.write(rest) :]
        os.fsync(file.fileno())
        if head is not None:
            write_text(head, f"{written}\n")
    except OSError:
        file.truncate(size)
        raise
    return written


def _field(file: Path, name: str) -> str | None:
    with contextlib.suppress(OSError), file.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            key, _, value = line.partition(":")
            if key.strip() == name:
                return value.strip()
    return None
