"""Gains by hand and by closed forms."""

import numpy as np

from salf import gains
from salf.laws import POWER
from tests.salf.fitting.natural import internal

CURVE = np.array([[2.0, 1.0, 0.5, 0.4]])


def test_observed_is_what_each_layer_took_away():
    np.testing.assert_allclose(gains.observed(CURVE), [[1.0, 0.5, 0.1]])


def test_local_exponents_by_hand():
    expected = [np.log(2) / np.log(2), np.log(2) / np.log(3 / 2), np.log(1.25) / np.log(4 / 3)]
    np.testing.assert_allclose(gains.local(CURVE), [expected])


def test_a_pure_power_law_of_k_plus_one_has_one_local_exponent():
    k = np.arange(0.0, 12.0)
    curve = 3.0 * (k[None] + 1) ** -0.6
    np.testing.assert_allclose(gains.local(curve), np.full((1, 11), 0.6))


def test_ratio_is_one_where_the_curve_is_the_law_and_undefined_at_layer_one():
    theta = internal(POWER, np.array([[0.2, 1.5, 0.8]]))
    curve = np.concatenate([[[9.0]], POWER.curve(theta, np.arange(1.0, 11.0))], axis=1)
    ratio = gains.ratio(curve, theta, 0.0)
    assert np.isnan(ratio[0, 0])
    np.testing.assert_allclose(ratio[0, 1:], 1.0)


def test_ratio_by_hand():
    theta = internal(POWER, np.array([[0.1, 0.6, 1.0]]))  # predicted: 0.6/1 - 0.6/2 = 0.3, 0.6/2 - 0.6/3 = 0.1
    np.testing.assert_allclose(gains.ratio(CURVE, theta, 0.0)[0, 1:], [0.5 / 0.3, 0.1 / 0.1])


def test_noise_over_a_vanishing_prediction_does_not_win():
    """A steep law predicts 1e-9 at layer 10; a gain of 1e-4 there must not beat the real one at layer 3."""
    theta = internal(POWER, np.array([[0.5, 1.0, 9.0]]))
    curve = np.full((1, 11), 0.6)
    curve[:, 3:] -= 0.1
    curve[:, 10:] -= 1e-4
    assert gains.ratio(curve, theta, 0.0)[0, 1:].argmax() + 2 != 3
    assert gains.ratio(curve, theta, 1e-3)[0, 1:].argmax() + 2 == 3


def test_marginal_is_kaplans_derivative():
    """-d/dk of A·k^-α (no E) by finite differences."""
    theta = internal(POWER, np.array([[1e-300, 1.5, 0.8]]))
    k = np.arange(1.0, 9.0)
    curve = np.concatenate([[[9.0]], POWER.curve(theta, k)], axis=1)
    slope = (POWER.curve(theta, k - 1e-6) - POWER.curve(theta, k + 1e-6)) / 2e-6
    np.testing.assert_allclose(gains.marginal(curve, theta), slope, rtol=1e-6)
