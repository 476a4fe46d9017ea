"""Ridge classifiers on the states of every space: what of the task can be read off there, linearly.

At the position that predicts the answer, and off the mean of the prompt's states: the latter has what the sequence
holds at that depth, the former what of it has arrived where the answer is made. Each example is judged by a classifier
that was fitted without it (k folds), with a strength of regularisation that leave-one-out errors of the fitted folds
choose (generalised cross-validation in closed form, one decomposition for all classes and strengths: Golub, Heath and
Wahba 1979).
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import RidgeClassifierCV
from sklearn.model_selection import KFold

from stages.common.command import UserError
from stages.signals.classes import Classes
from stages.signals.states import PromptStates, States

# Strengths that are tried, in units of the states' mean squared length: from hardly any regularisation to nearly
# nothing but the mean, two per decade.
_STRENGTHS: Final = np.logspace(-7, 2, 19)

Correct = NDArray[np.bool_]


@dataclass(frozen=True)
class Probes:
    """Shares of held-out examples that are told right, by space [L+1], and how sure their difference is.

    Attributes:
        answer: off the state at the answer position.
        pooled: off the mean of the prompt's states.
        error: standard error of pooled − answer, over the examples.
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
        np.array([held_out(space, classes, folds, seed) for space in each]) for each in (states.answer, states.pooled)
    )
    difference = pooled.astype(float) - answer
    return Probes(answer.mean(axis=1), pooled.mean(axis=1), difference.std(axis=1, ddof=1) / np.sqrt(len(classes)))


def held_out(states: States, classes: Classes, folds: int, seed: int) -> Correct:
    """Which of n examples [n, H] a classifier fitted to the other folds tells right, [n]."""
    correct = np.zeros(len(classes), dtype=bool)
    for fitted, held in KFold(folds, shuffle=True, random_state=seed).split(states):
        correct[held] = _predicted(states[fitted].astype(np.float64), classes[fitted], states[held]) == classes[held]
    return correct


def _predicted(states: NDArray[np.float64], classes: Classes, held: States) -> Classes:
    found = np.unique(classes)
    squared = np.square(states - states.mean(axis=0)).sum(axis=1).mean()
    if len(found) == 1 or squared == 0:  # one class, or one state: the commonest class is all there is to say
        return np.full(len(held), np.bincount(classes).argmax())
    return RidgeClassifierCV(alphas=_STRENGTHS * squared).fit(states, classes).predict(held)
