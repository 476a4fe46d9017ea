"""How long the bases of a large vocabulary take: what the benchmark measures."""

import time

import torch

from stages.common.runtime import keep_freed_memory
from stages.trace.basis import semantic_bases


def seconds_of_bases(vocabulary: int = 128_000, hidden: int = 4_096, tokens: int = 256, seed: int = 0) -> float:
    """Seconds to solve for the bases of ``tokens`` tokens of a random head [vocabulary, hidden] in bfloat16.

    Most published heads are stored in that type; the arithmetic is float64 whatever the type. Peak memory is the
    head, one block of its rows in float64, and three H×H matrices.
    """
    keep_freed_memory()
    generator = torch.Generator().manual_seed(seed)
    weight = torch.empty(vocabulary, hidden, dtype=torch.bfloat16)
    for rows in weight.split(8192):
        rows.copy_(torch.randn(rows.shape, generator=generator))
    started = time.perf_counter()
    semantic_bases(weight, None, range(tokens))
    return time.perf_counter() - started
