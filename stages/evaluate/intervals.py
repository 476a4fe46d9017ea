"""Scores with bootstrap intervals over test examples (Efron's percentile method)."""

from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

_CHUNK: Final = 100  # resamples held at once

Integers = NDArray[np.integer[Any]]
Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Interval:
    """A value and the interval around it."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, value: float, resampled: Floats, confidence: float) -> Self:
        """Percentile interval of a resampled statistic."""
        low, high = np.quantile(resampled, [(1 - confidence) / 2, (1 + confidence) / 2])
        return cls(float(value), float(low), float(high))

    def named(self, name: str) -> dict[str, float]:
        """``name``, ``name_low``, ``name_high``."""
        return {name: self.value, f"{name}_low": self.low, f"{name}_high": self.high}


class Bootstrap:
    """Resamples of n examples, the same for every model: differences between models are paired.

    Args:
        examples: n.
        resamples: how many.
        confidence: of the intervals.
        seed: of the draw.
    """

    def __init__(self, examples: int, resamples: int, confidence: float, seed: int) -> None:
        self.picks: Integers = np.random.default_rng(seed).integers(examples, size=(resamples, examples))
        self.confidence = confidence

    def mean(self, values: Floats) -> Interval:
        """Mean of a score per example, [n]; of a difference of two models' scores too."""
        return Interval.of(float(values.mean()), values[self.picks].mean(axis=1), self.confidence)

    def macro_f1(self, truth: Integers, predicted: Integers, classes: int) -> Interval:
        """Macro-averaged F1 over all classes; a class that is neither there nor predicted counts 0.

        Args:
            truth: class numbers, [n].
            predicted: class numbers, [n].
            classes: how many there are.
        """
        parts = [
            _macro_f1(truth[picks], predicted[picks], classes)
            for picks in np.array_split(self.picks, max(1, len(self.picks) // _CHUNK))
        ]
        value = _macro_f1(truth[None], predicted[None], classes)[0]
        return Interval.of(float(value), np.concatenate(parts), self.confidence)


def _macro_f1(truth: Integers, predicted: Integers, classes: int) -> Floats:
    """Macro-F1 of every row: [R, n] to [R]."""
    scores = []
    for label in range(classes):
        true, said = truth == label, predicted == label
        found = (true & said).sum(axis=1)
        both = true.sum(axis=1) + said.sum(axis=1)
        scores.append(np.where(both > 0, 2 * found / np.maximum(both, 1), 0.0))
    return np.mean(scores, axis=0)
