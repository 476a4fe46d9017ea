"""What there is to gain by choosing per dataset, against planted curves and sums by hand."""

import numpy as np
import pytest

from stages.study.reading import read_study
from tests.study.conftest import rows_of
from tests.study.first_round import headroom, interactions, several_seeds

COSTS = (100, 80, 60, 40, 20)


def cases_of(tables, quality, examples=200, seeds=3, rng_seed=0):
    """Datasets whose runs answer with the chances ``quality[data_set][boundary]``, drawn anew for every run."""
    rng = np.random.default_rng(rng_seed)
    for data_set, chances in quality.items():
        for boundary, chance in enumerate(chances):
            for seed in range(seeds):
                right = rng.binomial(1, chance, examples).tolist()
                method = f"freeze-{boundary}" if boundary else "full"
                tables.run(data_set, method, right, seed, flops=COSTS[boundary], layers=5, validation_accuracy=chance)
        tables.choice(data_set, "full", 0)
    return read_study(tables.write()).cases


def rows(cases):
    return {(one.picked_by, one.aim): one for one in rows_of(headroom(cases))}


def interaction(cases):
    (found,) = rows_of(interactions(cases))
    return found


def test_curves_that_differ_by_a_constant_alone_show_no_interaction(tables):
    found = interaction(cases_of(tables, {"abcdef"[n]: [0.5 + n / 20] * 5 for n in range(6)}))
    assert found.boundaries == "0 1 2 3 4"
    assert found.p > 0.05
    assert found.observed < found.noise_high


def test_the_noise_that_is_expected_is_that_of_drawn_examples_and_seeds(tables):
    """Of n examples and S runs of independent answers, p(1-p)/n per run: over S seeds, and once more over examples."""
    found = interaction(cases_of(tables, {name: [0.5] * 5 for name in "abcdefgh"}))
    variance = 100**2 * 0.25 / 200 / 3  # of a mean over three runs, counted as seeds' and as examples'
    assert found.noise == pytest.approx(2 * variance, rel=0.2)


def test_curves_that_fall_at_different_depths_do(tables):
    steep, flat = [0.9, 0.9, 0.6, 0.5, 0.4], [0.9, 0.9, 0.9, 0.9, 0.85]
    found = interaction(cases_of(tables, {"a": steep, "b": flat, "c": steep, "d": flat}))
    assert found.p < 0.001
    assert found.excess == pytest.approx(100 * np.std(np.subtract(steep, flat) / 2) * np.sqrt(4 / 3 * 5 / 4), rel=0.3)


def test_luck_counts_where_the_pick_has_seen_the_score_and_not_where_it_is_cross_fitted(tables):
    found = rows(cases_of(tables, {name: [0.5] * 5 for name in "abcdefgh"}))
    seen, fair = found["seen", "trade 0.5"], found["cross-fitted", "trade 0.5"]
    assert seen.gain > 1
    assert abs(fair.gain) < 2 * fair.gain_error
    assert abs(fair.behind_full) < 2


def test_a_pick_that_knows_where_curves_fall_gains_what_the_fixed_depth_loses(tables):
    """Two fall behind boundary 1, two not at all: the pick is at 80 and 20 %, the fixed depth at 50 % for all."""
    steep, flat = [0.9, 0.9, 0.3, 0.3, 0.3], [0.9] * 5
    cases = cases_of(tables, {"a": steep, "b": flat, "c": steep, "d": flat}, examples=2000)
    one = rows(cases)["cross-fitted", "trade 18"]
    assert one.cost_share == pytest.approx(0.5, abs=0.02)
    assert one.fixed_depth == pytest.approx(0.5, abs=0.02)
    assert one.behind_full == pytest.approx(0, abs=1)
    assert one.gain == pytest.approx(30, abs=1.5)  # 60 points on half of the datasets
    assert one.gain_error == pytest.approx(30 / np.sqrt(3), rel=0.1)
    assert one.least_gain == pytest.approx(20, abs=1.5)


def test_cross_fitting_picks_by_the_other_seed_and_scores_on_this_one(tables):
    """Each run is all right or all wrong. Boundary 1 has only the first seed, so that it is picked for the second."""
    answers = {"full": (40, 40), "freeze-1": (40, 0), "freeze-2": (0, 40), "freeze-4": (0, 0)}
    for data_set in "ab":
        for method, counts in answers.items():
            for seed, right in enumerate(counts):
                tables.run(data_set, method, right, seed, flops=100 - 20 * int(method[-1]) if "-" in method else 100)
        tables.choice(data_set, "full", 0)
    one = rows(read_study(tables.write()).cases)["cross-fitted", "within 1"]
    assert one.cost_share == pytest.approx((0.8 + 0.6) / 2)  # by seed 0 layer 1 is the deepest, by seed 1 layer 2
    assert one.behind_full == pytest.approx(100)  # each is wrong with the other seed


def test_methods_without_a_boundary_are_in_neither_table(tables):
    """Answer-side tuning, adapters and races leave the curves over depth as they are."""
    curves = {"a": [0.9, 0.9, 0.6, 0.5, 0.4], "b": [0.9, 0.9, 0.9, 0.9, 0.85]}
    alone = cases_of(tables, curves)
    for method in ("full+answer", "full+answer+lora", "race"):
        tables.run("a", method, [1] * 200, 0, flops=30, layers=5, validation_accuracy=1.0)
    more = read_study(tables.write()).cases
    assert {method for method, _ in more[0].runs} > {method for method, _ in alone[0].runs}
    assert headroom(more).equals(headroom(alone))
    assert interactions(more).equals(interactions(alone))


def test_one_dataset_or_one_seed_says_nothing(tables):
    assert several_seeds(cases_of(tables, {"a": [0.5] * 5})) == {}
    assert several_seeds(cases_of(tables, {"a2": [0.5] * 5, "b2": [0.5] * 5}, seeds=1)) == {}
