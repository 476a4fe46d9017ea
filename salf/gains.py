"""The gain of each layer, in five reconstructions.

That gains are estimated by "a derived formula of scaling law" is from the abstract (Gu et al. 2025, arXiv 2406.11753);
the formula is not public. These five are ours. δ_k is the curve (deviation or loss) at space k, and layer k leads from
space k−1 to k.

- **observed**, g_k = δ_{k−1} − δ_k: what the layer did.
- **ratio**, g_k / ĝ_k with ĝ_k = A·((k−1)^−α − k^−α): what it did relative to what the law predicts at its depth.
  Undefined at layer 1, where ĝ is infinite. Deep in a steep law ĝ_k is far below anything a trace resolves, and noise
  over next to nothing would win, so ĝ_k is at least the trace's resolution: the median, over the layers, of the
  bootstrap standard error of g_k.
- **local**, α_k = ln(δ_{k−1}/δ_k) / ln((k+1)/k): the exponent of the power law without E through two neighbours. Space
  k counts as a sub-model of size N_k ∝ k+1, the embedding being its first unit; with N_k ∝ k, as in the global law,
  layer 1 would divide by ln(1/0). It is about g_k/δ_k times the depth, so late layers need less to score high.
- **marginal**, α·δ_k/k: Kaplan's −dδ/dN of δ = A·N^−α at N ∝ k, with the global exponent. It falls with k unless the
  curve rises steeply, so it prefers early layers.
- **law**, δ̂_{k−1} − δ̂_k of the law δ̂ = E + A·k^−α fitted from the curve's peak on; zero up to the peak. A power
  law's slope is steepest where it starts. If it falls at all, the largest gain is that of the layer after the peak.
"""

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from salf.fitting.engine import Fit, fit_law
from salf.laws import POWER, Array

TAIL: Final = 5  # fewest spaces from a peak on: the law has three parameters


class Falling(NamedTuple):
    """Power laws fitted to C curves, each from the space of its peak on."""

    peaks: NDArray[np.intp]  # [C]
    fit: Fit


def observed(curves: Array) -> Array:
    """Observed gains g_k (ours), [C, L] of curves [C, L+1] over spaces 0..L."""
    return curves[:, :-1] - curves[:, 1:]


def ratio(curves: Array, theta: Array, smallest: float) -> Array:
    """Gains relative to the law's (ours), g_k / max(ĝ_k, smallest) [C, L] by power laws θ [C, 3]; NaN at layer 1."""
    expected = np.full((len(curves), curves.shape[1] - 1), np.nan)
    if curves.shape[1] > 2:
        law = POWER.curve(theta, np.arange(1, curves.shape[1], dtype=float))
        expected[:, 1:] = np.maximum(law[:, :-1] - law[:, 1:], smallest)
    return observed(curves) / expected


def local(curves: Array) -> Array:
    """Local exponents (ours), α_k [C, L] of positive curves [C, L+1]."""
    layers = np.arange(1, curves.shape[1], dtype=float)
    return np.log(curves[:, :-1] / curves[:, 1:]) / np.log((layers + 1) / layers)


def marginal(curves: Array, theta: Array) -> Array:
    """Marginal gains by the law (ours), α·δ_k/k [C, L] with the exponents of the power laws θ [C, 3]."""
    return theta[:, 2:] * curves[:, 1:] / np.arange(1, curves.shape[1], dtype=float)


def falling(curves: Array, warm: Array | None = None) -> Falling:
    """Fit the power law to curves [C, L+1], each from the space of 1..L-4 where it is largest (L < 6: from space 1).

    ``warm`` are starts [1, S, 3] in place of the law's grid.
    """
    spaces = np.arange(1, curves.shape[1], dtype=float)
    peaks = 1 + curves[:, 1 : max(2, curves.shape[1] - TAIL + 1)].argmax(axis=1)
    return Falling(peaks, fit_law(POWER, spaces, curves[:, 1:], (spaces >= peaks[:, None]).astype(float), warm))


def by_law(law: Falling, layers: int) -> Array:
    """Gains by the law (abstract; its form and start are ours), δ̂_{k−1} − δ̂_k [C, L]; zero up to each peak."""
    spaces = np.arange(1, layers + 1, dtype=float)
    curves = POWER.curve(law.fit.theta, spaces)
    steps = observed(np.concatenate([curves[:, :1], curves], axis=1))  # [C, L]; layer 1 is never above a peak
    return np.where(spaces > law.peaks[:, None], steps, 0.0)


def named(gains: Array) -> NDArray[np.intp]:
    """The layer of the largest gain (second-hand), [C], among layers 2..L-1 of gains [C, L]; ties: the deepest."""
    return np.asarray(gains.shape[1] - 1 - gains[:, -2:0:-1].argmax(axis=1))
