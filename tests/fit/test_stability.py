"""Stability of the named layer against the sample's size: closed forms and direct draws."""

import numpy as np
from scipy.stats import norm

from salf.fitting.bootstrap import resampled_means
from salf.gains import named, observed
from stages.fit.gains import win_shares
from stages.fit.stability import STABLE, artifact, stabilities

FLOOR = 1e-9


def two_rivals(count, gap, noise, seed=0):
    """Curves over five spaces: layers 2 and 3 compete, layer 2 is ahead by ``gap`` ± ``noise`` an example."""
    ahead = np.random.default_rng(seed).normal(size=count)
    ahead = gap + noise * (ahead - ahead.mean()) / ahead.std()
    middle = 5.0 - 1.0 - ahead / 2
    return np.column_stack([np.full(count, 9.0), np.full(count, 5.0), middle, np.full(count, 3.0), np.full(count, 3.0)])


def test_the_share_of_draws_that_agree_is_that_of_the_normal_law():
    """Layer 2 wins where the mean of m draws of its lead is positive: Φ(√m · gap / noise)."""
    found = stabilities(two_rivals(200, gap=0.1, noise=0.6), FLOOR, 4000, seed=1)["observed"]
    assert found.layer == 2
    assert found.sizes == (8, 16, 32, 64, 128, 200)
    np.testing.assert_allclose(found.same, norm.cdf(np.sqrt(found.sizes) / 6), atol=0.02)
    assert found.enough == 64  # Φ(64½/6) = 0.909, Φ(32½/6) = 0.827
    np.testing.assert_allclose(found.shares.sum(axis=1), 1.0)


def test_draws_of_all_examples_agree_as_often_as_resamples_of_the_bootstrap_do():
    examples = np.random.default_rng(3).normal(size=(60, 12)).cumsum(axis=1) + 50
    found = stabilities(examples, FLOOR, 3000, seed=5)["observed"]
    shares = win_shares(observed(resampled_means(examples, 3000, seed=6)))
    np.testing.assert_allclose(found.shares[-1], shares, atol=0.04)


def test_one_size_alone_where_there_are_few_examples_and_nothing_where_no_layer_competes():
    assert stabilities(two_rivals(5, 0.1, 0.6), FLOOR, 50, seed=1)["local"].sizes == (5,)
    assert stabilities(np.ones((9, 3)), FLOOR, 50, seed=1) == {}


def test_a_layer_that_always_wins_is_stable_from_the_smallest_size_on_and_one_that_never_settles_is_not():
    assert stabilities(two_rivals(40, 0.5, 0.001), FLOOR, 100, seed=1)["observed"].enough == 8
    torn = stabilities(two_rivals(40, 0.01, 2.0), FLOOR, 400, seed=1)["observed"]
    assert torn.enough is None
    entry = artifact(torn, 0.9)
    assert (entry["enough"], entry["stable_share"]) == (None, STABLE)
    assert [(size["low"], size["high"]) for size in entry["sizes"]] == [(2, 3)] * 4
    for size in entry["sizes"]:
        assert abs(size["layers"]["2"] + size["layers"]["3"] - 1) < 1e-6


def test_same_seed_same_shares():
    examples = two_rivals(100, 0.1, 0.6)
    one, again, other = (stabilities(examples, FLOOR, 100, seed)["local"].shares for seed in (1, 1, 2))
    assert (one == again).all()
    assert (one != other).any()


def test_only_layers_between_the_first_and_the_last_are_named():
    gains = np.array([[9.0, 1.0, 2.0, 8.0], [9.0, 3.0, 3.0, 8.0]])
    assert named(gains).tolist() == [3, 3]
