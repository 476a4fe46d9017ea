import numpy as np
from scipy.stats import binom, norm

from salf.fitting.bootstrap import interval, resampled_means
from salf.fitting.engine import fit_law
from salf.laws import POWER


def test_an_example_is_drawn_with_all_its_spaces():
    """Two examples, each constant over spaces: every resample has to be constant too."""
    resamples = resampled_means(np.array([[0.0] * 4, [1.0] * 4]), 50, seed=1)
    assert (resamples == resamples[:, :1]).all()
    assert set(np.unique(resamples)) == {0.0, 0.5, 1.0}


def test_spread_of_the_means_is_the_standard_error():
    values = np.random.default_rng(0).normal(size=(400, 2)) * [1.0, 5.0]
    resamples = resampled_means(values, 2000, seed=2)
    np.testing.assert_allclose(resamples.std(axis=0), values.std(axis=0) / 20, rtol=0.06)
    np.testing.assert_allclose(resamples.mean(axis=0), values.mean(axis=0), atol=0.02)


def test_same_seed_same_draws():
    values = np.random.default_rng(0).normal(size=(9, 3))
    assert (resampled_means(values, 20, 7) == resampled_means(values, 20, 7)).all()
    assert (resampled_means(values, 20, 7) != resampled_means(values, 20, 8)).any()


def test_interval_holds_the_stated_share_in_the_middle():
    samples = np.arange(1001.0)[:, None]
    np.testing.assert_allclose(np.ravel(interval(samples, 0.9)), [50.0, 950.0])


def test_intervals_contain_the_truth_as_often_as_they_say():
    """50 traces of 60 examples each, scattered about a known power law; nominal 90 %."""
    traces, nominal = 50, 0.9
    depth = np.arange(1.0, 31.0)
    truth = np.array([0.3, 1.2, 0.7])
    curve = truth[0] + truth[1] * depth ** -truth[2]
    generator = np.random.default_rng(11)
    factors = generator.normal(scale=0.05, size=(traces, 60, 1)) + generator.normal(scale=0.05, size=(traces, 60, 30))
    values = curve * np.exp(factors - 0.05**2)  # log-normal factors of mean one
    fits = fit_law(POWER, depth, values.mean(axis=1))
    resamples = np.concatenate([resampled_means(v, 100, seed) for seed, v in enumerate(values)])
    again = fit_law(POWER, depth, resamples, warm=np.repeat(fits.ends[:, :1], 100, axis=0))
    low, high = interval(POWER.natural(again.theta).reshape(traces, 100, 3).swapaxes(0, 1), nominal)
    inside = ((low <= truth) & (truth <= high)).sum(axis=0)
    # 99 % band of a binomial share, for each of three parameters (Bonferroni).
    few, many = binom.ppf([0.01 / 6, 1 - 0.01 / 6], traces, nominal)
    assert ((few <= inside) & (inside <= many)).all(), inside / traces


def test_intervals_of_a_mean_are_those_of_the_normal_distribution():
    values = np.random.default_rng(4).normal(loc=2.0, size=(500, 1))
    low, high = interval(resampled_means(values, 4000, seed=1), 0.9)
    half = norm.ppf(0.95) * values.std() / np.sqrt(500)
    np.testing.assert_allclose([low[0], high[0]], values.mean() + half * np.array([-1, 1]), atol=0.01)
