"""Which layer a curve's largest gain names, read off the mean curve alone.

As the stage ``fit`` counts gains, with two differences: a law may be fitted to a part of the depth, and nothing is
asked about whether it fits. Curves are positive and hold spaces 1..L; layer k leads from space k-1 to k.
"""

from typing import Final, Literal

import numpy as np

from stages.common.fitting.engine import fit_law
from stages.common.laws import POWER
from stages.study.measured import Floats

Span = Literal["whole", "falling"]
_TAIL: Final = 5  # fewest spaces for a law of three parameters
_FLOOR: Final = 1e-3  # of a curve's mean: what a law predicts below it is no more than a trace can tell


def smoothed(curve: Floats, window: int) -> Floats:
    """Centred moving mean over so many neighbours; near the ends over those that are there."""
    kernel = np.ones(window)
    return np.convolve(curve, kernel, "same") / np.convolve(np.ones(len(curve)), kernel, "same")


def observed(curve: Floats) -> Floats:
    """What layers 2..L take off [L-1]."""
    return curve[:-1] - curve[1:]


def local(curve: Floats) -> Floats:
    """Exponents of the power law through two neighbours, for layers 2..L [L-1]."""
    layers = np.arange(2, len(curve) + 1)
    return np.log(curve[:-1] / curve[1:]) / np.log((layers + 1) / layers)


def of_law(curve: Floats, gain: str, span: Span) -> Floats:
    """Gains that rest on the power law, for layers 2..L [L-1]; minus infinity for those in front of its spaces.

    Args:
        curve: the curve.
        gain: ``ratio``, what a layer took off over what the law says; ``marginal``, the law's slope α·δ_k/k.
        span: the spaces that the law is fitted to: the ``whole`` depth, or those from the curve's peak on, where it
            is ``falling`` at last.
    """
    spaces = np.arange(1.0, len(curve) + 1)
    start = 1 + int(curve[: max(1, len(curve) - _TAIL + 1)].argmax()) if span == "falling" else 1
    used = spaces >= start
    theta = fit_law(POWER, spaces[used], curve[used][None].astype(float)).theta
    layers = spaces[1:]
    if gain == "ratio":
        expected = -np.diff(POWER.curve(theta, spaces)[0])
        found = observed(curve) / np.maximum(expected, _FLOOR * curve.mean())
    else:
        found = POWER.natural(theta)[0][POWER.parameters.index("alpha")] * curve[1:] / layers
    return np.where(layers > start, found, -np.inf)


def layer_of_largest(gains: Floats) -> int:
    """The layer of 2..L-1 with the largest of the gains of layers 2..L; of equals the deepest."""
    inside = gains[:-1]
    return 1 + len(inside) - int(inside[::-1].argmax())
