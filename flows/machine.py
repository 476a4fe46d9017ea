"""How many stages run side by side on this machine, and with how many threads each."""

import os
from collections import Counter
from collections.abc import Sequence

import psutil

from flows.graph import StageNode

# Below four cores a stage is as fast alone as two beside each other; a model, its gradients and its
# optimizer take some gigabytes.
CORES_EACH = 4
BYTES_EACH = 16 * 2**30


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def side_by_side(asked: int) -> int:
    """Return how many stages may run at once: what was asked, or for 0 what cores and memory allow."""
    if asked:
        return asked
    return max(1, min(cores() // CORES_EACH, psutil.virtual_memory().total // BYTES_EACH))


def threads_each(graph: Sequence[StageNode], at_once: int) -> dict[str, int | None]:
    """Return every stage's share of the cores; ``None``: it runs alone and has them all.

    The share follows from the graph, not from what happens to run at the moment: sums of floating
    point numbers depend on the number of threads, and the same run shall give the same bytes.
    """
    depth: dict[str, int] = {}
    for node in graph:  # in topological order
        depth[node.name] = 1 + max((depth[name] for name in node.upstream if name in depth), default=0)
    beside = Counter(depth.values())
    shares: dict[str, int | None] = {}
    for name, level in depth.items():
        neighbours = min(at_once, beside[level])
        shares[name] = None if neighbours == 1 else max(1, cores() // neighbours)
    return shares
