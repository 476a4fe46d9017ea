import numpy as np
import pandas as pd
import pytest
from scipy.stats import ttest_1samp
from sklearn.metrics import accuracy_score

from salf.errors import UserError
from stages.study.analysis import at_equal_rates
from stages.study.comparisons import compared, significant
from stages.study.reading import read_study
from stages.study.verdicts import choose, degenerate, leave_one_out, overall
from tests.study.conftest import by_rule, drawn_and_judged, judged, one, rows_of


def test_regrets_costs_and_differences_are_those_worked_by_hand(two_data_sets):
    found = judged(two_data_sets)
    half = one(found, "b", "half")
    assert (half.method, half.boundary, half.quality, half.cost_share) == ("freeze-2", 2, 80.0, 0.5)
    assert (half.regret, half.behind_full, half.best_boundary) == (10.0, 10.0, 0)
    assert half.regret_at_cost == 0  # the cheaper one is worse
    none = one(found, "b", "none")
    assert (none.regret, none.regret_at_cost, none.cost_share) == (70.0, 0.0, 0.1)
    assert one(found, "a", "half").regret == 0
    assert (one(found, "a", "half").p, one(found, "a", "full").p) == (1.0, None)
    oracle = one(found, "a", "oracle")
    assert (oracle.boundary, oracle.regret) == (2, 0)  # of equals the cheaper
    assert one(found, "b", "none").behind_full_low > 40
    assert one(found, "b", "none").p < 0.02


def test_luck_of_a_seed_is_no_regret_when_other_seeds_say_which_boundary_is_the_best(two_data_sets):
    """Half is right on 32 of 40 with both seeds, a rival of lower cost on 36 and 30."""
    for seed, right in ((1, 36), (2, 30)):
        two_data_sets.run("b", "freeze-3", right, seed, flops=30)
    half = one(judged(two_data_sets), "b", "half")
    assert half.regret_at_cost == 2.5  # 33 of 40
    # Seed 2 names half, which has 32 with seed 1; seed 1 names the rival, which has 30 with seed 2.
    assert half.regret_at_cost_cross_fitted == -2.5
    assert one(judged(two_data_sets), "b", "none").regret_at_cost_cross_fitted == 0  # nothing else is as cheap


def test_p_values_are_adjusted_over_the_rules_of_a_case(two_data_sets):
    found = [v for v in rows_of(judged(two_data_sets)) if v.data_set == "b" and v.rule not in ("full", "oracle")]
    assert len(found) == 3
    smallest = min(v.p for v in found)
    assert min(v.p_holm for v in found) == pytest.approx(min(1.0, 3 * smallest))
    assert all(v.p_holm >= v.p for v in found)


def test_a_boundary_that_was_not_measured_is_read_between_its_neighbours_and_says_so(two_data_sets):
    """On b boundary 0 tells 36 of 40 right for 100, boundary 2 tells 32 right for 50: 34 right for 75 between."""
    two_data_sets.choice("b", "early", 1)
    early = one(judged(two_data_sets), "b", "early")
    assert (early.interpolated, early.boundary, early.quality, early.cost_share) == (True, 1, 85.0, 0.75)
    assert (early.regret, early.best_boundary, early.seeds) == (5.0, 0, 2)
    for seed in (1, 2):
        two_data_sets.run("b", "freeze-1", 20, seed, flops=75)
    found = judged(two_data_sets)
    assert (one(found, "b", "early").interpolated, one(found, "b", "early").quality) == (False, 50.0)
    assert not found["interpolated"].any()


def test_a_choice_that_was_not_measured_says_so_and_counts_nowhere(two_data_sets):
    two_data_sets.choice("a", "odd", 3)  # nothing is read towards L, where no layer trains
    two_data_sets.choice("a", "blind", None)
    found = judged(two_data_sets)
    assert one(found, "a", "odd").behind_full is None
    assert one(found, "a", "odd").boundary == 3
    assert one(found, "a", "blind").behind_full is None
    assert {"odd", "blind"}.isdisjoint(overall(found).index)


def test_a_method_that_is_no_boundary_is_judged_by_its_own_fine_tune(two_data_sets):
    two_data_sets.run("a", "lisa", 30, flops=95)
    two_data_sets.run("b", "lisa", 30, flops=95)
    two_data_sets.run("a", "first-n", 20, flops=90)
    two_data_sets.choice("a", "first-n", 0)
    found = judged(two_data_sets)
    lisa, first = one(found, "a", "lisa"), one(found, "a", "first-n")
    assert (lisa.method, lisa.boundary, lisa.quality, lisa.regret) == ("lisa", None, 75.0, 5.0)
    assert (first.method, first.quality) == ("first-n", 50.0)


def test_equal_compute_is_held_against_full_fine_tuning(two_data_sets):
    for seed in (1, 2):
        two_data_sets.run("b", "freeze-2", 38, seed, budget="compute")
    drawn, found = drawn_and_judged(two_data_sets, 500)
    assert one(found, "b", "half").quality == 80.0
    over = by_rule(compared(found, drawn, "full", "compute"))
    assert (over["half"].difference, over["half"].groups) == (5.0, 1)  # of the one data set alone
    assert over["half"].low < 5 < over["half"].high
    assert "none" not in over


def test_equal_compute_is_read_over_the_seeds_that_both_have(tables):
    for seed, right in ((1, 40), (2, 20)):
        tables.run("a", "full", right, seed)
        tables.run("a", "freeze-2", 20, seed, flops=50)
    tables.run("a", "freeze-2", 30, seed=2, budget="compute")
    tables.choice("a", "half", 2)
    tables.choice("a", "full", 0)
    drawn, found = drawn_and_judged(tables, 50)
    assert by_rule(compared(found, drawn, "full", "compute"))["half"].difference == 75.0 - 50.0
    assert one(found, "a", "half").behind_full == 75.0 - 50.0


def test_a_boundary_that_few_seeds_have_stays_between_its_neighbours_whatever_longer_training_gave(two_data_sets):
    two_data_sets.run("b", "freeze-1", 40, 1)
    two_data_sets.run("b", "freeze-1", 38, 1, budget="compute")
    two_data_sets.choice("b", "shallow", 1)
    found = judged(two_data_sets)
    shallow, oracle = one(found, "b", "shallow"), one(found, "b", "oracle")
    assert (shallow.interpolated, shallow.quality) == (True, 85.0)
    assert oracle.reason.startswith("the best of 3 measured boundaries")


def test_a_loss_is_reported_in_nats_and_never_averaged_with_points(two_data_sets):
    two_data_sets.run("sums", "full", 40, measure="loss")
    two_data_sets.run("sums", "freeze-2", 20, measure="loss", flops=50)
    two_data_sets.choice("sums", "half", 2)
    found = judged(two_data_sets)
    half = one(found, "sums", "half")
    assert (half.unit, half.quality, half.regret) == ("nats", -1.5, 0.5)
    assert by_rule(overall(found))["half"].groups == 2


def test_a_rule_that_was_not_measured_everywhere_is_no_default(two_data_sets):
    """Towards boundary 4 nothing is read in between, so that nobody knows what layer 3 comes to on b."""
    two_data_sets.choice("a", "lucky", 2)
    two_data_sets.choice("b", "lucky", 3)
    two_data_sets.both_seeds("b2", {"full": 30}, group="b")
    two_data_sets.choice("b2", "lucky", 0)
    for rule in ("half", "none", "salf"):
        two_data_sets.choice("b2", rule, 0)
    found = judged(two_data_sets)
    lucky = by_rule(overall(found))["lucky"]
    assert (lucky.regret, lucky.groups, lucky.cases) == (0.0, 2, 2)
    assert choose(found, 0.9) == "half"


def test_what_deciding_costs_counts_against_a_rule(two_data_sets):
    for data_set, share in (("a", 1.0), ("b", 2.0)):
        two_data_sets.choice(data_set, "pilot", 0 if data_set == "b" else 2, deciding_share=share)
    found = judged(two_data_sets)
    pilot = by_rule(overall(found))["pilot"]
    assert (pilot.regret, pilot.cost_share, pilot.deciding_share) == (0.0, 0.75, 1.5)
    assert by_rule(overall(found))["half"].deciding_share == 0
    assert choose(found, 0.8) == "half"  # although pilot misses nothing
    assert choose(found, 2.25) == "pilot"


def test_beside_what_is_as_cheap_what_deciding_costs_counts_too(two_data_sets):
    for data_set in ("a", "b"):
        two_data_sets.choice(data_set, "pilot", 2, deciding_share=0.4 if data_set == "a" else 0.5)
    b = one(judged(two_data_sets), "b", "pilot")
    assert (b.regret, b.regret_at_cost) == (10.0, 10.0)  # for a half and a half one has full fine-tuning
    assert one(judged(two_data_sets), "b", "half").regret_at_cost == 0


def test_the_rule_is_the_one_of_least_regret_within_the_cost_on_every_data_set(two_data_sets):
    found = judged(two_data_sets)
    assert choose(found, 0.6) == "half"  # full costs too much
    assert choose(found, 0.2) == "none"
    assert choose(found, 0.05) is None
    assert choose(found[(found["rule"] != "half") | (found["data_set"] == "a")], 0.6) == "salf"


def test_a_rule_is_judged_where_it_was_not_chosen(two_data_sets):
    """salf freezes all layers on a, and half of them on b: b alone would choose it as soon as half, a never."""
    left = {row.group: row for row in rows_of(leave_one_out(judged(two_data_sets), 0.6))}
    assert {group: one.rule for group, one in left.items()} == {"a": "half", "b": "half"}
    assert (left["a"].regret, left["b"].regret) == (0.0, 10.0)


def test_data_sets_of_one_group_are_left_out_together(two_data_sets):
    for row in two_data_sets.runs:
        row["group"] = "one"
    found = judged(two_data_sets)
    assert leave_one_out(found, 0.6).empty
    half = by_rule(overall(found))["half"]
    assert (half.behind_full, half.groups_behind) == (5.0, 1)
    assert (half.groups, half.regret, half.regret_at_cost) == (1, 5.0, 0.0)  # what is cheaper is worse


def test_data_sets_count_alike_when_rules_are_compared_however_many_models_they_have(two_data_sets):
    """salf freezes all of a, which costs 50 points against half there, and does as half does on b, with two models."""
    two_data_sets.both_seeds("b2", {"full": 36, "freeze-2": 32, "freeze-4": 8}, group="b")
    for rule in ("half", "salf"):
        two_data_sets.choice("b2", rule, 2)
    drawn, found = drawn_and_judged(two_data_sets, 200)
    half = by_rule(compared(found, drawn, "salf"))["half"]
    assert half.difference == pytest.approx(25.0)
    rules = by_rule(overall(found))
    assert half.difference == pytest.approx(rules["salf"].behind_full - rules["half"].behind_full)
    assert half.low < 25 < half.high


def test_rules_are_compared_over_the_cases_that_both_were_measured_on(two_data_sets):
    drawn, found = drawn_and_judged(two_data_sets, 500)
    over = by_rule(compared(found, drawn, "salf"))
    assert set(over) == {"half", "none", "full"}
    assert over["half"].difference == pytest.approx((50 + 0) / 2)
    assert over["half"].low > 10
    assert over["none"].difference == pytest.approx((0 - 60) / 2)
    assert over["half"].p_holm <= 0.02


def test_only_the_last_settings_of_a_case_count(two_data_sets):
    first = len(two_data_sets.runs)
    for method, right in (("full", 20), ("freeze-2", 10)):
        two_data_sets.run("a", method, right, settings="later")
    assert first == 12
    found = judged(two_data_sets)
    assert (one(found, "a", "full").quality, one(found, "a", "full").seeds) == (50.0, 1)
    assert one(found, "b", "full").quality == 90.0


def test_a_parameter_that_came_since_leaves_earlier_rows_in_the_study(two_data_sets):
    """As the study itself, which does not measure them again, takes it."""
    two_data_sets.settings["later"] = {"epochs": 3, "new": True}
    two_data_sets.run("a", "freeze-3", 20, settings="later")
    two_data_sets.run("a", "freeze-3", 20, 2, settings="later")
    found = judged(two_data_sets)
    assert (one(found, "a", "full").quality, one(found, "a", "full").seeds) == (80.0, 2)


def test_of_a_method_with_settings_of_its_own_the_last_count(two_data_sets):
    for seed in (1, 2):
        two_data_sets.run("a", "lisa", 10, seed)
    two_data_sets.settings["own"] = {"lisa_layers": 4}
    two_data_sets.run("a", "lisa", 30, method_settings="own")
    lisa = one(judged(two_data_sets), "a", "lisa")
    assert (lisa.seeds, lisa.quality) == (1, 75.0)


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


def test_rules_that_cannot_say_what_looking_is_worth_are_named(two_data_sets):
    for data_set, boundaries in (("a", (0, 0, 2, 1)), ("b", (0, 1, 0, 2))):
        for rule, boundary in zip(("grad-norm", "spectrum", "affordable", "probe"), boundaries, strict=True):
            two_data_sets.choice(data_set, rule, boundary)
    assert degenerate(judged(two_data_sets), "tiny") == {
        "grad-norm": "freezes nothing with tiny",
        "spectrum": "freezes at most one layer with tiny",
        "affordable": "sees the cost alone",
    }


def test_the_same_rule_is_tested_on_these_datasets_and_over_datasets_like_these(two_data_sets):
    """Against salf half gains 50 points on a and none on b: certain for these two, not for others."""
    drawn, found = drawn_and_judged(two_data_sets, 500)
    over = compared(found, drawn, "salf")
    half = by_rule(over)["half"]
    assert half.p_holm < 0.05
    assert half.p_elsewhere == pytest.approx(ttest_1samp([50, 0], 0).pvalue) == 0.5
    assert [significant(over, end)["half"] for end in ("", "_elsewhere")] == [1, 0]
    assert half.p_holm_elsewhere == 1.0  # times three rules
    assert half.detectable < half.detectable_holm < half.detectable_elsewhere < half.detectable_holm_elsewhere


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
    assert (case.natural_chance, other.natural_quality("freeze-4")) == (0.9, None)


def test_full_and_half_are_compared_at_every_rate_that_both_were_trained_at(two_data_sets):
    """On b half was trained at 0.2, too, with the first seed; full fine-tuning was tried there and lost."""
    kept = [row for row in two_data_sets.runs if row["data_set"] == "b"]
    half = next(row for row in kept if (row["method"], row["seed"]) == ("freeze-2", 1))
    full = next(row for row in kept if (row["method"], row["seed"]) == ("full", 1))
    for row in kept:
        row["learning_rate"] = 0.2 if row["method"] == "freeze-2" else 0.1
    lost = {name: full[name] for name in ("data_set", "model", "seed", "method", "budget", "point")}
    rates = [{**lost, "learning_rate": rate, "test_accuracy": 0.7, "validation_accuracy": 0.6} for rate in (0.1, 0.2)]
    pd.DataFrame(rates).to_csv(two_data_sets.folder / "rates.csv", index=False)
    found = at_equal_rates(read_study(two_data_sets.write()), "tiny", "freeze-2").set_index(
        ["data_set", "learning_rate"]
    )
    assert list(found.index) == [("a", 0.1), ("b", 0.2)]
    assert (found.loc[("a", 0.1), "kept"], found.loc[("b", 0.2), "kept"]) == ("both", "half")
    assert half["quality"] == 0.8
    assert list(found.loc[("b", 0.2), ["test_accuracy_full", "test_accuracy_half", "seeds"]]) == [70.0, 80.0, 1]
