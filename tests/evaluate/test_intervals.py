"""Intervals and macro-F1 against scikit-learn and known distributions."""

import numpy as np
import pytest
from sklearn.metrics import f1_score

from stages.evaluate.intervals import Bootstrap


@pytest.mark.parametrize("seed", range(5))
def test_macro_f1_is_scikit_learns(seed):
    rng = np.random.default_rng(seed)
    truth, said = rng.integers(5, size=(2, 80))
    ours = Bootstrap(80, 50, 0.95, 0).macro_f1(truth, said, classes=6)  # class 5 never occurs
    assert ours.value == pytest.approx(f1_score(truth, said, average="macro", labels=range(6), zero_division=0))
    assert ours.low <= ours.value <= ours.high


def test_resampled_macro_f1_is_that_of_each_resample():
    rng = np.random.default_rng(0)
    truth, said = rng.integers(3, size=(2, 40))
    bootstrap = Bootstrap(40, 250, 0.9, 7)
    each = [f1_score(truth[p], said[p], average="macro", labels=range(3), zero_division=0) for p in bootstrap.picks]
    interval = bootstrap.macro_f1(truth, said, 3)
    assert (interval.low, interval.high) == pytest.approx(tuple(np.quantile(each, [0.05, 0.95])))


def test_intervals_of_accuracy_hold_the_truth_as_often_as_they_say():
    """300 draws of 200 coin tosses with p = 0.6: 90 % intervals hold p in about 90 %, within three deviations."""
    rng = np.random.default_rng(1)
    held = 0
    for seed in range(300):
        interval = Bootstrap(200, 300, 0.9, seed).mean((rng.random(200) < 0.6).astype(float))
        held += interval.low <= 0.6 <= interval.high
    assert abs(held / 300 - 0.9) < 3 * np.sqrt(0.9 * 0.1 / 300)


def test_differences_are_paired():
    """Two models that differ on no example differ by exactly nothing, however noisy each is."""
    correct = np.random.default_rng(0).integers(2, size=100).astype(float)
    interval = Bootstrap(100, 100, 0.95, 0).mean(correct - correct)
    assert (interval.low, interval.value, interval.high) == (0, 0, 0)
