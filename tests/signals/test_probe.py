"""Ridge probes against leave-one-out by hand and scikit-learn's own classifier, and on made-up spaces."""

from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.linear_model import RidgeClassifier
from sklearn.model_selection import KFold

from salf.errors import UserError
from stages.signals import classes as room
from stages.signals.classes import held_out, probe
from stages.signals.sample import PromptStates


def probes(answer, pooled, labels, folds, seed):
    """The columns answer, pooled and error of :func:`probe`."""
    params = SimpleNamespace(folds=folds, seed=seed)
    return probe(SimpleNamespace(states=PromptStates(answer, pooled, []), classes=labels, params=params))


STRENGTHS = [1e-3, 1e-1, 1e1, 1e3]


def clouds(rng, count, classes, spread, width=12):
    """States around one centre a class, [n, H], and the classes."""
    centres = rng.normal(size=(classes, width))
    labels = rng.integers(0, classes, count)
    return (centres[labels] + spread * rng.normal(size=(count, width))).astype(np.float32), labels


def targets(labels):
    """±1 for each class, as a ridge classifier is fitted to; one column where there are two."""
    signs = np.where(labels[:, None] == np.unique(labels), 1.0, -1.0)
    return signs[:, 1:] if signs.shape[1] == 2 else signs


def leave_one_out_error(states, labels, strength):
    """Mean squared error of every example by a fit to all the others, solved from scratch."""
    wanted, errors = targets(labels), []
    for left in range(len(labels)):
        rest = np.arange(len(labels)) != left
        middle, level = states[rest].mean(axis=0), wanted[rest].mean(axis=0)
        centred = states[rest] - middle
        weights = np.linalg.solve(
            centred.T @ centred + strength * np.eye(states.shape[1]), centred.T @ (wanted[rest] - level)
        )
        errors.append(np.square((states[left] - middle) @ weights + level - wanted[left]))
    return np.mean(errors)


@pytest.mark.parametrize(("classes", "width"), [(2, 6), (4, 6), (3, 40)], ids=["two", "four", "wider than many"])
def test_held_out_answers_are_those_of_a_ridge_classifier_of_the_best_strength(monkeypatch, classes, width):
    monkeypatch.setattr(room, "_STRENGTHS", np.array(STRENGTHS))
    states, labels = clouds(np.random.default_rng(classes), 40, classes, spread=1.5, width=width)
    expected = np.zeros(40, dtype=bool)
    chosen = []
    for fitted, held in KFold(4, shuffle=True, random_state=3).split(states):
        own = states[fitted].astype(float)
        squared = np.square(own - own.mean(axis=0)).sum(axis=1).mean()
        errors = [leave_one_out_error(own, labels[fitted], squared * strength) for strength in STRENGTHS]
        chosen.append(int(np.argmin(errors)))
        best = RidgeClassifier(alpha=squared * STRENGTHS[chosen[-1]]).fit(own, labels[fitted])
        expected[held] = best.predict(states[held]) == labels[held]
    assert len(set(chosen)) > 1 or chosen[0] not in (0, len(STRENGTHS) - 1)
    assert held_out(states, labels, folds=4, seed=3).tolist() == expected.tolist()


def test_what_one_space_knows_and_another_does_not_shows():
    rng = np.random.default_rng(1)
    known, labels = clouds(rng, 120, 3, spread=0.3)
    noise = rng.normal(size=known.shape).astype(np.float32)
    alike = np.ones_like(known)
    spaces = np.stack([alike, noise, known])
    answer, pooled, error = probes(spaces, np.stack([known, known, known]), labels, folds=5, seed=1)
    commonest = np.bincount(labels).max() / len(labels)
    assert answer[0] == pytest.approx(commonest, abs=0.1)  # one state for all: nothing but the commonest class
    assert answer[1] < 0.55
    assert answer[2] == pooled[2] > 0.95
    assert error.tolist() == [0, 0, 0]  # the same pooled states everywhere


def test_the_standard_error_is_that_of_the_examples_differences():
    rng = np.random.default_rng(2)
    best, labels = clouds(rng, 60, 2, spread=2.0)
    blurred = (best + 4 * rng.normal(size=best.shape)).astype(np.float32)
    pooled = np.stack([blurred, best])
    error = probes(pooled, pooled, labels, folds=3, seed=0)[2]
    one, other = (held_out(each, labels, 3, 0).astype(float) for each in (best, blurred))
    assert one.mean() > other.mean()
    assert error[0] == pytest.approx(np.std(one - other, ddof=1) / np.sqrt(60))
    assert error[1] == 0


def test_more_folds_than_examples_are_refused():
    states, labels = clouds(np.random.default_rng(0), 4, 2, spread=1.0)
    with pytest.raises(UserError, match=r"signals\.folds = 5: the sample has 4 examples"):
        probes(states[None], states[None], labels, folds=5, seed=0)
