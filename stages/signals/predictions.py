"""The loss of each boundary, predicted from pilots by their joint law (:mod:`salf.fitting.joint`), with intervals.

The factor of the law is the number of trained layers (ours). Where the law does not hold, the losses of the largest
pilots are interpolated over the boundaries, and intervals are of the validation examples only. No loss exceeds that
before training.
"""

import numpy as np

from salf.evidence import PredictedLoss
from salf.fitting.bootstrap import interval
from salf.fitting.joint import JointLaw, Runs, numbers
from salf.laws import Array


def predict(
    law: JointLaw, layers: Array, untrained: Array, examples: int, confidence: float, seed: int
) -> list[PredictedLoss]:
    """Predict the boundaries 0..L, of ``layers`` trained layers [L+1], for a number of examples.

    ``untrained`` is the loss before training, then that over the draws of the validation examples, [1 + B].
    """
    most = untrained[:, None]
    if law.record.holds:
        at = np.column_stack([layers, np.full(len(layers), float(examples))])
        curves = np.minimum(law.law.curve(law.theta, at), most)  # [1 + B, L+1]
        outcomes = curves * np.exp(np.random.default_rng([seed, 1]).choice(law.noise, curves.shape))
    else:
        curves = outcomes = _interpolated(law.runs, layers, most)
    loss, best = curves[0], int(curves[0].argmin())
    differences = curves[1:] - curves[1:, best : best + 1]
    low, high = interval(outcomes[1:], confidence)
    columns = zip(*map(numbers, (loss, low, high, loss - loss[best], differences.std(axis=0))), strict=True)
    names = ("loss", "low", "high", "excess", "excess_error")
    return [PredictedLoss(boundary=k, **dict(zip(names, row, strict=True))) for k, row in enumerate(columns)]


def _interpolated(runs: Runs, layers: Array, untrained: Array) -> Array:
    """The largest pilots' losses over the boundaries, [1 + B, L+1]; beyond the pilots as at the nearest.

    Where nothing trains and nothing was measured, they are those before training.
    """
    largest = np.flatnonzero(runs.variables[:, 1] == runs.variables[:, 1].max())
    largest = largest[np.argsort(runs.variables[largest, 0])]
    known = runs.variables[largest, 0]
    curves = [np.interp(layers, known, row[largest]) for row in np.vstack([runs.losses, runs.samples])]
    return np.where(layers < min(1.0, known[0]), untrained, curves)
