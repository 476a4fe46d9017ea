import numpy as np
import pandas as pd
import pytest
from scipy.stats import false_discovery_control, norm, ttest_1samp
from sklearn.metrics import balanced_accuracy_score

from salf.errors import UserError
from stages.study.reading import read_study
from stages.study.resamples import Resamples, detectable, over_other_groups, p_value
from tests.study.conftest import judged, one
from tests.study.first_round import holm

EXAMPLES = 40


def test_holm_is_the_procedure_worked_by_hand():
    """Holm 1979 on four p-values: multiplied by 4, 3, 2, 1 in ascending order, never decreasing, at most 1."""
    adjusted = holm(pd.Series({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}))
    assert adjusted.to_dict() == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02})
    assert holm(pd.Series({"a": 0.9, "b": 0.8})).to_dict() == {"a": 1.0, "b": 1.0}
    assert holm(pd.Series(dtype=float)).empty


def test_holm_is_never_milder_than_benjamini_and_hochberg_and_never_harsher_than_bonferroni():
    raw = np.random.default_rng(0).uniform(size=30)
    adjusted = holm(pd.Series(raw)).sort_index().to_numpy()
    assert (adjusted >= false_discovery_control(raw) - 1e-12).all()
    assert (adjusted <= np.minimum(1, 30 * raw) + 1e-12).all()


def test_p_values_are_those_of_a_normal_difference():
    rng = np.random.default_rng(1)
    for shift in (0.0, 1.0, 2.0):
        drawn = rng.normal(shift, 1, 200_000)
        assert p_value(drawn) == pytest.approx(2 * norm.sf(shift), abs=0.005)
    assert p_value(np.ones(100)) == 2 / 100  # never 0
    assert p_value(np.zeros(100)) == 1.0
    assert p_value(np.array([0.1 + 0.2 - 0.3] * 100)) == 1.0  # the same sums in another order


def test_the_resampled_mean_of_one_seed_has_the_binomial_error(tables):
    tables.run("a", "full", 30)
    tables.choice("a", "full", 0)
    (case,) = read_study(tables.write()).cases
    drawn = Resamples(case, 20_000, 1).quality("full")
    assert drawn.mean() == pytest.approx(75, abs=0.2)
    assert drawn.std() == pytest.approx(100 * np.sqrt(0.75 * 0.25 / 40), rel=0.03)


def test_differences_are_paired(tables):
    """Two methods that are right on the same examples but for two: the error is that of the two alone."""
    tables.run("a", "full", 32)
    tables.run("a", "freeze-2", 30, flops=50)
    tables.choice("a", "half", 2)
    (case,) = read_study(tables.write()).cases
    drawn = Resamples(case, 20_000, 1).over("freeze-2", "full")
    share = 2 / 40
    assert drawn.std() == pytest.approx(100 * np.sqrt(share * (1 - share) / 40), rel=0.03)


def test_seeds_are_resampled_too_and_the_same_for_all_methods(tables):
    """Between seeds all examples flip: the error is that of a draw of two seeds, and cancels in differences."""
    for method in ("full", "freeze-2"):
        tables.run("a", method, 40, seed=1)
        tables.run("a", method, 0, seed=2)
    tables.choice("a", "half", 2)
    (case,) = read_study(tables.write()).cases
    one = Resamples(case, 20_000, 1)
    assert sorted(set(one.quality("full").round(7))) == [0.0, 50.0, 100.0]
    assert one.quality("full").std() == pytest.approx(100 * np.sqrt(0.125), rel=0.03)
    assert np.abs(one.over("freeze-2", "full")).max() == pytest.approx(0)


def test_a_boundary_that_few_seeds_have_does_not_cost_the_others_theirs(tables):
    for seed in (1, 2, 3):
        for method in ("full", "freeze-2"):
            tables.run("a", method, 20, seed)
    tables.run("a", "freeze-3", 40, seed=1)
    tables.choice("a", "half", 2)
    (case,) = read_study(tables.write()).cases
    assert {method: run.seeds for (method, _), run in case.runs.items()} == {"full": (1, 2, 3), "freeze-2": (1, 2, 3)}


def test_all_boundaries_are_read_with_the_same_seeds(tables):
    for seed, right in ((1, 40), (2, 0)):
        tables.run("a", "full", right, seed)
        tables.run("a", "lisa", right, seed)
    tables.run("a", "freeze-2", 20, seed=1)
    tables.choice("a", "half", 2)
    (case,) = read_study(tables.write()).cases
    assert {method: run.seeds for (method, _), run in case.runs.items()} == {
        "full": (1,),
        "freeze-2": (1,),
        "lisa": (1, 2),
    }
    tables.run("a", "freeze-2", 20, seed=2)
    (case,) = read_study(tables.write()).cases
    half = one(judged(tables, 500), "a", "half")
    assert (half.seeds, half.quality, half.over_full) == (2, 50.0, 0.0)


def test_what_is_at_another_learning_rate_than_the_methods_first_seed_is_not_read(tables):
    """Since it was tuned further; another boundary waits for its own first seed."""
    for seed in (1, 2):
        for method in ("full", "freeze-2"):
            tables.run("a", method, 20, seed)
    tables.run("a", "full", 20, seed=1, budget="compute")
    tables.choice("a", "half", 2)
    for row in tables.runs:
        if (row["method"], row["seed"], row["budget"]) == ("full", 1, "epochs"):
            row["learning_rate"] = 0.2
    study = read_study(tables.write())
    assert {(method, budget): run.seeds for (method, budget), run in study.cases[0].runs.items()} == {
        ("full", "epochs"): (1,),
        ("freeze-2", "epochs"): (1,),
    }
    assert (len(study.runs), study.measured) == (2, 5)


def test_a_method_that_lacks_seeds_is_compared_over_those_that_both_have(tables):
    """Lisa with the first seed alone, in which full fine-tuning was lucky."""
    tables.run("a", "full", 40, seed=1)
    tables.run("a", "full", 0, seed=2)
    tables.run("a", "lisa", 20, seed=1)
    tables.choice("a", "full", 0)
    (case,) = read_study(tables.write()).cases
    drawn = Resamples(case, 500, 1)
    assert drawn.quality("lisa").mean() == pytest.approx(50, abs=2)
    assert drawn.over("lisa", "full").mean() == pytest.approx(-50, abs=2)


def test_cases_with_the_same_test_examples_draw_them_alike_and_others_do_not(tables):
    for data_set, examples in (("a", EXAMPLES), ("b", EXAMPLES), ("c", EXAMPLES - 1)):
        tables.run(data_set, "full", [i % 2 for i in range(examples)], group="g")
        tables.choice(data_set, "full", 0)
    a, b, c = (Resamples(case, 300, 1).quality("full") for case in read_study(tables.write()).cases)
    np.testing.assert_array_equal(a, b)
    assert abs(np.corrcoef(a, c)[0, 1]) < 0.2


def test_the_interval_over_other_data_sets_is_students_over_their_means():
    """Of a group with two models the mean counts."""
    values = [("a", 1.0), ("b", 5.0), ("b", 15.0), ("c", 4.0)]
    found, test = (
        over_other_groups([(group, np.array(value)) for group, value in values]),
        ttest_1samp([1.0, 10.0, 4.0], 0),
    )
    assert (found["low"], found["high"]) == pytest.approx(test.confidence_interval(0.95))
    assert found["p"] == pytest.approx(test.pvalue)
    # SciPy's own p-value of no difference at all is not a number (scipy/scipy#20179).
    assert over_other_groups([("a", np.array(0.0)), ("b", np.array(0.0))])["p"] == 1
    assert over_other_groups([("a", np.array(2.0)), ("b", np.array(2.0))])["p"] == 0
    assert over_other_groups([("a", np.array(1.0)), ("a", np.array(2.0))]) is None


def test_the_interval_over_other_data_sets_covers_their_mean_as_often_as_it_says():
    """Nine data sets of a spread of their own, measured with noise: what is measured is spread by both."""
    rng = np.random.default_rng(3)
    measured = rng.normal(1.0, 1.2, (2000, 9)) + rng.normal(0, 0.9, (2000, 9))
    bounds = [over_other_groups([(str(i), np.array(v)) for i, v in enumerate(one)]) for one in measured]
    assert np.mean([one["low"] <= 1.0 <= one["high"] for one in bounds]) == pytest.approx(0.95, abs=0.015)


@pytest.mark.parametrize("groups", [9, None])
def test_a_detectable_difference_is_found_in_four_of_five_repetitions(groups):
    """By t-tests of groups, and by normal tests of a known error."""
    rng, error = np.random.default_rng(5), 0.4
    true = detectable(error, groups - 1 if groups else np.inf)
    if groups:
        samples = rng.normal(true, error * np.sqrt(groups), (20_000, groups))
        found = ttest_1samp(samples, 0, axis=1).pvalue < 0.05
    else:
        found = 2 * norm.sf(np.abs(rng.normal(true, error, 20_000)) / error) < 0.05
    assert found.mean() == pytest.approx(0.8, abs=0.02)


def test_balanced_accuracy_is_that_of_scikit_learn(tables):
    right = np.random.default_rng(4).integers(2, size=EXAMPLES).tolist()
    tables.run("a", "full", right, measure="balanced-accuracy")
    tables.choice("a", "full", 0)
    (case,) = read_study(tables.write()).cases
    truth = [tables.label(i) for i in range(EXAMPLES)]
    other = {"rare": "common", "common": "rare"}
    said = [label if one else other[label] for label, one in zip(truth, right, strict=True)]
    assert case.quality("full") == pytest.approx(100 * balanced_accuracy_score(truth, said))
    assert case.unit == "points"
    drawn = Resamples(case, 200, 1)
    counts = np.random.default_rng([1, case.test_set]).multinomial(EXAMPLES, np.full(EXAMPLES, 1 / EXAMPLES), size=200)
    resampled = [(np.repeat(truth, count), np.repeat(said, count)) for count in counts]
    whole = [i for i, (labels, _) in enumerate(resampled) if set(labels) == set(truth)]
    assert len(whole) > 190
    expected = [100 * balanced_accuracy_score(*resampled[i]) for i in whole]
    np.testing.assert_allclose(drawn.quality("full")[1:][whole], expected)


def test_labels_that_were_not_kept_cannot_be_counted_by(tables):
    tables.label = dict.fromkeys(range(EXAMPLES)).get
    tables.run("a", "full", 30, measure="balanced-accuracy")
    tables.choice("a", "full", 0)
    with pytest.raises(UserError, match="a, tiny: test examples without labels"):
        read_study(tables.write())
