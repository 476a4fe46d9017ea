"""Bootstrap over examples (Efron & Tibshirani 1993, ch. 13: percentile intervals).

An example is drawn with all its positions and spaces together, which depend on each other.
"""

import numpy as np

from salf.laws import Array


def resampled_means(values: Array, resamples: int, seed: int) -> Array:
    """Mean curves [resamples, spaces] of resamples, with replacement, of the n examples in ``values`` [n, spaces].

    An example weighs as often as it was drawn; memory stays at one draw. Same seed, same draws.
    """
    count = len(values)
    generator = np.random.default_rng(seed)
    shares = np.full(count, 1.0 / count)
    return np.array([generator.multinomial(count, shares) @ values / count for _ in range(resamples)])


def interval(samples: Array, confidence: float) -> tuple[Array, Array]:
    """Percentile interval over the first axis: (low [...], high [...]) of samples [resamples, ...]."""
    tail = 50.0 * (1.0 - confidence)
    low, high = np.percentile(samples, [tail, 100.0 - tail], axis=0)
    return low, high
