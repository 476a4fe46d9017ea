"""The first round's comparison of selectors, against sums by hand and closed forms."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ttest_1samp
from sklearn.metrics import accuracy_score

from salf.errors import UserError
from stages.study.reading import read_study
from tests.study.conftest import by_rule, drawn_and_judged, judged, one, rows_of
from tests.study.first_round import choose, compare, degenerate, headline, leave_one_out, overall, significant


def compared(tables, resamples=200):
    drawn, table = drawn_and_judged(tables, resamples)
    return {row["rule"]: row for row in compare(table, drawn)}


def test_costs_and_differences_are_those_worked_by_hand(two_data_sets):
    found = judged(two_data_sets)
    half = one(found, "b", "half")
    assert (half.method, half.boundary, half.quality, half.cost_share) == ("freeze-2", 2, 80.0, 0.5)
    assert (half.over_full, half.seeds) == (-10.0, 2)
    assert (one(found, "b", "none").over_full, one(found, "b", "none").cost_share) == (-70.0, 0.1)
    over = compared(two_data_sets)
    assert over["half"]["compared"]["mean_difference_points"] == over["half"]["over_full"] == -5.0
    low, high = over["none"]["compared"]["interval_examples"]
    assert low < -60 < high < -40
    assert over["full"]["compared"] is None


def test_a_boundary_that_was_not_measured_is_read_between_its_neighbours_and_says_so(two_data_sets):
    """On b boundary 0 tells 36 of 40 right for 100, boundary 2 tells 32 right for 50: 34 right for 75 between."""
    two_data_sets.choice("b", "early", 1)
    early = one(judged(two_data_sets), "b", "early")
    assert (early.interpolated, early.boundary, early.quality, early.cost_share) == (True, 1, 85.0, 0.75)
    assert early.seeds == 2
    for seed in (1, 2):
        two_data_sets.run("b", "freeze-1", 20, seed, flops=75)
    found = judged(two_data_sets)
    assert (one(found, "b", "early").interpolated, one(found, "b", "early").quality) == (False, 50.0)
    assert not found["interpolated"].any()


def test_a_choice_that_was_not_measured_says_so_and_counts_nowhere(two_data_sets):
    two_data_sets.choice("a", "odd", 3)  # nothing is read towards L, where no layer trains
    two_data_sets.choice("a", "blind", None)
    found = judged(two_data_sets)
    assert (one(found, "a", "odd").over_full, one(found, "a", "odd").boundary) == (None, 3)
    assert one(found, "a", "blind").over_full is None
    assert {"odd", "blind"}.isdisjoint(overall(found).index)


def test_a_selector_that_is_a_method_is_judged_by_its_own_fine_tune(two_data_sets):
    two_data_sets.run("a", "first-n", 20, flops=90)
    two_data_sets.choice("a", "first-n", 0)
    first = one(judged(two_data_sets), "a", "first-n")
    assert (first.method, first.quality) == ("first-n", 50.0)


def test_a_boundary_that_few_seeds_have_stays_between_its_neighbours_whatever_longer_training_gave(two_data_sets):
    two_data_sets.run("b", "freeze-1", 40, 1)
    two_data_sets.run("b", "freeze-1", 38, 1, budget="compute")
    two_data_sets.choice("b", "shallow", 1)
    shallow = one(judged(two_data_sets), "b", "shallow")
    assert (shallow.interpolated, shallow.quality) == (True, 85.0)


def test_a_loss_is_reported_in_nats_and_never_averaged_with_points(two_data_sets):
    two_data_sets.run("sums", "full", 40, measure="loss")
    two_data_sets.run("sums", "freeze-2", 20, measure="loss", flops=50)
    two_data_sets.choice("sums", "half", 2)
    found = judged(two_data_sets)
    half = one(found, "sums", "half")
    assert (half.unit, half.quality, half.over_full) == ("nats", -1.5, -0.5)
    assert by_rule(overall(found))["half"].groups == 2


def test_a_selector_that_was_not_measured_everywhere_is_not_chosen(two_data_sets):
    """Towards boundary 4 nothing is read in between, so that nobody knows what layer 3 comes to on b."""
    two_data_sets.choice("a", "lucky", 2)
    two_data_sets.choice("b", "lucky", 3)
    found = judged(two_data_sets)
    lucky = by_rule(overall(found))["lucky"]
    assert (lucky.over_full, lucky.groups, lucky.cases) == (0.0, 1, 1)
    assert choose(found, 0.9) == "half"


def test_what_deciding_costs_counts_against_a_selector(two_data_sets):
    for data_set, share in (("a", 1.0), ("b", 2.0)):
        two_data_sets.choice(data_set, "pilot", 0 if data_set == "b" else 2, deciding_share=share)
    found = judged(two_data_sets)
    pilot = by_rule(overall(found))["pilot"]
    assert (pilot.over_full, pilot.cost_share, pilot.deciding_share) == (0.0, 0.75, 1.5)
    assert choose(found, 0.8) == "half"  # although pilot loses nothing
    assert choose(found, 2.25) == "pilot"


def test_the_best_within_the_cost_is_chosen_and_judged_where_it_was_not_chosen(two_data_sets):
    """salf freezes all layers on a, and half of them on b."""
    found = judged(two_data_sets)
    assert choose(found, 0.6) == "half"  # full costs too much
    assert choose(found, 0.2) == "none"
    assert choose(found, 0.05) is None
    assert choose(found[(found["rule"] != "half") | (found["data_set"] == "a")], 0.6) == "salf"
    left = {row.group: row for row in rows_of(leave_one_out(found, 0.6))}
    assert {group: (one.rule, one.over_full) for group, one in left.items()} == {
        "a": ("half", 0.0),
        "b": ("half", -10.0),
    }


def test_data_sets_of_one_group_are_left_out_together_and_count_as_one(two_data_sets):
    for row in two_data_sets.runs:
        row["group"] = "one"
    found = judged(two_data_sets)
    assert leave_one_out(found, 0.6).empty
    half = by_rule(overall(found))["half"]
    assert (half.over_full, half.groups, half.groups_worse) == (-5.0, 1, 1)
    assert compared(two_data_sets)["half"]["compared"]["interval_datasets"] is None


def test_only_the_last_settings_of_a_case_count(two_data_sets):
    for method, right in (("full", 20), ("freeze-2", 10)):
        two_data_sets.run("a", method, right, settings="later")
    found = judged(two_data_sets)
    assert (one(found, "a", "full").quality, one(found, "a", "full").seeds) == (50.0, 1)
    assert one(found, "b", "full").quality == 90.0


def test_a_parameter_that_came_since_leaves_earlier_rows_in_the_study(two_data_sets):
    """As the study itself, which does not measure them again, takes it."""
    two_data_sets.settings["later"] = {**two_data_sets.settings["s"], "new": True}
    for seed in (1, 2):
        two_data_sets.run("a", "freeze-3", 20, seed, settings="later")
    found = judged(two_data_sets)
    assert (one(found, "a", "full").quality, one(found, "a", "full").seeds) == (80.0, 2)


def test_other_test_examples_are_refused(two_data_sets):
    two_data_sets.said.pop()
    with pytest.raises(UserError, match="b, tiny: freeze-4: its test examples differ"):
        judged(two_data_sets)


def test_without_full_fine_tuning_there_is_nothing_to_compare_with(tables):
    tables.run("a", "freeze-2", 20)
    tables.choice("a", "half", 2)
    with pytest.raises(UserError, match="no dataset's full fine-tuning is measured yet"):
        judged(tables)


def test_a_random_boundary_is_the_mean_over_all_and_not_one_draw(two_data_sets):
    """On b boundary 2 tells 32 of 40 right; 1 lies half-way to full's 36; nothing is known of 3, towards all layers."""
    for data_set in ("a", "b"):
        two_data_sets.choice(data_set, "random", 2)
    random = one(judged(two_data_sets), "b", "random")
    assert (random.boundary, random.quality, random.cost_share) == (None, (80 + 85) / 2, (0.5 + 0.75) / 2)
    for seed in (1, 2):
        two_data_sets.run("b", "freeze-3", 20, seed, flops=30)
    random = one(judged(two_data_sets), "b", "random")
    assert random.quality == pytest.approx((80 + 85 + 50) / 3)


def test_selectors_that_cannot_say_what_looking_is_worth_are_named(two_data_sets):
    for data_set, boundaries in (("a", (0, 0, 2, 1)), ("b", (0, 1, 0, 2))):
        for rule, boundary in zip(("grad-norm", "spectrum", "affordable", "probe"), boundaries, strict=True):
            two_data_sets.choice(data_set, rule, boundary)
    assert degenerate(judged(two_data_sets), "tiny") == {
        "grad-norm": "freezes nothing with tiny",
        "spectrum": "freezes at most one layer with tiny",
        "affordable": "sees the cost alone",
    }


def test_a_difference_is_tested_on_these_datasets_and_over_datasets_like_these(two_data_sets):
    """none loses 50 points on a and 70 on b: certain for these two, and by a t-test of two values not for others."""
    over = compared(two_data_sets, 500)
    none = over["none"]["compared"]
    assert none["p_holm"] < 0.05
    assert none["p_datasets"] == pytest.approx(ttest_1samp([-50, -70], 0).pvalue)
    assert none["p_holm_datasets"] == pytest.approx(min(1, 3 * none["p_datasets"]))
    assert [significant(none, end) for end in ("", "_datasets")] == [-1, 0]
    assert none["interval_datasets"] == pytest.approx(tuple(ttest_1samp([-50, -70], 0).confidence_interval(0.95)))


def test_the_headline_counts_selectors_that_are_better_or_worse_than_a_fixed_depth():
    def row(points, p, p_datasets, degenerate=None):
        over = {"mean_difference_points": points, "p_holm": p, "p_holm_datasets": p_datasets}
        return {"over_fixed": over, "degenerate": degenerate}

    text = headline(
        "tiny", [row(0.5, 0.01, 1.0), row(-0.5, 0.06, 1.0), row(-0.6, 0.04, 0.03), row(-1, 0.01, 1.0, "blind")]
    )
    assert text == (
        "Of 3 selectors that look at the data or the model (tiny), 1 on these datasets and 0 over datasets like these "
        "are significantly better than a fixed depth of the same cost; 1 and 1 are significantly worse (Holm's "
        "procedure, at 5%)."
    )
    assert headline("tiny", [{"over_fixed": None, "degenerate": None}]) == ""


def test_accuracy_under_the_natural_label_frequencies_weighs_the_same_answers(two_data_sets):
    """The last 32 of 40 are wrong but one in four; scikit-learn weighs them as the dataset's test file does."""
    pd.DataFrame({"data_set": "a", "label": ["rare", "common"], "share": [0.1, 0.9]}).to_csv(
        two_data_sets.folder / "priors.csv", index=False
    )
    case, other = read_study(two_data_sets.write()).cases
    labels = np.array([two_data_sets.label(i) for i in range(40)])
    right = np.arange(40) < 12  # freeze-4
    weights = np.where(labels == "rare", 0.1 / (labels == "rare").mean(), 0.9 / (labels == "common").mean())
    expected = accuracy_score(np.ones(40), right, sample_weight=weights)
    assert case.natural_quality("freeze-4") == pytest.approx(100 * expected)
    assert other.natural_quality("freeze-4") is None


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
    found = compared(tables, 400)
    return {rule: row["over_fixed"] for rule, row in found.items() if row["over_fixed"]}


def points(data_set, boundary):
    return 100 * RIGHT[data_set][boundary] / 40


def test_a_rule_is_held_against_the_depth_that_costs_as_much_on_the_mean(study):
    """80 and 20 per cent are 50 on the mean, which is boundary 2; 80 and 50 are 65, half-way between 1 and 2."""
    found = over(study, spread=(1, 3), near=(1, 2))
    expected = (points("a", 1) - points("a", 2) + points("b", 3) - points("b", 2)) / 2
    assert found["spread"]["mean_difference_points"] == pytest.approx(expected) == 3.75
    twin = [(points(data_set, 1) + points(data_set, 2)) / 2 for data_set in "ab"]
    assert (
        found["near"]["mean_difference_points"]
        == pytest.approx((points("a", 1) - twin[0] + points("b", 2) - twin[1]) / 2)
        == 1.875
    )
    low, high = found["near"]["interval_examples"]
    assert low < found["near"]["mean_difference_points"] < high


def test_a_rule_that_aims_well_is_ahead_and_one_that_aims_badly_behind(study):
    """On a nothing is lost by boundary 1 and much by 3; on b it is nearly even."""
    found = over(study, well=(0, 3), badly=(3, 0))
    assert found["well"]["mean_difference_points"] > 0 > found["badly"]["mean_difference_points"]


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
    assert found["near"]["mean_difference_points"] == pytest.approx((points("a", 2) - twin[0] + gap_b) / 2)


def test_losses_are_no_points(study):
    for row in study.runs:
        row["measure"] = "loss"
    assert over(study, spread=(1, 3)) == {}
