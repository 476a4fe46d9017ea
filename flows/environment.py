"""The environment in which a flow runs DVC, and DVC its stages; how many run side by side, with how many threads."""

import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import psutil

from stages import QUIET

if TYPE_CHECKING:
    from flows.graph import StageNode

WORKSPACE: Final = "SALF_WORKSPACE"  # marks the processes that work in a project for its flows
# Below four cores two stages side by side are no faster than one after the other; a model, its gradients and
# its optimizer take some gigabytes.
CORES_EACH: Final = 4
BYTES_EACH: Final = 16 * 2**30
_THREADS: Final = "OMP_NUM_THREADS"


def stage_environment(
    inherited: Mapping[str, str], project: Path | None = None, flow_run: tuple[str, str] | None = None
) -> dict[str, str]:
    """Return ``inherited`` with this interpreter first on PATH, unbuffered output and no telemetry.

    ``python`` in a stage's command is then the interpreter of the flow, even if its environment is not activated.
    ``project`` marks the processes of its stages; id and name of the flow run are for the stages' records.
    """
    path = os.pathsep.join([str(Path(sys.executable).parent), inherited.get("PATH", os.defpath)])
    added = {**QUIET, "PATH": path, "PYTHONUNBUFFERED": "1"}
    if project is not None:
        added[WORKSPACE] = str(project)
    if flow_run is not None:
        added["SALF_FLOW_RUN"], added["SALF_FLOW_RUN_NAME"] = flow_run
    return {**inherited, **added}


def with_threads(environment: Mapping[str, str], threads: int | None) -> dict[str, str]:
    """Return the environment with at most ``threads`` threads for a stage's arithmetic; ``None``: unchanged.

    Threads of two processes that share cores wait for each other at every barrier: on two cores two
    processes of two threads each were ten times as slow as one after the other.
    """
    if threads is None:
        return dict(environment)
    given = environment.get(_THREADS, "")
    allowed = min(threads, int(given)) if given.isdecimal() and int(given) > 0 else threads
    return {**environment, _THREADS: str(allowed)}


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def side_by_side(asked: int) -> int:
    """Return how many stages may run at once: as asked, or for 0 what cores and memory allow."""
    return asked or max(1, min(cores() // CORES_EACH, psutil.virtual_memory().total // BYTES_EACH))


def threads_each(graph: Sequence["StageNode"], at_once: int) -> dict[str, int | None]:
    """Return every stage's share of the cores; ``None``: it runs alone and has them all.

    The share follows from the graph, not from what runs at the moment: sums of floating point numbers depend
    on the number of threads, and the same run must give the same bytes.
    """
    depth: dict[str, int] = {}
    for node in graph:  # in topological order
        depth[node.name] = 1 + max((depth[name] for name in node.upstream if name in depth), default=0)
    at_depth = Counter(depth.values())
    neighbours = {name: min(at_once, at_depth[level]) for name, level in depth.items()}
    return {name: None if n == 1 else max(1, cores() // n) for name, n in neighbours.items()}
