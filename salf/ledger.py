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
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path, PurePosixPath
from typing import Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from salf.files import replacing_file

LEDGER: Final = Path("reports/lineage/records.jsonl")
SCHEMA: Final = 1
GENESIS: Final = "0" * 64  # the hash before the first line
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
        return bool(self.md5 and self.md5.endswith(".dir"))

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
    """The end of a run: its exit status and wall-clock time."""

    kind: Literal["end"] = "end"
    run: str
    status: int
    seconds: float


class Locked(Record):
    """An entry of dvc.lock and the run that made it; ``run`` is ``None`` where no run is known."""

    kind: Literal["locked"] = "locked"
    run: str | None
    stage: str
    outcome: Literal["ran", "restored", "cached", "observed"]
    lock: LockEntry
    flow_run: str | None = None


class Repair(Record):
    """A half-written last line was cut off."""

    kind: Literal["repair"] = "repair"
    cut_bytes: int


_KINDS: Final[dict[str, type[Record]]] = {"start": Start, "end": End, "locked": Locked, "repair": Repair}


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


def append(ledger: Path, record: Record) -> None:
    """Append a record and flush it to disk; where that fails, the ledger is unchanged."""
    ledger.parent.mkdir(parents=True, exist_ok=True)
    with ledger.open("a+b", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        content = file.readall()
        whole = content.rfind(b"\n") + 1
        written, torn = content[:whole], content[whole:]
        head = _head_to_follow(head_of(ledger), written)
        if torn:
            with ledger.with_name("records.torn").open("ab") as aside:
                aside.write(torn + b"\n")
                aside.flush()
                os.fsync(aside.fileno())
            file.truncate(whole)
            written = _extend(file, head, written, Repair(cut_bytes=len(torn)))
        _extend(file, head, written, record)


def _head_to_follow(head: Path, written: bytes) -> Path | None:
    """The head file, to be replaced; ``None`` if it disagrees with the ledger and is kept as evidence."""
    try:
        found = head.read_bytes()
    except FileNotFoundError:  # no record yet, or a ledger from before there were heads
        return head
    # A writer that was killed between the record and the head leaves that of the record before.
    before = written[: written.rfind(b"\n", 0, -1) + 1]
    return head if found in (_head(written), _head(before)) else None


def _head(written: bytes) -> bytes:
    count = written.count(b"\n")
    return f"{count} {_newest(written)}\n".encode()


def _newest(written: bytes) -> str:
    last = written[written.rfind(b"\n", 0, -1) + 1 : -1]
    return hashlib.sha256(last).hexdigest() if written else GENESIS


def _extend(file: FileIO, head: Path | None, written: bytes, record: Record) -> bytes:
    chained = record.model_copy(
        update={
            "kind": record.kind,
            "version": SCHEMA,
            "seq": written.count(b"\n") + 1,
            "previous": _newest(written),
            "at": datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"),
        }
    )
    facts = chained.model_dump(by_alias=True, exclude_unset=True)
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    line = text.encode(errors="backslashreplace") + b"\n"  # an argument that is no UTF-8: JSON's own escape
    rest = memoryview(line)
    try:
        while rest:  # a full disk takes a part first and refuses the rest
            rest = rest[file.write(rest) :]
        os.fsync(file.fileno())
        if head is not None:
            with replacing_file(head) as aside:
                aside.write_bytes(_head(written + line))
    except OSError:
        file.truncate(len(written))
        raise
    return written + line


def _field(file: Path, name: str) -> str | None:
    with contextlib.suppress(OSError), file.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            key, _, value = line.partition(":")
            if key.strip() == name:
                return value.strip()
    return None
