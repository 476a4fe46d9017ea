"""Probes: what of the task can be read off every space, linearly.

A ridge classifier is fitted to the state at the position that predicts the answer, and one to the mean of the prompt's
states: the latter sees what the sequence holds at that depth, the former what of it has arrived where the answer is
made. Each example is judged by a classifier that was fitted without it (k folds).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import KFold

from salf.errors import UserError
from stages.signals.classes import Classes
from stages.signals.ridge import predicted
from stages.signals.states import PromptStates, States

Correct = NDArray[np.bool_]


@dataclass(frozen=True)
class Probes:
    """Shares of held-out examples that are told right, by space [L+1], and how sure their differences are.

    Attributes:
        answer: off the state at the answer position.
        pooled: off the mean of the prompt's states.
        error: standard error of the best space's pooled share less this one's, over the examples, which both see.
    """

    answer: NDArray[np.float64]
    pooled: NDArray[np.float64]
    error: NDArray[np.float64]


def probes(states: PromptStates, classes: Classes, folds: int, seed: int) -> Probes:
    """Probe every space with the same folds.

    Raises:
        UserError: there are fewer examples than folds.
    """
    if folds > len(classes):
        raise UserError(f"params.yaml: signals.folds = {folds}: the sample has {len(classes)} examples")
    answer, pooled = (
        np.array([held_out(space, classes, folds, seed) for space in each], dtype=float)
        for each in (states.answer, states.pooled)
    )
    short = pooled[pooled.mean(axis=1).argmax()] - pooled
    return Probes(answer.mean(axis=1), pooled.mean(axis=1), short.std(axis=1, ddof=1) / np.sqrt(len(classes)))


def held_out(states: States, classes: Classes, folds: int, seed: int) -> Correct:
    """Which of n examples [n, H] a classifier fitted to the other folds tells right, [n]."""
    correct, wide = np.zeros(len(classes), dtype=bool), states.astype(np.float64)
    for fitted, held in KFold(folds, shuffle=True, random_state=seed).split(wide):
        correct[held] = predicted(wide[fitted], classes[fitted], wide[held]) == classes[held]
    return correct
