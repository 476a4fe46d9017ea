"""Stability of the named layer against the sample's size: closed forms and direct draws."""

import numpy as np
import pandas as pd
from scipy.stats import norm

from salf.fitting.bootstrap import resampled_means
from salf.gains import named, observed
from stages.fit.analysis import STABLE, stabilities, win_shares


def shares(stability):
    """The share of the draws of each size that names a layer, one column per layer that any draw names."""
    table = pd.DataFrame([size.layers for size in stability.sizes]).fillna(0.0)
    return table.rename(columns=int).sort_index(axis=1)


def two_rivals(count, gap, noise, seed=0):
    """Curves over five spaces: layers 2 and 3 compete, layer 2 is ahead by ``gap`` ± ``noise`` an example."""
    ahead = np.random.default_rng(seed).normal(size=count)
    ahead = gap + noise * (ahead - ahead.mean()) / ahead.std()
    middle = 5.0 - 1.0 - ahead / 2
    return np.column_stack([np.full(count, 9.0), np.full(count, 5.0), middle, np.full(count, 3.0), np.full(count, 3.0)])


def test_the_share_of_draws_that_agree_is_that_of_the_normal_law():
    """Layer 2 wins where the mean of m draws of its lead is positive: Φ(√m · gap / noise)."""
    found = stabilities(two_rivals(200, gap=0.1, noise=0.6), 4000, 1, 0.9)["observed"]
    assert found.layer == 2
    sizes = [size.examples for size in found.sizes]
    assert sizes == [8, 16, 32, 64, 128, 200]
    np.testing.assert_allclose([size.same_layer for size in found.sizes], norm.cdf(np.sqrt(sizes) / 6), atol=0.02)
    assert found.enough == 64  # Φ(64½/6) = 0.909, Φ(32½/6) = 0.827
    np.testing.assert_allclose(shares(found).sum(axis=1), 1.0)


def test_draws_of_all_examples_agree_as_often_as_resamples_of_the_bootstrap_do():
    examples = np.random.default_rng(3).normal(size=(60, 12)).cumsum(axis=1) + 50
    found = stabilities(examples, 3000, 5, 0.9)["observed"]
    expected = win_shares(observed(resampled_means(examples, 3000, seed=6)))
    last = [found.sizes[-1].layers.get(str(layer), 0.0) for layer in range(1, 12)]
    np.testing.assert_allclose(last, expected, atol=0.04)


def test_one_size_alone_where_there_are_few_examples_and_nothing_where_no_layer_competes():
    assert stabilities(two_rivals(5, 0.1, 0.6), 50, 1, 0.9)["local"].sizes[0].examples == 5
    assert stabilities(np.ones((9, 3)), 50, 1, 0.9) == {}


def test_a_layer_that_always_wins_is_stable_from_the_smallest_size_on_and_one_that_never_settles_is_not():
    assert stabilities(two_rivals(40, 0.5, 0.001), 100, 1, 0.9)["observed"].enough == 8
    torn = stabilities(two_rivals(40, 0.01, 2.0), 400, 1, 0.9)["observed"]
    assert (torn.enough, torn.stable_share) == (None, STABLE)
    assert [(size.low, size.high) for size in torn.sizes] == [(2, 3)] * 4
    assert all(abs(size.layers["2"] + size.layers["3"] - 1) < 1e-6 for size in torn.sizes)


def test_same_seed_same_shares():
    examples = two_rivals(100, 0.1, 0.6)
    one, again, other = (shares(stabilities(examples, 100, seed, 0.9)["local"]) for seed in (1, 1, 2))
    assert one.equals(again)
    assert not one.equals(other)


def test_only_layers_between_the_first_and_the_last_are_named():
    gains = np.array([[9.0, 1.0, 2.0, 8.0], [9.0, 3.0, 3.0, 8.0]])
    assert named(gains).tolist() == [3, 3]
