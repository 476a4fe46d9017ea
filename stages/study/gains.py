"""Which layer a mean curve's largest gain names, its law fitted where one wants it, whether or not that law fits.

Curves hold spaces 0..L. The step from the embeddings (layer 1's) is nobody's gain, and behind layer L nothing is left
to train: layers 2..L-1 compete.
"""

from typing import Final, Literal

import numpy as np

from salf import gains
from salf.fitting.engine import fit_law
from salf.laws import POWER, Array

Span = Literal["whole", "falling"]
FEWEST: Final = 3  # layers of a model that leaves one to choose
_TAIL: Final = 5  # fewest spaces for a law of three parameters
_FLOOR: Final = 1e-3  # of a curve's mean: for want of resamples, what a law predicts below it is not told from noise


def smoothed(curve: Array, window: int) -> Array:
    """Centred moving mean of spaces 1..L over so many neighbours, near the ends over those that are there."""
    kernel, inner = np.ones(window), curve[1:]
    means = np.convolve(inner, kernel, "same") / np.convolve(np.ones(len(inner)), kernel, "same")
    return np.concatenate([curve[:1], means])


def by_step(curve: Array, gain: str) -> Array:
    """``observed`` or ``local`` gains of layers 1..L [L]: what needs no law."""
    return (gains.observed(curve[None]) if gain == "observed" else gains.local(curve[None]))[0]


def by_law(curve: Array, gain: str, span: Span) -> Array:
    """``ratio`` or ``marginal`` gains of layers 1..L [L] by a power law; minus infinity up to where it starts.

    Args:
        curve: the curve [L+1].
        gain: which.
        span: the spaces that the law is fitted to: the ``whole`` depth, or from the curve's peak on, where it is
            ``falling`` at last, at least the last five.
    """
    spaces = np.arange(1.0, len(curve))
    start = 1 + int(curve[1 : max(2, len(curve) - _TAIL + 1)].argmax()) if span == "falling" else 1
    theta = fit_law(POWER, spaces[start - 1 :], curve[None, start:]).theta
    if gain == "ratio":
        found = gains.ratio(curve[None], theta, _FLOOR * float(curve[1:].mean()))[0]
    else:
        found = gains.marginal(curve[None], theta)[0]
    return np.where(spaces > start, found, -np.inf)


def layer_of_largest(values: Array) -> int:
    """The layer of 2..L-1 with the largest of the gains of layers 1..L [L]; of equals the deepest."""
    return int(gains.named(values[None])[0])
