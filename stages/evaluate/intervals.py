"""Scores with bootstrap intervals over test examples (Efron's percentile method)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

_CHUNK: Final = 100  # resamples held at once

Integers = NDArray[np.integer[Any]]
Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True, eq=False)
class Statistic:
    """A statistic of the examples and of each of their resamples.

    Models share the resamples, so that statistics of several may be averaged and subtracted: what comes out
    is paired.

    Attributes:
        value: of the examples themselves.
        resampled: of every resample, [R].
        confidence: of the interval.
    """

    value: float
    resampled: Floats
    confidence: float

    @property
    def low(self) -> float:
        """The percentile interval's lower end."""
        return float(np.quantile(self.resampled, (1 - self.confidence) / 2))

    @property
    def high(self) -> float:
        """The percentile interval's upper end."""
        return float(np.quantile(self.resampled, (1 + self.confidence) / 2))

    def named(self, name: str) -> dict[str, float]:
        """``name``, ``name_low``, ``name_high``."""
        return {name: self.value, f"{name}_low": self.low, f"{name}_high": self.high}

    def __sub__(self, other: "Statistic") -> "Statistic":
        """How far this one is above another of the same examples."""
        return Statistic(self.value - other.value, self.resampled - other.resampled, self.confidence)


def mean_of(parts: Sequence[Statistic]) -> Statistic:
    """The mean of one statistic over several models, over seeds for example."""
    resampled = np.mean([part.resampled for part in parts], axis=0)
    return Statistic(float(np.mean([part.value for part in parts])), resampled, parts[0].confidence)


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

    def mean(self, values: Floats, weights: Floats | None = None) -> Statistic:
        """Mean of a score per example, [n], weighted where there are weights, [n]."""
        if weights is None:
            return Statistic(float(values.mean()), values[self.picks].mean(axis=1), self.confidence)
        resampled = (values * weights)[self.picks].sum(axis=1) / weights[self.picks].sum(axis=1)
        return Statistic(float(np.average(values, weights=weights)), resampled, self.confidence)

    def macro_f1(self, truth: Integers, predicted: Integers, classes: int) -> Statistic:
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
        return Statistic(float(value), np.concatenate(parts), self.confidence)


def _macro_f1(truth: Integers, predicted: Integers, classes: int) -> Floats:
    """Macro-F1 of every row: [R, n] to [R]."""
    scores = []
    for label in range(classes):
        true, said = truth == label, predicted == label
        found = (true & said).sum(axis=1)
        both = true.sum(axis=1) + said.sum(axis=1)
        scores.append(np.where(both > 0, 2 * found / np.maximum(both, 1), 0.0))
    return np.mean(scores, axis=0)
