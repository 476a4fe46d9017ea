"""How each stage's present result came about, for the exports: dvc.lock joined with the ledger's runs.

Where DVC took a result from its cache, its run is the earlier one that made it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import networkx as nx

from flows.lineage.ledger import Ledger
from flows.lineage.project import overlap
from flows.lineage.why import leaves
from salf.errors import UserError
from salf.ledger import End, Locked, LockedPath, LockEntry, Start


@dataclass(frozen=True)
class Result:
    """The present result of one stage: the record of its locking, and of the run that made it if it is known."""

    locked: Locked
    start: Start | None
    end: End | None

    @property
    def stage(self) -> str:
        """DVC's name, with the matrix item."""
        return self.locked.stage

    @property
    def tool(self) -> str:
        """The stage's name without its matrix item."""
        return self.stage.partition("@")[0]

    @property
    def parameters(self) -> dict[str, Any]:
        """Dotted name → value, as DVC locked them."""
        return parameters(self.locked.lock)

    @property
    def inputs(self) -> list[LockedPath]:
        """What the stage read."""
        return artifacts(self.locked.lock.deps)

    @property
    def outputs(self) -> list[LockedPath]:
        """What the stage wrote."""
        return artifacts(self.locked.lock.outs)

    @property
    def versions(self) -> dict[str, str]:
        """Package → version."""
        return self.start.versions if self.start else {}

    @property
    def commit(self) -> str:
        """The commit of the code."""
        return (self.start.commit if self.start else None) or "unknown"


def results(ledger: Ledger, lock: Mapping[str, LockEntry]) -> list[Result]:
    """Return the result of every stage of ``dvc.lock``, each after all that it reads.

    Raises:
        UserError: dvc.lock names no stage, or has an entry that the ledger does not record.
    """
    if not lock:
        raise UserError("dvc.lock names no stage: run the chain first (make run)")
    found: list[Result] = []
    unknown = []
    for stage, entry in lock.items():
        newest = ledger.newest_locked(stage)
        if newest is None or newest.lock != entry:
            unknown.append(stage)
        else:
            run = newest.run or ""
            found.append(Result(newest, ledger.starts.get(run), ledger.ends.get(run)))
    if unknown:
        names = ", ".join(unknown)
        raise UserError(f"dvc.lock has unrecorded entries of {names}; first run: python -m flows.lineage record")
    return _in_order(found)


def members(found: Sequence[Result]) -> dict[str, LockedPath]:
    """Return the artifacts of these results by path: every input and output, once."""
    seen = {artifact.path: artifact for result in found for artifact in (*result.inputs, *result.outputs)}
    return dict(sorted(seen.items()))


def artifacts(paths: Sequence[LockedPath]) -> list[LockedPath]:
    """The ``deps`` or ``outs`` of an entry; what has no hash (a web address) is left out."""
    return [path for path in paths if path.md5]


def parameters(entry: LockEntry) -> dict[str, Any]:
    """The parameters of an entry, over all its parameter files: dotted name → value."""
    return {name: value for file in entry.params.values() for name, value in leaves(file).items()}


def _in_order(found: Sequence[Result]) -> list[Result]:
    graph: nx.DiGraph[int] = nx.DiGraph()
    graph.add_nodes_from(range(len(found)))
    for reader, result in enumerate(found):
        for writer, other in enumerate(found):
            if any(overlap(read.path, made.path) for read in result.inputs for made in other.outputs):
                graph.add_edge(writer, reader)
    return [found[number] for number in nx.lexicographical_topological_sort(graph)]
