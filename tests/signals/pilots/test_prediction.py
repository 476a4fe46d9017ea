"""Predictions of every boundary: right on a planted law, their intervals as wide as they say."""

from types import SimpleNamespace

import numpy as np
import pytest

from stages.signals.joint_law import joint_law, predict
from tests.signals.pilots.planted import LAYERS, TRAINED, UNTRAINED, points, truth

FULL = 1024
EVERY = np.arange(LAYERS + 1)


def predicted(made, resamples=40, confidence=0.9, seed=1):
    params = SimpleNamespace(bootstrap=resamples, confidence=confidence, seed=seed)
    return predict(made, joint_law(made), TRAINED, FULL, params)


def test_every_boundary_at_a_size_that_no_pilot_had():
    found = predicted(points())
    np.testing.assert_allclose(found.loss, np.minimum(truth(EVERY, FULL), UNTRAINED), rtol=0.01)
    np.testing.assert_allclose(found.excess, found.loss - found.loss[0], atol=1e-12)
    assert found.excess_error[0] == 0


def test_nothing_is_predicted_to_be_worse_than_before_training():
    made = points(noise=0.02, spread=0.3)
    found = predicted(made)
    assert found.loss.max() <= made.untrained.mean()
    assert found.loss[LAYERS] == pytest.approx(made.untrained.mean())  # the norm alone: the law diverges there


def test_the_same_seed_gives_the_same_numbers_and_another_others():
    made = points(noise=0.02, spread=0.3)
    one, same, other = (predicted(made, 20, 0.9, seed).low for seed in (1, 1, 2))
    assert (one == same).all()
    assert (one != other).any()


def test_what_validation_examples_have_in_common_does_not_blur_differences():
    """Examples that are hard for every boundary alike widen the intervals of losses, not of their differences."""
    made = points(spread=0.5)
    found = predicted(made)
    assert (found.high - found.low)[15] > 10 * found.excess_error[15]


def test_without_a_law_the_largest_pilots_are_interpolated():
    made = points(boundaries=(0, 15), sizes=(64, 256), spread=0.3)
    found = predicted(made)
    largest = made.mean[made.examples == 256]
    line = np.polyval(np.polyfit([0, 15], largest, 1), EVERY)
    np.testing.assert_allclose(found.loss[:-1], line[:-1])
    assert found.loss[-1] == pytest.approx(made.untrained.mean())
    assert found.parameters is None
    error = made.losses[:, made.examples == 256][:, 1].std() / np.sqrt(len(made.losses))
    assert (found.high - found.low)[15] == pytest.approx(2 * 1.645 * error, rel=0.4)


@pytest.mark.slow
def test_intervals_hold_the_loss_of_one_more_fine_tune_as_often_as_they_say():
    """40 studies with noise of 3 % a training; each predicts boundaries 0, 12 and 20 at four times the largest size."""
    rng, hits, asked = np.random.default_rng(7), [], np.array([0, 12, 20])
    for study in range(40):
        made = points(noise=0.03, spread=0.2, validation=200, seed=study)
        found = predicted(made, resamples=60, seed=study)
        hardness = made.untrained.mean() / UNTRAINED  # of this validation split
        outcome = truth(asked, FULL) * hardness * np.exp(rng.normal(scale=0.03, size=3))
        hits.append((found.low[asked] <= outcome) & (outcome <= found.high[asked]))
    assert 0.8 <= np.mean(hits) <= 1.0
