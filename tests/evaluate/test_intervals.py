"""Intervals and scores over classes against scikit-learn and known distributions."""

import warnings

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, f1_score

from stages.evaluate.scores import Bootstrap

SCORES = ("balanced_accuracy", "macro_f1")


def by_sklearn(truth, said):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # labels that are predicted and never true
        return balanced_accuracy_score(truth, said), f1_score(truth, said, average="macro", zero_division=0)


def classes(*sizes):
    return np.repeat([f"class {n}" for n in range(len(sizes))], sizes)


@pytest.mark.parametrize("known", [5, 3], ids=["all classes occur", "some are only predicted"])
@pytest.mark.parametrize("seed", range(3))
def test_scores_over_classes_are_scikit_learns(seed, known):
    """Recalls of classes that are only predicted do not count: online-ml/river#1953."""
    rng = np.random.default_rng(seed)
    truth, said = rng.integers(known, size=60).astype(str), rng.integers(5, size=60).astype(str)
    ours = Bootstrap(60, 50, 0.95, 0, list(truth)).over_classes(list(said))
    assert [ours[name].value for name in SCORES] == pytest.approx(by_sklearn(truth, said))
    assert all(one.low <= one.value <= one.high for one in ours.values())


def test_every_resample_keeps_the_classes_sizes_and_is_scored_by_itself():
    rng = np.random.default_rng(0)
    truth, said = rng.permutation(classes(30, 8, 2)), rng.permutation(classes(30, 8, 2))
    bootstrap = Bootstrap(40, 250, 0.9, 7, list(truth))
    picks = bootstrap.picks_within_classes
    assert picks.shape == (250, 40)
    assert all(sorted(truth[row]) == sorted(truth) for row in picks)
    assert len(np.unique(picks)) == 40  # every example is drawn somewhere
    ours = bootstrap.over_classes(list(said))
    each = [f1_score(truth[p], said[p], average="macro", labels=np.unique(truth), zero_division=0) for p in picks]
    assert ours["macro_f1"].resampled == pytest.approx(each)
    recalls = [balanced_accuracy_score(truth[p], said[p]) for p in picks]
    assert ours["balanced_accuracy"].resampled == pytest.approx(recalls)


@pytest.mark.parametrize("sizes", [(30, 30, 1), (3,) * 20, (1, 1), (500, 1, 1), (40,)])
def test_a_perfect_predictor_is_certain_however_rare_a_class_is(sizes):
    """A class without test examples costs nothing (Lightning-AI/torchmetrics#300), a rare one neither."""
    truth = list(classes(*sizes))
    for score in Bootstrap(len(truth), 200, 0.95, 0, truth).over_classes(truth).values():
        assert (score.low, score.value, score.high) == (1, 1, 1)


def test_resamples_of_rare_classes_scatter_around_the_score():
    """Resampling all rows together loses whole classes: for 20 classes of 3 its mean lies 0.06 below the score."""
    rng = np.random.default_rng(0)
    truth = classes(*[3] * 20)
    said = np.where(rng.random(60) < 0.85, truth, rng.permutation(truth))
    for score in Bootstrap(60, 1000, 0.95, 0, list(truth)).over_classes(list(said)).values():
        assert score.resampled.mean() == pytest.approx(score.value, abs=0.02)


@pytest.mark.parametrize("sizes", [(100, 100), (400, 100), (60,) * 5])
def test_intervals_over_classes_hold_the_truth_as_often_as_they_say(sizes):
    """400 draws of known confusion: 90 % intervals hold the population's scores, within three deviations."""
    rng = np.random.default_rng(2)
    truth, known = classes(*sizes), np.unique(classes(*sizes))

    def answers(labels):
        return np.where(rng.random(len(labels)) < 0.7, labels, known[rng.integers(len(known), size=len(labels))])

    population = np.repeat(truth, 2000)
    expected = by_sklearn(population, answers(population))
    held = np.zeros(2)
    for seed in range(400):
        ours = Bootstrap(len(truth), 200, 0.9, seed, list(truth)).over_classes(list(answers(truth)))
        held += [ours[name].low <= value <= ours[name].high for name, value in zip(SCORES, expected, strict=True)]
    assert np.abs(held / 400 - 0.9) == pytest.approx(0, abs=3 * np.sqrt(0.9 * 0.1 / 400))


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
    bootstrap = Bootstrap(100, 100, 0.95, 0)
    gap = bootstrap.mean(correct) - bootstrap.mean(correct)
    assert (gap.low, gap.value, gap.high, gap.detectable) == (0, 0, 0, 0)


def test_scores_over_classes_need_labels():
    with pytest.raises(ValueError, match="need the examples' labels"):
        Bootstrap(3, 20, 0.9, 0).over_classes(["a", "b", "a"])


def test_a_detectable_difference_is_found_in_80_percent_of_draws():
    """Two models on 400 examples: a test at 95 % whose true difference is the detectable one rejects in 80 %."""
    rng = np.random.default_rng(3)
    gap = np.repeat([-1.0, 0.0, 1.0], [40, 320, 40])  # no difference
    detectable = Bootstrap(400, 2000, 0.95, 0).mean(gap).detectable
    up = (0.2 + detectable) / 2
    found = 0
    for seed in range(300):
        seen = rng.choice([-1.0, 0.0, 1.0], p=[0.2 - up, 0.8, up], size=400)
        found += Bootstrap(400, 300, 0.95, seed).mean(seen).low > 0
    assert abs(found / 300 - 0.8) < 3 * np.sqrt(0.8 * 0.2 / 300)


@pytest.mark.parametrize("differing", [0.02, 0.1, 0.3])
def test_equal_models_differ_significantly_in_one_test_of_twenty(differing):
    """400 pairs of equally good models that disagree on 5, 24 or 72 of 240 examples; McNemar's question."""
    rng = np.random.default_rng(4)
    shares = [differing / 2, 1 - differing, differing / 2]
    alarms = 0
    for seed in range(400):
        gap = Bootstrap(240, 400, 0.95, seed).mean(rng.choice([-1.0, 0.0, 1.0], p=shares, size=240))
        alarms += not gap.low <= 0 <= gap.high
    assert alarms / 400 < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 400)
