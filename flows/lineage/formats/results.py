"""The records of the ledger joined: how each stage's present result came about.

A result is what DVC has locked; the run that made it stands in other records. Where DVC took a result
from its cache, that is the earlier run that made it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import networkx as nx

Record = Mapping[str, Any]


class ExportError(Exception):
    """The records cannot be exported; the text says why and what to do."""


@dataclass(frozen=True)
class Artifact:
    """A file or folder as dvc.lock names it.

    Attributes:
        path: relative to the project, with ``/``.
        md5: DVC's hash; that of a folder ends in ``.dir``.
        size: bytes; ``None`` where DVC did not count them.
    """

    path: str
    md5: str
    size: int | None

    @property
    def is_folder(self) -> bool:
        """Whether DVC tracks it as a folder."""
        return self.md5.endswith(".dir")

    @property
    def is_inside(self) -> bool:
        """Whether it lies in the project."""
        path = PurePosixPath(self.path)
        return not path.is_absolute() and ".." not in path.parts

    @property
    def shown(self) -> str:
        """Its path as others may see it: of what lies outside the project the last name only."""
        return self.path if self.is_inside else PurePosixPath(self.path).name


@dataclass(frozen=True)
class Result:
    """The present result of one stage.

    Attributes:
        stage: DVC's name, with the matrix item.
        command: as dvc.lock holds it.
        parameters: dotted name → value, as DVC locked them.
        inputs: what the stage read.
        outputs: what it wrote.
        locked: the record of its locking.
        start: the record of the start of the run that made it; ``None``: the ledger does not know it.
        end: the record of that run's end.
    """

    stage: str
    command: str
    parameters: Mapping[str, Any]
    inputs: tuple[Artifact, ...]
    outputs: tuple[Artifact, ...]
    locked: Record
    start: Record | None
    end: Record | None


def results(records: Sequence[Record], lock: Mapping[str, Any]) -> list[Result]:
    """Return the result of every stage of ``dvc.lock``, each after all that it reads.

    Args:
        records: the ledger's records, in order.
        lock: the entries of ``dvc.lock`` by stage.

    Raises:
        ExportError: dvc.lock names no stage, or holds an entry of which the ledger has no record.
    """
    if not lock:
        raise ExportError("dvc.lock names no stage: run the chain first (make run)")
    newest = {record["stage"]: record for record in records if record["kind"] == "locked"}
    unknown = [name for name, entry in lock.items() if name not in newest or newest[name]["lock"] != entry]
    if unknown:
        names = ", ".join(unknown)
        raise ExportError(f"dvc.lock has unrecorded entries of {names}; first run: python -m flows.lineage record")
    starts, ends = run_records(records)
    return _in_order([_result(newest[name], starts, ends) for name in lock])


def members(found: Sequence[Result]) -> dict[str, Artifact]:
    """Return the artifacts of these results by path: every input and output, once."""
    seen: dict[str, Artifact] = {}
    for result in found:
        for artifact in (*result.inputs, *result.outputs):
            seen[artifact.path] = artifact
    return dict(sorted(seen.items()))


def run_records(records: Sequence[Record]) -> tuple[dict[str, Record], dict[str, Record]]:
    """Return the records of the runs' starts and of their ends, each by the run's id."""
    by_kind: dict[str, dict[str, Record]] = {"start": {}, "end": {}}
    for record in records:
        if record["kind"] in by_kind:
            by_kind[record["kind"]][record["run"]] = record
    return by_kind["start"], by_kind["end"]


def artifacts(entries: Sequence[Mapping[str, Any]]) -> tuple[Artifact, ...]:
    """The ``deps`` or ``outs`` of an entry of dvc.lock; what has no hash (an address on the web) is left out."""
    return tuple(Artifact(entry["path"], entry["md5"], entry.get("size")) for entry in entries if "md5" in entry)


def parameters(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of an entry of dvc.lock, over all its parameter files: dotted name → value."""
    return {name: value for file in (entry.get("params") or {}).values() for name, value in _leaves(file, "")}


def _leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if not isinstance(value, Mapping) or not value:
        yield name, value
        return
    for key, inner in value.items():
        yield from _leaves(inner, f"{name}.{key}" if name else str(key))


def _result(locked: Record, starts: Mapping[str, Record], ends: Mapping[str, Record]) -> Result:
    entry = locked["lock"]
    run = locked["run"]
    return Result(
        stage=locked["stage"],
        command=entry["cmd"],
        parameters=parameters(entry),
        inputs=artifacts(entry.get("deps") or []),
        outputs=artifacts(entry.get("outs") or []),
        locked=locked,
        start=starts.get(run),
        end=ends.get(run),
    )


def _in_order(found: Sequence[Result]) -> list[Result]:
    graph: nx.DiGraph[int] = nx.DiGraph()
    graph.add_nodes_from(range(len(found)))
    for reader, result in enumerate(found):
        for writer, other in enumerate(found):
            if any(_overlap(read.path, made.path) for read in result.inputs for made in other.outputs):
                graph.add_edge(writer, reader)
    return [found[number] for number in nx.lexicographical_topological_sort(graph)]


def _overlap(one: str, other: str) -> bool:
    # A stage may read a file of a folder that another wrote, or a folder that holds what others wrote.
    return one == other or one.startswith(f"{other}/") or other.startswith(f"{one}/")
