"""Every gain of a curve (see :mod:`salf.gains`), with intervals, and how often each layer contributes most.

Layers 2..L-1 compete. Layer 1's step starts from the embedding output (space 0), which no layer has
seen: it is reported apart. Layer L's is written too, but it cannot end the freezing: behind it no layer
is left to train. ``ratio`` and ``marginal`` rest on the power law over the
whole depth; whether that law fits is said by ``fits`` in the law's artifact, and they are written in any case.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from salf.fitting.bootstrap import interval
from salf.gains import local, marginal, named, observed, ratio
from salf.laws import Array

NAMES: Final = ("observed", "ratio", "local", "marginal")


@dataclass(frozen=True)
class Gain:
    """A gain of layers 1..L: value and interval [L], NaN where undefined, and the share of resamples won [L]."""

    name: str
    value: Array
    low: Array
    high: Array
    win_share: Array


def resolution(resamples: Array) -> float:
    """The smallest gain told apart from noise by resampled curves [B, L+1]: the median standard error of g_k.

    Not below a millionth of the curve's height, which is what float32 traces resolve.
    """
    return max(float(np.median(observed(resamples).std(axis=0))), 1e-6 * float(np.abs(resamples).mean()))


def win_shares(gains: Array) -> Array:
    """For each layer the share of resamples [B, L] in which it is the largest of layers 2..L-1; ties: the deepest."""
    shares = np.zeros(gains.shape[1])
    eligible = gains[:, 1:-1]
    if eligible.size and not np.isnan(eligible).any():
        winners, wins = np.unique(named(gains), return_counts=True)
        shares[winners - 1] = wins / len(gains)
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
