"""Scores of a model or a baseline on the test split, with Efron's percentile intervals over the test examples."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from salf.engine.batches import Example
from salf.metrics import Difference, Interval

_CHUNK: Final = 100  # resamples held at once
_POWER: Final = 0.8

Integers = NDArray[np.integer[Any]]
Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True, eq=False)
class Statistic:
    """A statistic of the examples and of each of their resamples, [R], which all models share (pairs).

    It may be NaN in resamples where it is not defined.
    """

    value: float
    resampled: Floats
    confidence: float

    @property
    def low(self) -> float:
        """The percentile interval's lower end."""
        return float(np.nanquantile(self.resampled, (1 - self.confidence) / 2))

    @property
    def high(self) -> float:
        """The percentile interval's upper end."""
        return float(np.nanquantile(self.resampled, (1 + self.confidence) / 2))

    @property
    def detectable(self) -> float:
        """The smallest true value that a two-sided test against zero at this confidence finds with 80 % power."""
        normal = NormalDist()
        errors = normal.inv_cdf((1 + self.confidence) / 2) + normal.inv_cdf(_POWER)
        return errors * float(np.nanstd(self.resampled, ddof=1))

    def exp(self) -> "Statistic":
        """Its exponential."""
        return Statistic(float(np.exp(self.value)), np.exp(self.resampled), self.confidence)

    def __sub__(self, other: "Statistic") -> "Statistic":
        """Paired difference from another statistic of the same examples."""
        return Statistic(self.value - other.value, self.resampled - other.resampled, self.confidence)

    def __truediv__(self, other: "Statistic") -> "Statistic":
        """Paired ratio to another statistic of the same examples, which is not zero."""
        divisors = np.where(other.resampled == 0, np.nan, other.resampled)
        return Statistic(self.value / other.value, self.resampled / divisors, self.confidence)


def mean_of(parts: Sequence[Statistic]) -> Statistic:
    """The mean of one statistic over several models, over seeds for example."""
    resampled = np.mean([part.resampled for part in parts], axis=0)
    return Statistic(float(np.mean([part.value for part in parts])), resampled, parts[0].confidence)


class Bootstrap:
    """R resamples of n examples, the same for every model.

    ``labels`` [n] where the examples have any; ``wholes`` [n] where examples are resampled together: what each is of.
    """

    def __init__(
        self,
        examples: int,
        resamples: int,
        confidence: float,
        seed: int | Sequence[int],
        labels: Sequence[str] | None = None,
        wholes: Sequence[str] | None = None,
    ) -> None:
        draw = np.random.default_rng(seed).integers
        self.of: Integers | None = None
        if wholes is not None:
            named, self.of = np.unique(wholes, return_inverse=True)
            examples = len(named)
        self.picks: Integers = draw(examples, size=(resamples, examples))  # [R, n]
        self.confidence = confidence
        self.labels = labels
        if labels is not None:
            classes = [np.flatnonzero(np.equal(labels, label)) for label in sorted(set(labels))]
            within = [members[draw(len(members), size=(resamples, len(members)))] for members in classes]
            self.picks_within_classes: Integers = np.concatenate(within, axis=1)  # [R, n]

    def mean(self, values: Floats, weights: Floats | None = None) -> Statistic:
        """Mean of a score per example, [n], weighted where there are weights, [n]."""
        if weights is None:
            return Statistic(float(values.mean()), values[self.picks].mean(axis=1), self.confidence)
        if self.of is not None:  # sums over what is resampled together
            total = np.bincount(self.of, weights).astype(float)
            values, weights = np.bincount(self.of, values * weights) / total, total
        resampled = (values * weights)[self.picks].sum(axis=1) / weights[self.picks].sum(axis=1)
        return Statistic(float(np.average(values, weights=weights)), resampled, self.confidence)

    def over_classes(self, predicted: Sequence[str]) -> dict[str, Statistic]:
        """``balanced_accuracy`` and ``macro_f1`` of predicted labels, [n], as scikit-learn defines them.

        Each class is resampled on its own, so that none is missing from a resample. A class of fewer than about
        ten examples makes both intervals too narrow.
        """
        if self.labels is None:
            raise ValueError("scores over classes need the examples' labels")
        classes, numbers = np.unique([*self.labels, *predicted], return_inverse=True)
        truth, said = np.split(numbers, 2)
        values = _over_classes(truth[None], said[None], len(classes))
        chunks = np.array_split(self.picks_within_classes, -(-len(self.picks) // _CHUNK))
        resampled = np.hstack([_over_classes(truth[picks], said[picks], len(classes)) for picks in chunks])  # [2, R]
        return {
            name: Statistic(float(value[0]), each, self.confidence)
            for name, value, each in zip(("balanced_accuracy", "macro_f1"), values, resampled, strict=True)
        }


def _over_classes(truth: Integers, said: Integers, classes: int) -> Floats:
    """Mean recall over the classes that occur, and mean F1 over all classes: two times [R, n] to [2, R]."""
    rows = len(truth)
    offsets = classes * np.arange(rows)[:, None]

    def count(labels: Integers, counted: Floats) -> Floats:
        cells = np.bincount((labels + offsets).ravel(), counted.ravel(), rows * classes)
        return cells.astype(float).reshape(rows, classes)  # [R, C]

    every = np.ones(truth.shape)
    true, found = count(truth, every), count(said, (truth == said).astype(float))
    recall = np.sum(found / np.maximum(true, 1), axis=1) / np.sum(true > 0, axis=1)
    return np.stack([recall, np.mean(2 * found / np.maximum(true + count(said, every), 1), axis=1)])


@dataclass(frozen=True)
class Predictions:
    """A model's answers to the test examples, in their order."""

    predicted: list[str]
    correct: Floats | None  # [n] of 0 and 1; ``None`` for plain text, which has no answers
    loss: Floats | None  # mean nats per answer token, [n]; ``None`` for baselines that give none
    tokens: Floats  # answer tokens, [n]: weights of ``loss``
    probability: list[float | None]  # of the predicted label; ``None`` where there is none

    @classmethod
    def of_labels(cls, labels: Sequence[str], examples: Sequence[Example]) -> "Predictions":
        """Score a baseline's labels, or candidates where an example has any."""
        right = [example.answer if example.candidates else example.label for example in examples]
        correct = np.array([label == true for label, true in zip(labels, right, strict=True)], float)
        tokens = np.array([len(example.answer_ids) for example in examples], float)
        return cls(list(labels), correct, None, tokens, [None] * len(examples))


def score(predictions: Predictions, quality: str, bootstrap: Bootstrap) -> dict[str, Statistic]:
    """Compute ``quality`` (the share of right answers), balanced accuracy, macro-F1 and loss per answer token.

    The ``quality`` of plain text is the perplexity, exp of the loss.
    """
    result = {} if predictions.correct is None else {quality: bootstrap.mean(predictions.correct)}
    if bootstrap.labels is not None:
        result |= bootstrap.over_classes(predictions.predicted)
    if predictions.loss is not None:
        loss = bootstrap.mean(predictions.loss, predictions.tokens)
        result |= {"loss": loss} if quality in result else {quality: loss.exp(), "loss": loss}
    return result


def intervals(scores: Mapping[str, Statistic]) -> dict[str, Interval]:
    """Return each score with the ends of its interval, without its resamples."""
    return {name: Interval.model_validate(one, from_attributes=True) for name, one in scores.items()}


def differences(gaps: Mapping[str, Statistic]) -> dict[str, Difference]:
    """Return each difference with the ends of its interval, and the one that the test detects."""
    return {name: Difference.model_validate(one, from_attributes=True) for name, one in gaps.items()}
