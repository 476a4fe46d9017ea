"""Layers drawn at random: as many as asked, each as likely as another, the same whenever they are asked for."""

from collections import Counter

import pytest
from scipy.stats import binom

from salf.engine.training.draws import LayerDraws

DRAWS = LayerDraws(depth=12, layers=3, steps=5, seed=7)


def test_an_interval_has_one_draw_of_distinct_layers():
    for first in range(0, 100, 5):
        (drawn,) = {DRAWS.at(step) for step in range(first, first + 5)}
        assert len(set(drawn)) == 3
        assert sorted(drawn) == list(drawn)
        assert {1 <= layer <= 12 for layer in drawn} == {True}
    assert [step for step in range(12) if DRAWS.begins(step)] == [0, 5, 10]
    assert [DRAWS.interval(step) for step in (0, 4, 5, 14)] == [0, 0, 1, 2]


def test_every_layer_is_as_likely_as_any_other():
    intervals = 2000
    times = Counter(layer for n in range(intervals) for layer in DRAWS.at(5 * n))
    low, high = binom.ppf([0.001, 0.999], intervals, 3 / 12)
    assert set(times) == set(range(1, 13))
    assert all(low <= count <= high for count in times.values())


def test_a_draw_follows_from_seed_and_interval_alone():
    same, other = LayerDraws(12, 3, 5, seed=7), LayerDraws(12, 3, 5, seed=8)
    assert [same.at(step) for step in (50, 0, 25)] == [DRAWS.at(step) for step in (50, 0, 25)]
    assert [other.at(5 * n) for n in range(10)] != [DRAWS.at(5 * n) for n in range(10)]


@pytest.mark.parametrize("steps", [0, 1, 5, 6, 23])
def test_the_layers_of_a_run_are_all_that_its_steps_train(steps):
    assert DRAWS.within(steps) == tuple(sorted({layer for step in range(steps) for layer in DRAWS.at(step)}))
