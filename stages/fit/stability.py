"""How many examples a plan needs: which layer smaller samples would have named.

For m = 8, 16, 32, ... and n itself, m of the n traced examples are drawn with replacement, again and
again, and the layer of the largest gain is named from each draw: draws from what was traced stand for fresh
samples of that size (the m-out-of-n bootstrap). A size is *enough* when it and all larger ones name the layer
that all n name in :data:`STABLE` of the draws: the share from which the plan calls a choice sure.

Gains that need no law are judged, observed and local: those that need one would have to fit it to every draw.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from salf.files import significant
from salf.gains import local, named, observed
from salf.laws import Array

STABLE: Final = 0.9
SMALLEST: Final = 8
_GAINS: Final = {"observed": observed, "local": local}
_DIGITS: Final = 8


@dataclass(frozen=True)
class Stability:
    """What samples of growing size name by one gain.

    Attributes:
        layer: the layer that all examples together name.
        sizes: examples drawn, ascending, [S].
        shares: of the draws of each size, how many name a layer: layers 1..L, [S, L].
    """

    layer: int
    sizes: tuple[int, ...]
    shares: Array

    @property
    def same(self) -> Array:
        """Of the draws of each size, how many name the same layer as all examples, [S]."""
        return np.asarray(self.shares[:, self.layer - 1])

    @property
    def enough(self) -> int | None:
        """The smallest size that is enough (see above); None where none is, not even all examples."""
        unstable = np.flatnonzero(self.same < STABLE)
        first = unstable[-1] + 1 if len(unstable) else 0
        return self.sizes[first] if first < len(self.sizes) else None


def stabilities(examples: Array, floor: float, draws: int, seed: int) -> dict[str, Stability]:
    """The stability of every gain that needs no law, for curves [n, L+1] of n examples; empty where L < 3.

    Args:
        examples: the examples' curves.
        floor: means are lifted to it where they are below: logarithms are taken of them.
        draws: of each size.
        seed: of the draws.
    """
    if examples.shape[1] < 4:
        return {}
    count = len(examples)
    sizes = (*(size for power in range(32) if (size := SMALLEST << power) < count), count)
    whole = np.maximum(examples.mean(axis=0, keepdims=True), floor)
    curves = [np.maximum(_means(examples, size, draws, seed), floor) for size in sizes]
    return {
        name: Stability(
            layer=int(named(gain(whole))[0]),
            sizes=sizes,
            shares=np.array([_shares(named(gain(each)), examples.shape[1] - 1) for each in curves]),
        )
        for name, gain in _GAINS.items()
    }


def artifact(stability: Stability, confidence: float) -> dict[str, Any]:
    """One gain's entry in ``scaling_law.json``: for each size the share, and the interval of the named layer."""
    return {
        "layer": stability.layer,
        "stable_share": STABLE,
        "enough": stability.enough,
        "sizes": [
            {
                "examples": size,
                "same_layer": significant(float(same), _DIGITS),
                "low": _quantile(shares, (1 - confidence) / 2),
                "high": _quantile(shares, (1 + confidence) / 2),
                "layers": {str(k + 1): significant(float(shares[k]), _DIGITS) for k in np.flatnonzero(shares)},
            }
            for size, same, shares in zip(stability.sizes, stability.same, stability.shares, strict=True)
        ],
    }


def in_words(gain: str, stability: Stability) -> str:
    """What a reader needs to know, in a sentence."""
    if stability.enough is None:
        share = stability.same[-1]
        return (
            f"{gain} gain: draws of all {stability.sizes[-1]} examples agree on layer {stability.layer} in {share:.0%}"
        )
    return f"{gain} gain: {stability.enough} examples name layer {stability.layer} in {STABLE:.0%} of draws or more"


def _means(examples: Array, size: int, draws: int, seed: int) -> Array:
    """Mean curves [draws, L+1] of as many draws of ``size`` examples."""
    drawn = np.random.default_rng([seed, size]).multinomial(size, np.full(len(examples), 1 / len(examples)), draws)
    return np.asarray(drawn @ examples / size)


def _shares(layers: NDArray[np.intp], depth: int) -> Array:
    return np.bincount(layers, minlength=depth + 1)[1:] / len(layers)


def _quantile(shares: Array, share: float) -> int:
    """The first layer up to which at least ``share`` of the draws are."""
    return int(np.searchsorted(shares.cumsum(), share - 1e-12) + 1)
