"""Hidden-state variability: how far a class spreads, beside how far the classes lie apart.

Xie et al. 2022 (Findings of EMNLP, arXiv 2210.10041), §3.1, equation 3: ν = trace(Σ_w Σ_b⁺) / C, with

    Σ_w = mean over classes of the mean over their members of (h − h̄_y)(h − h̄_y)ᵀ,
    Σ_b = mean over classes of (h̄_y − h̄)(h̄_y − h̄)ᵀ, h̄ the mean of the class means.

Low where a space already tells the classes apart. The paper averages an encoder's states over the sentence; in a
causal model the position that predicts the answer is the one that has seen all of it, and its state is taken.
"""

import numpy as np
from numpy.typing import NDArray

from stages.signals.classes import Classes
from stages.signals.states import States


def variability(states: States, classes: Classes) -> NDArray[np.float64]:
    """ν of each space of states [L+1, n, H], [L+1]; NaN where no class differs from another."""
    return np.array([_ratio(space.astype(np.float64), classes) for space in states])


def _ratio(states: NDArray[np.float64], classes: Classes) -> float:
    """ν of states [n, H], without an H×H matrix: Σ_b has at most C − 1 directions, and only those count."""
    found = np.unique(classes)
    means = np.stack([states[classes == each].mean(axis=0) for each in found])
    _, spreads, directions = np.linalg.svd(means - means.mean(axis=0), full_matrices=False)
    # States are float32: what lies below its rounding is no direction.
    kept = spreads > max(means.shape) * np.finfo(np.float32).eps * np.abs(states).max()
    if not kept.any():
        return float("nan")
    within = np.mean(
        [
            np.square((states[classes == each] - mean) @ directions[kept].T).mean(axis=0)
            for each, mean in zip(found, means, strict=True)
        ],
        axis=0,
    )
    between = np.square(spreads[kept]) / len(found)
    return float((within / between).sum() / len(found))
