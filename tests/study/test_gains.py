"""Which layer a mean curve names, against closed forms."""

import numpy as np
import pandas as pd
import pytest

from stages.study.gains import layer_of_largest, local, observed, of_law, smoothed


def test_smoothing_is_a_centred_moving_mean():
    curve = np.random.default_rng(0).uniform(size=31)
    for window in (1, 3, 5):
        expected = pd.Series(curve).rolling(window, center=True, min_periods=1).mean()
        np.testing.assert_allclose(smoothed(curve, window), expected)


def test_layers_one_and_last_are_never_chosen_and_small_values_need_less():
    """Drops of 1, 3, 1.9 and 3.5 by layer from the second on: the third is the largest inside."""
    curve = np.array([10.0, 9.0, 6.0, 4.1, 0.6])
    assert layer_of_largest(observed(curve)) == 3
    exponents = [np.log(curve[k - 2] / curve[k - 1]) / np.log((k + 1) / k) for k in (2, 3, 4, 5)]
    np.testing.assert_allclose(local(curve), exponents)
    assert layer_of_largest(local(curve)) == 2 + int(np.argmax(exponents[:3]))
    assert layer_of_largest(observed(np.array([4.0, 3.0, 2.0, 1.0, 0.5]))) == 4  # of equals the deepest


@pytest.fixture
def risen():
    """Rises over eleven spaces, then is 2 + 50/k from the twelfth to the thirtieth."""
    spaces = np.arange(1.0, 31)
    return np.where(spaces < 12, 1 + 0.4 * spaces, 2 + 50 / spaces)


def test_a_law_of_the_falling_part_is_the_one_that_was_planted_there(risen):
    layers = np.arange(2, 31)
    found = of_law(risen, "marginal", "falling")
    assert np.isneginf(found[layers <= 12]).all()
    np.testing.assert_allclose(found[layers > 12], (risen[1:] / layers)[layers > 12], rtol=1e-3)  # an exponent of 1
    assert layer_of_largest(found) == 13  # the slope of a power law falls: always the first
    np.testing.assert_allclose(of_law(risen, "ratio", "falling")[layers > 12], 1, rtol=0.01)


def test_a_layer_that_does_more_than_the_law_says_has_the_largest_ratio(risen):
    risen[19:] -= 0.3
    assert layer_of_largest(of_law(risen, "ratio", "falling")) == 20


def test_over_the_whole_depth_every_layer_competes():
    spaces = np.arange(1.0, 31)
    found = of_law(0.5 + 3 / np.sqrt(spaces), "marginal", "whole")
    np.testing.assert_allclose(found, 0.5 * (0.5 + 3 / np.sqrt(spaces[1:])) / spaces[1:], rtol=1e-3)
    assert layer_of_largest(found) == 2


@pytest.mark.parametrize("layers", [2, 3, 5])
def test_models_of_few_layers_have_a_choice(layers):
    curve = np.linspace(3, 1, layers)
    for gain in ("ratio", "marginal"):
        assert of_law(curve, gain, "falling").shape == (layers - 1,)
