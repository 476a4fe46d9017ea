"""The graph of stages, read from DVC: ``dvc.yaml`` is the only place that knows it."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import networkx as nx
from dvc.exceptions import DvcException
from dvc.repo import Repo

from salf.errors import UserError


@dataclass(frozen=True)
class StageNode:
    """One stage of the graph; what it reads and writes are paths relative to the project."""

    name: str  # DVC's address, with the matrix item where there is one (finetune@salf-1)
    description: str = ""
    command: str | list[str] | None = None  # None: a file under ``dvc add``
    upstream: tuple[str, ...] = ()  # the stages whose outputs it reads
    reads: tuple[str, ...] = ()  # files and folders, of other stages too; data may be outside (../data)
    params: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # file → name → value as it is set now
    outputs: tuple[str, ...] = ()
    uncached: tuple[str, ...] = ()  # not in DVC's cache
    retries: int = 0  # after a failure that may pass (meta.retries)
    timeout: float | None = None  # in seconds (meta.timeout)


def read_graph(project: Path) -> tuple[StageNode, ...]:
    """Return the stages, each after all that it reads; where that leaves a choice, in the order of ``dvc.yaml``."""
    with opened(project) as repo:
        return graph_of(repo)


@contextmanager
def opened(project: Path) -> Iterator[Repo]:
    """Open a project of DVC's; what DVC says against it is one line."""
    try:
        with Repo(str(project)) as repo:
            yield repo
    except DvcException as error:
        raise UserError(" ".join(str(error).split())) from error


def graph_of(repo: Repo) -> tuple[StageNode, ...]:
    """Return the stages of an open project; see :func:`read_graph`."""
    try:
        graph = repo.index.graph  # its edges point from the reader to what it reads
    except TypeError as error:
        if "'Value' object is not iterable" not in str(error):
            raise
        raise UserError("params.yaml: DVC finds an empty entry where a matrix needs values; write {}") from error
    position = {_address(stage): number for number, stage in enumerate(graph.nodes)}
    order = nx.lexicographical_topological_sort(graph.reverse(), key=lambda stage: position[_address(stage)])
    return tuple(_node(stage, graph) for stage in order)


def select(graph: Sequence[StageNode], targets: Sequence[str]) -> tuple[StageNode, ...]:
    """Return the targets and all that they read, in the graph's order; no targets: the whole graph.

    A target is a stage's name, or the name before ``@`` for all items of a matrix.
    """
    if not targets:
        return tuple(graph)
    wanted = set(matching(graph, targets))
    for node in reversed(graph):
        if node.name in wanted:
            wanted.update(node.upstream)
    return tuple(node for node in graph if node.name in wanted)


def matching(graph: Sequence[StageNode], names: Sequence[str]) -> frozenset[str]:
    """Return the addresses of the given names."""
    found: set[str] = set()
    for name in names:
        hits = {node.name for node in graph if name in (node.name, node.name.partition("@")[0])}
        if not hits:
            known = ", ".join(node.name for node in graph)
            raise UserError(f"no stage {name!r} in dvc.yaml; there are: {known}")
        found |= hits
    return frozenset(found)


def _address(stage: Any) -> str:
    # DVC's own ``addressing`` is relative to the caller's folder; this one to the project.
    path = Path(stage.path_in_repo).as_posix()
    if not hasattr(stage, "name"):
        return path  # a data file under ``dvc add``
    return stage.name if path == "dvc.yaml" else f"{path}:{stage.name}"


def _node(stage: Any, graph: "nx.DiGraph[Any]") -> StageNode:
    meta = stage.meta or {}
    of_params = [dep for dep in stage.deps if hasattr(dep, "params")]
    return StageNode(
        name=_address(stage),
        description=stage.desc or "",
        command=stage.cmd,
        upstream=tuple(sorted(_address(parent) for parent in graph.successors(stage))),
        reads=tuple(dep.def_path for dep in stage.deps if dep not in of_params),
        params={dep.def_path: dep.read_params(flatten=False) for dep in of_params},
        outputs=tuple(out.def_path for out in stage.outs),
        uncached=tuple(out.def_path for out in stage.outs if not out.use_cache and out.protocol == "local"),
        retries=int(meta.get("retries", 0)),
        timeout=float(meta["timeout"]) if "timeout" in meta else None,
    )
