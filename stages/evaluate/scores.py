"""Scores of one model, or one baseline, on the test split."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from salf.engine.batches import Example
from stages.evaluate.intervals import Bootstrap, Floats, Statistic


@dataclass(frozen=True)
class Predictions:
    """What one model said to every test example, in their order.

    Attributes:
        predicted: the label, or the written answer.
        correct: whether it is right, [n] of 0 and 1.
        loss: mean nats per answer token, [n]; ``None`` for baselines that give none.
        tokens: answer tokens, [n]: weights of ``loss``.
        probability: of the predicted label; ``None`` where there is none.
    """

    predicted: list[str]
    correct: Floats
    loss: Floats | None
    tokens: Floats
    probability: list[float | None]

    @classmethod
    def of_labels(cls, labels: Sequence[str], examples: Sequence[Example]) -> "Predictions":
        """A baseline's labels, or candidates where an example has any."""
        right = [example.answer if example.candidates else example.label for example in examples]
        correct = np.array([label == true for label, true in zip(labels, right, strict=True)], float)
        tokens = np.array([len(example.answer_ids) for example in examples], float)
        return cls(list(labels), correct, None, tokens, [None] * len(examples))


def score(predictions: Predictions, quality: str, bootstrap: Bootstrap) -> dict[str, Statistic]:
    """Share of right answers, balanced accuracy and macro-F1 over labels, and loss per answer token, by name.

    Args:
        predictions: a model's.
        quality: what the share of right answers is called: accuracy, or exact match where answers are free.
        bootstrap: the resamples, shared by all models.
    """
    result = {quality: bootstrap.mean(predictions.correct)}
    if bootstrap.labels is not None:
        result |= bootstrap.over_classes(predictions.predicted)
    if predictions.loss is not None:
        result["loss"] = bootstrap.mean(predictions.loss, predictions.tokens)
    return result


def named(scores: Mapping[str, Statistic]) -> dict[str, float]:
    """Each score under its name, with the ends of its interval."""
    return {key: value for name, score in scores.items() for key, value in score.named(name).items()}


def full_at_equal_compute(curve: Sequence[Mapping[str, Any]], flops: float) -> dict[str, float] | None:
    """Validation scores of full fine-tuning when it had spent ``flops``, from its logged curve.

    Linear between the logged points; ``None`` where full fine-tuning as a whole costs no more, or nothing was logged
    of it by then.
    """
    spent = [point["flops"] for point in curve]
    if not spent[0] <= flops < spent[-1]:
        return None
    names = [name for name in ("validation_accuracy", "validation_loss") if curve[0][name] is not None]
    return {name: float(np.interp(flops, spent, [point[name] for point in curve])) for name in names}
