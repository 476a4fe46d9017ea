"""Predictions of every boundary: right on a planted law, their intervals as wide as they say."""

import numpy as np
import pandas as pd
import pytest

from salf.fitting.joint import joint_law
from stages.signals.predictions import predict
from tests.signals.pilots.planted import DEPTH, LAYERS, UNTRAINED, pilots, truth

FULL = 1024


def predicted(runs, untrained, seed=1):
    rows = predict(joint_law(runs, 0.9, seed), LAYERS, untrained, FULL, 0.9, seed)
    return pd.DataFrame([row.model_dump() for row in rows])


def test_every_boundary_at_a_size_that_no_pilot_had():
    found = predicted(*pilots())
    np.testing.assert_allclose(found.loss, np.minimum(truth(LAYERS, FULL), UNTRAINED), rtol=0.01)
    np.testing.assert_allclose(found.excess, found.loss - found.loss[0], atol=1e-6)
    assert found.excess_error[0] == 0
    assert found.boundary.tolist() == list(range(DEPTH + 1))


def test_nothing_is_predicted_to_be_worse_than_before_training():
    runs, untrained = pilots(noise=0.02, spread=0.3)
    found = predicted(runs, untrained)
    assert found.loss.max() <= untrained[0] + 1e-6


def test_the_same_seed_gives_the_same_numbers_and_another_others():
    one, same, other = (predicted(*pilots(noise=0.02, spread=0.3, drawn=seed), seed).low for seed in (1, 1, 2))
    assert (one == same).all()
    assert (one != other).any()


def test_what_validation_examples_have_in_common_does_not_blur_differences():
    """Examples that are hard for every boundary alike widen the intervals of losses, not of their differences."""
    found = predicted(*pilots(spread=0.5))
    assert (found.high - found.low)[15] > 10 * found.excess_error[15]


def test_without_a_law_the_largest_pilots_are_interpolated():
    runs, untrained = pilots(boundaries=(4, 15), sizes=(64, 256), spread=0.3)
    found = predicted(runs, untrained)
    largest = runs.losses[runs.variables[:, 1] == 256]
    np.testing.assert_allclose(found.loss[:-1], np.interp(np.arange(DEPTH), [4, 15], largest), rtol=1e-6)
    assert found.loss[DEPTH] == pytest.approx(untrained[0])  # nothing trains
    error = runs.samples[:, runs.variables[:, 1] == 256][:, 1].std()
    assert (found.high - found.low)[15] == pytest.approx(2 * 1.645 * error, rel=0.4)


def test_what_was_measured_counts_also_at_the_last_layer():
    runs, untrained = pilots(boundaries=(DEPTH,), sizes=(64, 256))
    assert predicted(runs, untrained).loss[DEPTH] == pytest.approx(runs.losses[1])


@pytest.mark.slow
def test_intervals_hold_the_loss_of_one_more_fine_tune_as_often_as_they_say():
    """40 studies with noise of 3 % a training; each predicts boundaries 0, 12 and 20 at four times the largest size."""
    rng, hits, asked = np.random.default_rng(7), [], np.array([0, 12, 20])
    for study in range(40):
        runs, untrained = pilots(noise=0.03, spread=0.2, validation=200, seed=study, draws=60, drawn=study)
        found = predicted(runs, untrained, study)
        hardness = untrained[0] / UNTRAINED  # of this validation split
        outcome = truth(LAYERS[asked], FULL) * hardness * np.exp(rng.normal(scale=0.03, size=3))
        hits.append((found.low[asked] <= outcome) & (outcome <= found.high[asked]))
    assert 0.8 <= np.mean(hits) <= 1.0
