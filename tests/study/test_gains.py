"""Which layer a mean curve names, against closed forms."""

import numpy as np
import pandas as pd
import pytest

from stages.study.laws import by_law, by_step, layer_of_largest, smoothed

LAYERS = np.arange(1, 31)


def test_smoothing_is_a_centred_moving_mean_that_leaves_the_embeddings_out():
    curve = np.random.default_rng(0).uniform(size=31)
    for window in (1, 3, 5):
        expected = pd.Series(curve[1:]).rolling(window, center=True, min_periods=1).mean()
        np.testing.assert_allclose(smoothed(curve, window), [curve[0], *expected])


def test_layers_one_and_last_are_never_chosen_and_small_values_need_less():
    """Drops of 90, 1, 3, 1.9 and 3.5 by layer: the third is the largest inside, the fourth in its share."""
    curve = np.array([100.0, 10.0, 9.0, 6.0, 4.1, 0.6])
    assert layer_of_largest(by_step(curve, "observed")) == 3
    exponents = [np.log(curve[k - 1] / curve[k]) / np.log((k + 1) / k) for k in (2, 3, 4)]
    assert layer_of_largest(by_step(curve, "local")) == 2 + int(np.argmax(exponents)) == 4
    assert layer_of_largest(by_step(np.arange(6.0, 0, -1), "observed")) == 4  # of equals the deepest


@pytest.fixture
def risen():
    """Rises up to the eleventh space, then is 2 + 50/k."""
    spaces = np.arange(31.0)
    return np.where(spaces < 12, 1 + 0.4 * spaces, 2 + 50 / np.maximum(spaces, 1))


def test_a_law_of_the_falling_part_is_the_one_that_was_planted_there(risen):
    behind = LAYERS > 12
    found = by_law(risen, "marginal", "falling")
    assert np.isneginf(found[~behind]).all()
    np.testing.assert_allclose(found[behind], (risen[1:] / LAYERS)[behind], rtol=1e-3)  # an exponent of 1
    assert layer_of_largest(found) == 13  # the slope of a power law falls: always the first
    np.testing.assert_allclose(by_law(risen, "ratio", "falling")[behind], 1, rtol=0.01)


def test_a_layer_that_does_more_than_the_law_says_has_the_largest_ratio(risen):
    risen[20:] -= 0.3
    assert layer_of_largest(by_law(risen, "ratio", "falling")) == 20


def test_the_falling_part_has_five_spaces_at_least(risen):
    risen[28] = 100
    found = by_law(risen, "marginal", "falling")
    assert np.isneginf(found[LAYERS <= 12]).all()
    assert np.isfinite(found[LAYERS > 12]).all()


def test_over_the_whole_depth_every_layer_competes():
    curve = np.array([9.0, *(0.5 + 3 / np.sqrt(LAYERS))])
    found = by_law(curve, "marginal", "whole")
    np.testing.assert_allclose(found[1:], (0.5 * curve[1:] / LAYERS)[1:], rtol=1e-3)
    assert layer_of_largest(found) == 2


@pytest.mark.parametrize("layers", [3, 5])
def test_models_of_few_layers_have_a_choice(layers):
    curve = np.linspace(3, 1, layers + 1)
    for gain in ("ratio", "marginal"):
        assert 2 <= layer_of_largest(by_law(curve, gain, "falling")) < layers
