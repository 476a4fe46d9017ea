"""What each layer contributes, in four reconstructions, and how often it contributes most.

The paper (Gu et al. 2025, arXiv 2406.11753) freezes up to the layer of the largest gain and estimates
gains by "a derived formula of scaling law". No public copy of that formula was found. These are
**reconstructions**; δ_k is the curve (deviation or loss) at space k, and layer k leads from space k−1 to k.

- **observed**, g_k = δ_{k−1} − δ_k: what the layer did.
- **ratio**, g_k / ĝ_k with ĝ_k = A·((k−1)^−α − k^−α): beside what its depth buys. The global law gives
  δ̂_{k−1} − δ̂_k, where E cancels. ĝ_1 is infinite for α > 0: undefined at layer 1. Deep in a steep law ĝ_k is
  far below anything a trace resolves, and noise over next to nothing would win every argmax. So ĝ_k is
  replaced by the trace's resolution where it is smaller: the median, over the layers, of the
  bootstrap standard error of g_k. Where ĝ_k vanishes everywhere (no law), the ratio orders
  the layers as g_k does.
- **local**, α_k = ln(δ_{k−1}/δ_k) / ln((k+1)/k): the exponent of the power law without E through two
  neighbours, δ ∝ N^−α ⇒ α = ln(δ/δ′) / ln(N′/N). *Index convention*: space k counts as a sub-model of size
  N_k ∝ k+1, the embedding being its first unit; with N_k ∝ k, as in the global law, layer 1 would divide
  by ln(1/0). It is about g_k/δ_k times the depth: late layers need less to score high, since each is
  a smaller share of what is already there. The predicted next reduction follows by one more step of the
  same law (:func:`next_reduction`).
- **marginal**, α·δ_k/k: Kaplan's −dδ/dN of δ = A·N^−α at N ∝ k, with the global exponent. At most slowly
  rising curves it falls with k by construction, so it prefers early layers.

Layers 2..L-1 compete. Layer 1's step starts from the embedding output (space 0), which no layer has
seen: it is reported apart. Layer L's is written too, but it cannot end the freezing: behind it no layer
is left to train. ``ratio`` and ``marginal`` rest on the power law over the
whole depth; whether that law fits is said by ``fits`` in the law's artifact, and they are written in any case.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from stages.common.fitting.bootstrap import interval
from stages.common.laws import POWER, Array

NAMES: Final = ("observed", "ratio", "local", "marginal")


@dataclass(frozen=True)
class Gain:
    """A gain of layers 1..L: value and interval [L], NaN where undefined, and the share of resamples won [L]."""

    name: str
    value: Array
    low: Array
    high: Array
    win_share: Array


def observed(curves: Array) -> Array:
    """g_k [C, L] of curves [C, L+1] over spaces 0..L."""
    return curves[:, :-1] - curves[:, 1:]


def ratio(curves: Array, theta: Array, smallest: float) -> Array:
    """g_k / max(ĝ_k, smallest) [C, L] under the power laws θ [C, 3]; NaN at layer 1."""
    expected = np.full((len(curves), curves.shape[1] - 1), np.nan)
    if curves.shape[1] > 2:
        law = POWER.curve(theta, np.arange(1, curves.shape[1], dtype=float))
        expected[:, 1:] = np.maximum(law[:, :-1] - law[:, 1:], smallest)
    return observed(curves) / expected


def local(curves: Array) -> Array:
    """Local exponents α_k [C, L] of positive curves [C, L+1]."""
    layers = np.arange(1, curves.shape[1], dtype=float)
    return np.log(curves[:, :-1] / curves[:, 1:]) / np.log((layers + 1) / layers)


def next_reduction(curves: Array) -> Array:
    """δ_k − δ̂_{k+1} = δ_k·(1 − ((k+1)/(k+2))^α_k) [C, L]: what the local law at k promises for layer k+1."""
    layers = np.arange(1, curves.shape[1], dtype=float)
    return curves[:, 1:] * (1.0 - ((layers + 1) / (layers + 2)) ** local(curves))


def marginal(curves: Array, theta: Array) -> Array:
    """α·δ_k/k [C, L] with the exponents of the power laws θ [C, 3]."""
    return theta[:, 2:] * curves[:, 1:] / np.arange(1, curves.shape[1], dtype=float)


def resolution(resamples: Array) -> float:
    """The smallest gain told apart from noise by resampled curves [B, L+1]: the median standard error of g_k.

    Not below a millionth of the curve's height, which is what float32 traces resolve.
    """
    return max(float(np.median(observed(resamples).std(axis=0))), 1e-6 * float(np.abs(resamples).mean()))


def win_shares(gains: Array) -> Array:
    """For each layer the share of resamples [B, L] in which it is the largest of layers 2..L-1; ties: the first."""
    shares = np.zeros(gains.shape[1])
    eligible = gains[:, 1:-1]
    if eligible.size and not np.isnan(eligible).any():
        winners, wins = np.unique(eligible.argmax(axis=1) + 1, return_counts=True)
        shares[winners] = wins / len(gains)
    return shares


def all_gains(
    curve: Array, resamples: Array, theta: Array | None, thetas: Array | None, confidence: float
) -> list[Gain]:
    """Every gain of a positive curve [L+1], with intervals and win shares from its resamples [B, L+1].

    Args:
        curve: the mean curve, spaces 0..L.
        resamples: its bootstrap resamples.
        theta: the power law's θ [3] of the curve; None where there were too few layers: NaN gains.
        thetas: the same of the resamples [B, 3].
        confidence: of the intervals.
    """
    once = _each(curve[None], None if theta is None else theta[None], resolution(resamples))
    often = _each(resamples, thetas, resolution(resamples))
    gains = []
    for name in NAMES:
        low, high = interval(often[name], confidence)
        gains.append(Gain(name, once[name][0], low, high, win_shares(often[name])))
    return gains


def _each(curves: Array, theta: Array | None, smallest: float) -> dict[str, Array]:
    undefined = np.full((len(curves), curves.shape[1] - 1), np.nan)
    return {
        "observed": observed(curves),
        "ratio": undefined if theta is None else ratio(curves, theta, smallest),
        "local": local(curves),
        "marginal": undefined if theta is None else marginal(curves, theta),
    }
