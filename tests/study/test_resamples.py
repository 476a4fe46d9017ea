import numpy as np
import pytest
from scipy.stats import false_discovery_control, norm

from stages.study.measured import Run, read_study
from stages.study.resamples import Resamples, cross_fitted, holm, p_value
from stages.study.verdicts import verdicts


def test_holm_is_the_procedure_worked_by_hand():
    """Holm 1979 on four p-values: multiplied by 4, 3, 2, 1 in ascending order, never decreasing, at most 1."""
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}) == pytest.approx(
        {"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02}
    )
    assert holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0}
    assert holm({}) == {}


def test_holm_is_never_milder_than_benjamini_and_hochberg_and_never_harsher_than_bonferroni():
    values = dict(enumerate(np.random.default_rng(0).uniform(size=30)))
    adjusted = np.array(list(holm(values).values()))
    raw = np.array(list(values.values()))
    assert (adjusted >= false_discovery_control(raw) - 1e-12).all()
    assert (adjusted <= np.minimum(1, 30 * raw) + 1e-12).all()


def test_p_values_are_those_of_a_normal_difference():
    rng = np.random.default_rng(1)
    for shift in (0.0, 1.0, 2.0):
        drawn = rng.normal(shift, 1, 200_000)
        assert p_value(drawn) == pytest.approx(2 * norm.sf(shift), abs=0.005)
    assert p_value(np.ones(99)) == 2 / 100  # never 0
    assert p_value(np.zeros(99)) == 1.0


def test_the_resampled_mean_of_one_seed_has_the_binomial_error(tables):
    tables.run("a", "full", 30)
    tables.choice("a", "full", 0)
    (case,) = read_study(tables.write()).cases
    drawn = Resamples(case, 20_000, 1).means["full", "epochs"]
    assert drawn.mean() == pytest.approx(0.75, abs=0.002)
    assert drawn.std() == pytest.approx(np.sqrt(0.75 * 0.25 / 40), rel=0.03)


def test_differences_are_paired(tables):
    """Two methods that are right on the same examples but for two: the error is that of the two alone."""
    tables.run("a", "full", 32)
    tables.run("a", "freeze-2", 30, flops=50)
    tables.choice("a", "half", 2)
    (case,) = read_study(tables.write()).cases
    drawn = Resamples(case, 20_000, 1).difference("freeze-2", "full")
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
    assert sorted(set(one.means["full", "epochs"].round(9))) == [0.0, 0.5, 1.0]
    assert one.means["full", "epochs"].std() == pytest.approx(np.sqrt(0.125), rel=0.03)
    assert np.abs(one.difference("freeze-2", "full")).max() == pytest.approx(0)


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
    (half,) = [v for v in verdicts(Resamples(case, 500, 1), 0.95) if v.rule == "half"]
    assert (half.seeds, half.quality, half.behind_full) == (2, 50.0, 0.0)


def test_a_method_without_a_drawn_seed_is_read_at_those_that_it_has(tables):
    tables.run("a", "full", 40, seed=1)
    tables.run("a", "full", 0, seed=2)
    tables.run("a", "lisa", 20, seed=1)
    tables.choice("a", "full", 0)
    (case,) = read_study(tables.write()).cases
    assert Resamples(case, 500, 1).means["lisa", "epochs"].mean() == pytest.approx(0.5, abs=0.02)


def test_the_best_of_equals_is_not_better_than_they_are():
    """Forty coins with a right side of one half: the luckiest looks good, and owes that to its own examples."""
    rng = np.random.default_rng(2)
    lucky, fair = [], []
    for _ in range(40):
        runs = [Run((1,), rng.integers(2, size=(1, 100)).astype(float), 1.0, 1.0) for _ in range(40)]
        lucky.append(max(run.values.mean() for run in runs))
        fair.append(cross_fitted(runs).mean())
    assert np.mean(lucky) > 0.6
    assert np.mean(fair) == pytest.approx(0.5, abs=0.02)


def test_a_lucky_seed_does_not_count():
    """Each of nine methods is right on everything with one of three seeds, and a fair coin with the other two."""
    values = np.random.default_rng(3).integers(2, size=(9, 3, 400)).astype(float)
    for method in range(9):
        values[method, method % 3] = 1.0
    runs = [Run((1, 2, 3), each, 1.0, 1.0) for each in values]
    assert cross_fitted(runs).mean() == pytest.approx(0.5, abs=0.03)
    assert max(run.values.mean() for run in runs) > 0.65
    assert cross_fitted([Run((1,), values[0, :1], 1.0, 1.0)]).mean() == 1.0  # one seed: its luck counts
