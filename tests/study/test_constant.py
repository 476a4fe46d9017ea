"""A rule beside the fixed depth of its price, against sums by hand."""

import numpy as np
import pytest

from stages.study.comparisons import over_constant
from tests.study.conftest import by_rule, drawn_and_judged

PRICES = {"full": 100, "freeze-1": 80, "freeze-2": 50, "freeze-3": 20, "freeze-4": 10}
RIGHT = {"a": (36, 36, 32, 20, 4), "b": (32, 31, 30, 29, 8)}  # of forty, by boundary


@pytest.fixture
def study(tables):
    """Two data sets at all boundaries of a model of four layers; rules are added by the tests."""
    for data_set, counts in RIGHT.items():
        for (method, flops), right in zip(PRICES.items(), counts, strict=True):
            for seed in (1, 2):
                tables.run(data_set, method, right, seed, flops=flops)
    return tables


def over(tables, **boundaries):
    """The rules against their twins; ``rule=(boundary on a, boundary on b)``."""
    for rule, chosen in boundaries.items():
        for data_set, boundary in zip(RIGHT, chosen, strict=True):
            tables.choice(data_set, rule, boundary)
    drawn, found = drawn_and_judged(tables, 400)
    return by_rule(over_constant(found, drawn))


def points(data_set, boundary):
    return 100 * RIGHT[data_set][boundary] / 40


def test_a_rule_is_held_against_the_depth_that_costs_as_much_on_the_mean(study):
    """80 and 20 per cent are 50 on the mean, which is boundary 2; 80 and 50 are 65, half-way between 1 and 2."""
    found = over(study, spread=(1, 3), near=(1, 2))
    expected = (points("a", 1) - points("a", 2) + points("b", 3) - points("b", 2)) / 2
    assert found["spread"].difference == pytest.approx(expected) == 3.75
    twin = [(points(data_set, 1) + points(data_set, 2)) / 2 for data_set in "ab"]
    assert found["near"].difference == pytest.approx((points("a", 1) - twin[0] + points("b", 2) - twin[1]) / 2) == 1.875
    assert found["near"].groups == 2
    assert found["near"].low < found["near"].difference < found["near"].high


def test_a_rule_that_aims_well_is_ahead_and_one_that_aims_badly_behind(study):
    """On a nothing is lost by boundary 1 and much by 3; on b it is nearly even."""
    found = over(study, well=(0, 3), badly=(3, 0))
    assert found["well"].difference > 0 > found["badly"].difference


def test_a_fixed_depth_is_its_own_twin_and_not_compared(study):
    assert over(study, fixed=(2, 2), full=(0, 0)) == {}


def test_a_model_is_left_out_where_no_depth_costs_as_little(study):
    """Of 10 and 20 per cent the mean is less than boundary 3 costs, the deepest above which a layer trains."""
    assert over(study, deep=(4, 3)) == {}


def test_a_model_where_a_rule_always_takes_the_deepest_is_not_lost_to_rounding(study):
    for row in study.runs:
        row["flops"] = {"full": 18, "freeze-1": 15, "freeze-2": 12, "freeze-3": 6, "freeze-4": 3}[row["method"]]
    for boundary, right in enumerate((30, 28, 20)):
        method = f"freeze-{boundary}" if boundary else "full"
        for seed in (1, 2):
            study.run("b2", method, right, seed, group="b", model="other", flops=18 - 2 * boundary, layers=4)
    study.choice("b2", "near", 2)
    study.choices[-1]["model"] = "other"
    found = over(study, near=(2, 3))
    twin = [np.interp(2.5, range(5), [points(data_set, k) for k in range(5)]) for data_set in "ab"]
    gap_b = (points("b", 3) - twin[1] + 0.0) / 2  # with the other model it is its own twin
    assert found["near"].difference == pytest.approx((points("a", 2) - twin[0] + gap_b) / 2)


def test_losses_are_no_points(study):
    for row in study.runs:
        row["measure"] = "loss"
    assert over(study, spread=(1, 3)) == {}
