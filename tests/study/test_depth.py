import numpy as np
import pytest

from stages.study.comparisons import by_depth
from stages.study.reading import read_study
from stages.study.resamples import Resamples


def by_depth_of(tables, resamples=200):
    cases = read_study(tables.write()).cases
    return by_depth([Resamples(case, resamples, n) for n, case in enumerate(cases)])


def test_the_mean_over_data_sets_is_the_one_worked_by_hand(two_data_sets):
    """At half of the layers a loses nothing and b ten points; in between both go straight."""
    depth = by_depth_of(two_data_sets)
    assert depth.shares[0] == 0
    assert depth.shares[-1] == 0.5  # boundary 2 of 4 is the deepest short of all layers
    np.testing.assert_allclose(depth.mean, -10 * depth.shares, atol=1e-12)
    a, b = depth.lines
    np.testing.assert_allclose(a.over_full, [0, 0, -50])
    np.testing.assert_allclose(b.over_full, [0, -10, -70])
    assert depth.low[0] == depth.high[0] == 0  # full against itself
    assert depth.low[-1] < -5 < depth.high[-1]


def test_data_sets_of_one_group_count_as_one(two_data_sets):
    two_data_sets.both_seeds("b2", {"full": 36, "freeze-2": 24, "freeze-4": 8}, group="b")
    two_data_sets.choice("b2", "full", 0)
    assert by_depth_of(two_data_sets).mean[-1] == pytest.approx((0 + (-10 - 30) / 2) / 2)


def test_the_mean_ends_where_the_shallowest_case_does(two_data_sets):
    """Another model of eight layers, measured at two and at six."""
    for method in ("full", "freeze-2", "freeze-6"):
        for seed in (1, 2):
            two_data_sets.run("deep", method, 20, seed, group="b", model="deep", layers=8)
    two_data_sets.choice("deep", "full", 0)
    depth = by_depth_of(two_data_sets)
    assert depth.shares[-1] == 0.5
    assert depth.mean[-1] == pytest.approx((0 + (-10 + 0) / 2) / 2)


def test_losses_are_no_points(two_data_sets):
    for row in two_data_sets.runs:
        row["measure"] = "loss"
    assert by_depth_of(two_data_sets) is None


def test_full_and_nothing_alone_make_no_line(tables):
    for method in ("full", "freeze-4"):
        tables.run("a", method, 30)
    tables.choice("a", "full", 0)
    assert by_depth_of(tables) is None
