"""Signal-to-noise ratio of weight matrices: weights only, no data.

Hartford et al. 2024 (Spectrum, arXiv 2406.06623), §3: singular values above the Marchenko-Pastur edge are signal, the
others noise, and a matrix scores the ratio of their sums divided by its largest singular value. As in the authors'
program, the noise's scale σ is the singular values' interquartile range / 1.349 and the edge σ·(1 + √β), β the
matrix's short side over its long one.

Scores are comparable between matrices of one kind (queries with queries), which is how the paper ranks them. A
layer's value is the mean over its matrices of the score over the mean score of that kind.
"""

from collections import defaultdict
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from salf.engine.models.adapter import CausalModel
from salf.errors import UserError

_NORMAL_QUARTILES: Final = 1.349  # interquartile range of a normal distribution of standard deviation 1


def spectrum(model: CausalModel) -> NDArray[np.float64]:
    """Relative signal-to-noise ratio of the layers 1..L, [L].

    Raises:
        UserError: a layer has no weight matrix with a signal-to-noise ratio.
    """
    by_kind: dict[str, list[float]] = defaultdict(lambda: [float("nan")] * model.depth)
    for index, layer in enumerate(model.layers):
        for kind, weight in layer.named_parameters():
            if weight.ndim > 1 and min(weight.shape[-2:]) > 1:
                by_kind[kind][index] = _mean_ratio(weight)
    scores = np.array(list(by_kind.values())).reshape(-1, model.depth)
    scores = scores[np.isfinite(scores).any(axis=1)]
    scores = scores[np.nanmean(scores, axis=1) > 0]  # a kind without any signal tells no layer from another
    relative = scores / np.nanmean(scores, axis=1, keepdims=True)
    if without := np.flatnonzero(~np.isfinite(relative).any(axis=0)).tolist():
        raise UserError(f"signals.kinds: spectrum: layer {without[0] + 1} has no weight matrix with signal and noise")
    return np.nanmean(relative, axis=0)


def signal_to_noise(values: NDArray[np.float64], shape: tuple[int, int]) -> float:
    """Spectrum's score of a matrix [m, n] by its singular values; NaN where none of them is noise."""
    low, high = np.quantile(values, [0.25, 0.75])
    edge = (high - low) / _NORMAL_QUARTILES * (1 + np.sqrt(min(shape) / max(shape)))
    noise = values[values <= edge].sum()
    return float(values[values > edge].sum() / noise / values.max()) if noise > 0 else float("nan")


def _mean_ratio(weight: Tensor) -> float:
    """The score of a matrix, or the mean score of a stack of matrices (a mixture's experts)."""
    stack = weight.detach().reshape(-1, *weight.shape[-2:])
    shape = (stack.shape[1], stack.shape[2])
    values = [torch.linalg.svdvals(matrix.float()).double().cpu().numpy() for matrix in stack]
    return float(np.mean([signal_to_noise(each, shape) for each in values]))
