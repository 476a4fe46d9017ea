from typing import get_args

import numpy as np
import pytest

from salf.fitting.bootstrap import interval, resampled_means
from salf.gains import by_law, falling, named
from salf.laws import POWER
from salf.selectors import GainName
from stages.fit.analysis import Laws, all_gains, resolution, win_shares
from tests.fit.shapes import noisy_examples

CURVE = np.array([[2.0, 1.0, 0.5, 0.4]])


def test_win_shares_count_argmaxes_between_the_first_layer_and_the_last():
    resampled = np.array([[9.0, 2.0, 1.0, 9.0], [9.0, 1.0, 2.0, 0.0], [9.0, 3.0, 1.0, 9.0], [9.0, 1.0, 1.0, 9.0]])
    assert win_shares(resampled).tolist() == [0.0, 0.5, 0.5, 0.0]  # of equals the deepest, as plans take it


def test_resolution_is_the_median_standard_error_of_a_gain():
    noise = np.random.default_rng(0).normal(scale=0.01, size=(4000, 6))
    assert resolution(1.0 + noise) == pytest.approx(0.01 * np.sqrt(2), rel=0.05)
    assert resolution(np.ones((5, 6))) == pytest.approx(1e-6)


def test_without_a_law_ratio_and_marginal_are_undefined_and_nobody_wins_them():
    found = {name: [] for name in get_args(GainName)}
    for gain in all_gains("loss", CURVE[0], np.repeat(CURVE, 5, axis=0), Laws(), Laws(), 0.9):
        found[gain.gain].append(gain)
    assert all(np.isnan(gain.value) for gain in found["ratio"])
    assert [gain.win_share for gain in found["marginal"]] == [0, 0, 0]
    assert [gain.win_share for gain in found["observed"]] == [0, 1, 0]
    assert [gain.embedding_step for gain in found["observed"]] == [True, False, False]
    assert [gain.low for gain in found["observed"]] == [gain.value for gain in found["observed"]] == [1.0, 0.5, 0.1]


def rise_and_fall(peak, alpha=2.0, layers=30):
    """Rises up to space ``peak`` and falls from there by a pure power law, as losses do; [L+1]."""
    spaces = np.arange(layers + 1.0)
    return np.where(spaces < peak, 20 + 10 * spaces / peak, 30 * (np.maximum(spaces, 1) / peak) ** -alpha)


def layers_by_law(curves):
    return named(by_law(falling(curves), curves.shape[1] - 1))


@pytest.mark.parametrize("peak", [1, 8, 15, 22])
@pytest.mark.parametrize("alpha", [0.5, 2.0, 5.0])
def test_the_law_names_the_layer_at_which_a_noisy_curve_begins_to_fall(peak, alpha):
    curve = np.mean(noisy_examples(rise_and_fall(peak, alpha), 4000, 0.3, seed=peak, layer_noise=0.2), axis=0)
    fitted = falling(curve[None])
    assert fitted.peaks == [peak]
    assert POWER.natural(fitted.fit.theta)[0, 2] == pytest.approx(alpha, rel=0.15)
    assert layers_by_law(curve[None]) == [peak + 1]


def test_gains_by_the_law_are_its_differences_and_nothing_up_to_the_peak():
    curve = rise_and_fall(10)
    gains = by_law(falling(curve[None]), 30)[0]
    np.testing.assert_allclose(gains[10:], curve[10:-1] - curve[11:], rtol=1e-4)
    assert not gains[:10].any()


def test_where_nothing_falls_no_gain_is_above_zero():
    rising = np.linspace(1.0, 2.0, 11)
    assert by_law(falling(rising[None]), 10).max() <= 1e-9
    assert layers_by_law(rising[None]) == [6]  # the peak: five spaces are left for the law


def test_the_bootstrap_s_interval_covers_where_the_curve_begins_to_fall():
    """Intervals of 90 % over draws of 32 examples each: binomial error of 40 draws is 5 %."""
    truth, covered, widths = rise_and_fall(15, 1.0), [], []
    for draw in range(40):
        examples = noisy_examples(truth, 32, 0.3, seed=draw, layer_noise=0.15)
        low, high = interval(layers_by_law(resampled_means(examples, 100, draw)), 0.9)
        covered.append(low <= 16 <= high)
        widths.append(high - low)
    assert np.mean(covered) >= 0.8
    assert 0 < np.mean(widths) < 6
