"""Writes down every run at the time it happens: what was started, how it ended, what was locked.

The record is a file of JSON lines (the ledger) to which lines are only ever appended. Each line
holds the hash of the one before it, so that a later change of any line is found
(``python -m flows.lineage verify``). No line follows the newest: beside the ledger lies its head
(``records.head``: how many records there are, and the newest one's hash), so that an edit of that line
or a cut is found too. Only the standard library is imported, and what is slow to import only where it
is used: every stage pays for this module at its start.

Grain: a line per event. Kinds: ``start`` and ``end`` of a stage's process (a start without an end is
a run that was killed), ``locked`` (DVC has taken the stage's outputs over; see flows/lineage) and
``repair`` (the ledger's last line was half-written; what was cut off lies in ``records.torn``).

Nothing of the environment's variables, of the user or of the host's name is written, and no path
outside the project.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

LEDGER: Final = Path("reports/lineage/records.jsonl")
SCHEMA: Final = 1
GENESIS: Final = "0" * 64  # stands for the line before the first
_FLOW_RUN: Final = "SALF_FLOW_RUN"
_FLOW_RUN_NAME: Final = "SALF_FLOW_RUN_NAME"
_PACKAGES: Final = (
    "accelerate",
    "datasets",
    "dvc",
    "gguf",
    "numpy",
    "pandas",
    "peft",
    "prefect",
    "pyarrow",
    "safetensors",
    "scikit-learn",
    "scipy",
    "tokenizers",
    "torch",
    "transformers",
)


@dataclass(frozen=True)
class Run:
    """A run whose start stands in the ledger."""

    ledger: Path
    name: str
    began: float  # of the monotonic clock, seconds


def ledger_of(project: Path) -> Path:
    """The ledger of a project; the variable ``SALF_LEDGER`` names another one."""
    override = os.environ.get("SALF_LEDGER")
    return Path(override) if override else project / LEDGER


def begin(argv: Sequence[str] | None = None) -> Run | None:
    """Record that this process starts, where DVC runs it as a stage; elsewhere ``None``.

    Args:
        argv: the stage's arguments; ``None``: the process's own.

    Raises:
        OSError: the ledger cannot be written.
    """
    stage, root = os.environ.get("DVC_STAGE"), os.environ.get("DVC_ROOT")
    if not stage or not root:
        return None
    arguments = list(sys.argv[1:] if argv is None else argv)
    run = Run(ledger_of(Path(root)), uuid.uuid4().hex, time.monotonic())
    facts = {
        "run": run.name,
        "stage": stage.rpartition(":")[2],  # DVC names dvc.yaml too when it is called from another folder
        "command": _command(arguments),
        "temporary": Path(root, ".dvc/tmp").resolve() in Path.cwd().resolve().parents,  # an experiment in a copy
        **_code_state(Path.cwd()),
        "flow_run": os.environ.get(_FLOW_RUN),
        "flow_run_name": os.environ.get(_FLOW_RUN_NAME),
        "versions": _versions(),
        "machine": machine(),
        "seed": _seed(arguments),
    }
    append(run.ledger, "start", facts)
    return run


def finish(run: Run | None, status: int) -> None:
    """Record how a run ended; a ledger that cannot be written now costs a warning, not the stage's result."""
    if run is None:
        return
    seconds = round(time.monotonic() - run.began, 3)
    try:
        append(run.ledger, "end", {"run": run.name, "status": status, "seconds": seconds})
    except OSError as error:
        print(f"warning: the end of this run is not recorded: {error.strerror}", file=sys.stderr)


def append(ledger: Path, kind: str, facts: Mapping[str, Any]) -> None:
    """Append one record, flushed to disk; processes that append at once wait for each other.

    Raises:
        OSError: the ledger cannot be written; it is as it was before.
    """
    with _held(ledger) as descriptor:
        _append(ledger, descriptor, kind, facts)


@contextlib.contextmanager
def _held(ledger: Path) -> Iterator[int]:
    ledger.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(ledger, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


def _append(ledger: Path, descriptor: int, kind: str, facts: Mapping[str, Any]) -> None:
    written = _read(descriptor)
    whole = written.rfind(b"\n") + 1
    torn = written[whole:]
    head = _head_to_follow(ledger.with_suffix(".head"), written[:whole])
    if torn:
        _put_aside(ledger.with_name("records.torn"), torn)
        os.ftruncate(descriptor, whole)
        written = _extend(descriptor, head, written[:whole], "repair", {"cut_bytes": len(torn)})
    _extend(descriptor, head, written, kind, facts)


def _head_to_follow(head: Path, written: bytes) -> Path | None:
    """The head's file, to be written anew; ``None``: it tells of another end, and stays to prove that."""
    try:
        told = head.read_bytes()
    except FileNotFoundError:  # no record yet, or a ledger from before there were heads
        return head
    # A writer that was killed between the record and the head leaves that of the record before.
    before = written[: written.rfind(b"\n", 0, -1) + 1]
    return head if told in (_head(written), _head(before)) else None


def _head(written: bytes) -> bytes:
    count = written.count(b"\n")
    return f"{count} {_newest(written)}\n".encode()


def _newest(written: bytes) -> str:
    last = written[written.rfind(b"\n", 0, -1) + 1 : -1]
    return hashlib.sha256(last).hexdigest() if written else GENESIS


def _extend(descriptor: int, head: Path | None, written: bytes, kind: str, facts: Mapping[str, Any]) -> bytes:
    record = {
        "schema": SCHEMA,
        "seq": written.count(b"\n") + 1,
        "previous": _newest(written),
        "kind": kind,
        "at": datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"),
        **facts,
    }
    text = json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    line = text.encode(errors="backslashreplace") + b"\n"  # an argument that is no UTF-8: JSON's own escape
    try:
        _write(descriptor, line)
        os.fsync(descriptor)
        if head is not None:
            _replace(head, _head(written + line))
    except OSError:
        os.ftruncate(descriptor, len(written))
        raise
    return written + line


def _read(descriptor: int) -> bytes:
    pieces = []
    offset = 0
    while piece := os.pread(descriptor, 1 << 24, offset):
        pieces.append(piece)
        offset += len(piece)
    return b"".join(pieces)


def _write(descriptor: int, line: bytes) -> None:
    # A full disk takes a part first and refuses the rest.
    done = 0
    while done < len(line):
        done += os.write(descriptor, line[done:])


def _replace(path: Path, content: bytes) -> None:
    aside = path.with_name(f"{path.name}.new")  # whoever writes holds the ledger: no other has this file
    with aside.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


def _put_aside(path: Path, torn: bytes) -> None:
    with path.open("ab") as file:
        file.write(torn + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _command(arguments: Sequence[str]) -> list[str]:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is None:  # a script, not python -m
        return ["python", Path(sys.argv[0]).name, *arguments]
    return ["python", "-m", spec.name.removesuffix(".__main__"), *arguments]


def _seed(arguments: Sequence[str]) -> int | None:
    for option, value in pairwise(arguments):
        if option == "--seed" and value.lstrip("-").isdigit():
            return int(value)
    return None


def _code_state(folder: Path) -> dict[str, Any]:
    """Commit, branch and whether files differ from the commit, as git says; outside of git all is null."""
    told = _git(
        folder, "status", "--porcelain=v2", "--branch", "--untracked-files=all", "--no-renames", "-z", "--", "."
    )
    place = _git(folder, "rev-parse", "--is-shallow-repository", "--show-prefix")
    if told is None or place is None:
        return dict.fromkeys(["commit", "branch", "detached", "shallow", "dirty", "dirty_files_sha256"])
    shallow, prefix = os.fsdecode(place).split("\n")[:2]  # git names files from the top of its repository
    entries = os.fsdecode(told).split("\0")
    head = dict(entry.removeprefix("# branch.").split(" ", 1) for entry in entries if entry.startswith("# branch."))
    made = _pipeline_outputs(folder)
    paths = [path.removeprefix(prefix) for path in map(_path_of, entries) if path]
    changed = [path for path in paths if not _is_made(path, made)]
    return {
        "commit": None if head["oid"] == "(initial)" else head["oid"],
        "branch": None if head["head"] == "(detached)" else head["head"],
        "detached": head["head"] == "(detached)",
        "shallow": shallow == "true",
        "dirty": bool(changed),
        "dirty_files_sha256": _hash_of_files(folder, changed) if changed else None,
    }


def _git(folder: Path, *arguments: str) -> bytes | None:
    # Without optional locks: looking must not get into the way of another git that works here.
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    try:
        return subprocess.run(command, capture_output=True, check=True, stdin=subprocess.DEVNULL).stdout
    except (OSError, subprocess.CalledProcessError):
        return None


def _path_of(entry: str) -> str | None:
    """The path in an entry of ``git status --porcelain=v2``: changed, unmerged or untracked."""
    fields = {"1": 8, "u": 10, "?": 1}.get(entry[:1])
    return entry.split(" ", fields)[fields] if fields else None


def _is_made(path: str, made: frozenset[str]) -> bool:
    # What a run itself writes is no change of what it ran from.
    return path == "dvc.lock" or path.startswith(f"{LEDGER.parent.as_posix()}/") or path in made


def _pipeline_outputs(folder: Path) -> frozenset[str]:
    """Paths under ``outs`` in dvc.lock, which DVC writes in one fixed form: no YAML library is needed."""
    try:
        lines = (folder / "dvc.lock").read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    found = set()
    section = ""
    for line in lines:
        if line.startswith("    ") and line.endswith(":") and not line.startswith("     "):
            section = line.strip()
        elif section == "outs:" and line.startswith("    - path: "):
            found.add(line.removeprefix("    - path: ").strip("'\""))
    return frozenset(found)


def _hash_of_files(folder: Path, paths: Sequence[str]) -> str:
    """SHA-256 over names and contents; the same edits give the same hash."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(f"{_hash_of(folder / path)} {path}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _hash_of(file: Path) -> str:
    try:
        with file.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError:  # deleted, a folder of another repository, or not to be read
        return "absent"


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for name in _PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def machine() -> dict[str, Any]:
    """System, processor, memory and accelerators of this machine; no name and no path."""
    name = os.uname()
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        cores = os.cpu_count() or 1
    return {
        "system": f"{name.sysname} {name.release} {name.machine}",
        "cores": cores,
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "cpu": _field(Path("/proc/cpuinfo"), "model name"),
        "accelerators": sorted(
            filter(None, (_field(file, "Model") for file in Path("/proc/driver/nvidia/gpus").glob("*/information")))
        ),
    }


def _field(file: Path, name: str) -> str | None:
    with contextlib.suppress(OSError), file.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            key, _, value = line.partition(":")
            if key.strip() == name:
                return value.strip()
    return None
