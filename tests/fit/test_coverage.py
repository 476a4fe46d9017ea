"""How often the intervals of a law with an onset hold the truth; those of a plain power law: test_bootstrap.py."""

import numpy as np
import pytest
from scipy.stats import binom

from salf.fitting.bootstrap import interval, resampled_means
from stages.fit.forms import LAWS


@pytest.mark.slow
def test_a_tails_curve_lies_in_its_intervals_as_often_as_they_say():
    """60 traces of 60 examples each, scattered about a plateau and a power law from space 16 on; nominal 90 %."""
    traces, nominal, form = 60, 0.9, LAWS[1]
    depth = np.arange(1.0, 31.0)
    truth = np.where(depth < 16, 1.3, 0.2 + 40 * depth**-1.4)
    spaces = np.array([8, 16, 20, 25, 30])
    inside = np.zeros(len(spaces))
    for seed in range(traces):
        generator = np.random.default_rng([3, seed])
        factors = generator.normal(scale=0.05, size=(60, 1)) + generator.normal(scale=0.05, size=(60, 30))
        values = truth * np.exp(factors - 0.05**2)  # log-normal factors of mean one
        fit = form.fit(values.mean(axis=0)[None])
        again = form.fit(resampled_means(values, 100, seed), fit.warm)
        low, high = interval(form.curve(again.theta, depth), nominal)
        inside += ((low <= truth) & (truth <= high))[spaces - 1]
    # 99 % band of a binomial share, for each of five spaces (Bonferroni).
    few, many = binom.ppf([0.01 / 10, 1 - 0.01 / 10], traces, nominal)
    assert ((few <= inside) & (inside <= many)).all(), inside / traces
