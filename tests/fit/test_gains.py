from typing import get_args

import numpy as np
import pytest

from salf.selectors import GainName
from stages.fit.analysis import all_gains, resolution, win_shares

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
    for gain in all_gains("loss", CURVE[0], np.repeat(CURVE, 5, axis=0), None, None, 0.9):
        found[gain.gain].append(gain)
    assert all(np.isnan(gain.value) for gain in found["ratio"])
    assert [gain.win_share for gain in found["marginal"]] == [0, 0, 0]
    assert [gain.win_share for gain in found["observed"]] == [0, 1, 0]
    assert [gain.embedding_step for gain in found["observed"]] == [True, False, False]
    assert [gain.low for gain in found["observed"]] == [gain.value for gain in found["observed"]] == [1.0, 0.5, 0.1]
