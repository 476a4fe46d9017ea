"""What methods come to, against sums by hand, closed forms and a bootstrap written out."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm, ttest_1samp

from stages.study import methods
from stages.study.reading import read_study
from stages.study.resamples import Resamples
from stages.study.tables import Tables
from tests.study.conftest import EXAMPLES

FLOPS = {"full": 900, "freeze-2": 500, "freeze-3": 300, "freeze-4": 90}
RIGHT = {"a": (36, 36, 30, 10), "b": (32, 30, 24, 8), "c": (38, 34, 34, 12)}  # of forty, by boundary


@pytest.fixture
def study(tables):
    """Three datasets of a model of four layers, with two seeds; the grid of three rates was tried with the first."""
    for data_set, counts in RIGHT.items():
        for (method, flops), right in zip(FLOPS.items(), counts, strict=True):
            for seed in (1, 2):
                tables.run(data_set, method, right, seed, flops=flops, rates="0.1 0.2 0.4" if seed == 1 else "0.1")
        tables.choice(data_set, "salf", 3)
        tables.choice(data_set, "half", 2)
    return tables


def cases(tables, resamples=400):
    found = read_study(tables.write())
    return [Resamples(case, resamples) for case in found.cases], found


def summaries(tables):
    return methods.summarise(cases(tables)[0])


def test_a_method_is_compared_where_it_was_measured_and_says_where_not(study):
    study.run("a", "full+answer", 35, 1, flops=300)
    study.run("b", "full+answer", 34, 1, flops=300)
    found = summaries(study)
    assert list(found) == ["full", "half", "full+answer"]
    answer = found["full+answer"]
    assert (answer.datasets, answer.missing, answer.groups) == (["a", "b"], ["c"], 2)
    assert (answer.seeds, answer.fewest_seeds) == ([1], 1)
    gaps = np.array([-2.5, 5.0])
    assert answer.mean_difference_points == pytest.approx(gaps.mean())
    assert answer.interval_datasets == pytest.approx(tuple(ttest_1samp(gaps, 0).confidence_interval(0.95)))
    # The fixed depth that costs a third is boundary 3, on both.
    above = (gaps[0] - 100 * (30 - 36) / 40 + gaps[1] - 100 * (24 - 32) / 40) / 2
    assert answer.points_above_fixed_depth == pytest.approx(above)
    assert (answer.opened_by, found["half"].opened_by) == ("salf", "transformers")
    assert found["half"].missing == []
    assert found["half"].mean_difference_points == pytest.approx(-(0 + 5 + 10) / 3)


def test_intervals_over_examples_are_those_of_a_bootstrap_written_out(tables):
    """One seed: the same examples are drawn for both methods, dataset by dataset."""
    rng, gaps = np.random.default_rng(7), []
    for data_set in "ab":
        full, answer = (rng.integers(2, size=EXAMPLES) for _ in range(2))
        tables.run(data_set, "full", full.tolist())
        tables.run(data_set, "freeze-2", full.tolist(), flops=50)
        tables.run(data_set, "full+answer", answer.tolist(), flops=30)
        tables.choice(data_set, "half", 2)
        gaps.append(100 * (answer - full))
    found = methods.summarise(cases(tables, 20_000)[0])["full+answer"]
    drawn = [np.mean([gap[rng.integers(EXAMPLES, size=EXAMPLES)].mean() for gap in gaps]) for _ in range(20_000)]
    assert found.interval_examples == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.6)
    error = np.sqrt(sum(gap.var() / EXAMPLES for gap in gaps)) / 2
    assert found.detectable_points == pytest.approx((norm.ppf(0.975) + norm.ppf(0.8)) * error, rel=0.03)


def test_tuning_costs_all_rates_and_the_validation_passes_that_choose(study):
    """Three epochs of full fine-tuning are 9 passes of 100 over 40 examples; 20 validation examples are half a pass."""
    study.run("a", "full+answer", 35, 1, flops=100 + 200, rates="0.1 0.2")
    study.run("a", "lora", 35, 1, flops=600, rates="0.1 0.2 0.4")
    study.run("a", "race", 35, 1, flops=820, rates="0.0")
    found = summaries(study)
    forward = 100
    full = 3 * (900 + forward / 2)
    half = forward / 2 * 1.5 + 3 * (450 + forward / 2 / 2)  # the frozen half reads both splits once for all rates
    answer = forward * 1.5 + 2 * (
        200 + 200 / 9 / 2
    )  # the base reads both splits once; the rest as often as there are rates
    lora = 3 * (600 + forward / 2)  # a step is two forward passes
    expected = {"full": full, "half": half, "full+answer": answer, "lora": lora, "race": 820}
    assert {name: one.total_cost_share for name, one in found.items()} == pytest.approx(
        {name: flops / 900 for name, flops in expected.items()}
    )


def test_what_trains_longer_is_compared_at_equal_flops(study):
    for seed in (1, 2):
        study.run("a", "freeze-2", 38, seed, budget="compute", flops=900)
    half = summaries(study)["half"]
    assert half.at_equal_flops.mean_difference_points == pytest.approx(5.0)
    assert half.at_equal_flops.interval_datasets is None


def measure(study, method, right, flops, seeds=(1, 2)):
    for data_set, count in zip("abc", right, strict=False):
        for seed in seeds:
            study.run(data_set, method, count, seed, flops=flops, rates="0.1")


def test_the_default_is_the_cheapest_that_transformers_or_peft_opens_within_half_a_point(study):
    """Of 108.0 points full+answer loses least at the least cost, but salf alone opens it."""
    measure(study, "full+answer", (36, 32, 38), 200)
    measure(study, "full+answer+lora", (36, 32, 38), 250)
    measure(study, "lora", (38, 34, 39), 500)
    everyone, _ = cases(study)
    default, why = methods.default_of(everyone, methods.summarise(everyone))
    assert default == "full+answer+lora"
    assert (why.datasets, why.not_everywhere) == (["a", "b", "c"], {})
    assert set(why.candidates) == {"full", "half", "full+answer+lora", "lora"}
    assert [(one["group"], one["chosen"], one["points"]) for one in why.left_out] == [
        (name, "full+answer+lora", 0.0) for name in "abc"
    ]
    assert why.missed == {}  # 250 of 900 for one run, nothing lost, and less than one full fine-tune with tuning


def test_what_decides_on_the_others_is_judged_on_the_dataset_left_out(study):
    """The adapters lose nothing but ten points on c: without c they are chosen, and lose them there."""
    measure(study, "full+answer+lora", (36, 32, 34), 250)
    everyone, _ = cases(study)
    default, why = methods.default_of(everyone, methods.summarise(everyone))
    assert default == "full"  # half loses five points on the mean, and the adapters 3.3
    chosen = {one["group"]: (one["chosen"], one["points"]) for one in why.left_out}
    assert chosen == {"a": ("full", 0.0), "b": ("full", 0.0), "c": ("full+answer+lora", -10.0)}
    assert why.points_left_out == pytest.approx(-10 / 3)
    assert why.missed["cost_share"] == pytest.approx(0.7)


def test_a_method_that_lacks_a_dataset_is_no_candidate_and_others_are_compared_on_common_ones(study):
    for seed in (1, 2):  # a second test set of a's source, without the adapters
        study.run("a2", "full", 30, seed, flops=900, group="a")
        study.run("a2", "freeze-2", 40, seed, flops=500, group="a")
    study.choice("a2", "half", 2)
    measure(study, "lora", (38, 34), 500)
    measure(study, "full+answer+lora", (36, 32, 38), 250)
    everyone, _ = cases(study)
    _, why = methods.default_of(everyone, methods.summarise(everyone))
    assert why.not_everywhere == {"lora": ["c"]}
    assert why.datasets == ["a", "b", "c"]
    assert why.candidates["half"][0] == pytest.approx(-5.0)  # not the mean with a2


def test_a_method_that_lacks_a_seed_of_full_fine_tuning_is_no_candidate(study):
    measure(study, "full+answer+lora", (36, 32, 38), 250, seeds=(1,))
    everyone, _ = cases(study)
    default, why = methods.default_of(everyone, methods.summarise(everyone))
    assert (default, why.not_everywhere) == ("full", {"full+answer+lora": ["a", "b", "c"]})


def test_a_race_is_held_against_the_grid_that_validation_prefers(study):
    for row in study.runs:
        row["validation_accuracy"] = 0.9 if row["method"] == "freeze-2" else 0.5
    study.run("a", "full+answer+lora", 40, 1, flops=250, validation_accuracy=0.5)
    study.run("b", "full+answer+lora", 20, 1, flops=250, validation_accuracy=0.99, validation_loss=0.1)
    study.run("a", "race", 34, 1, flops=800, boundary=2)
    study.run("b", "race", 22, 1, flops=1000, boundary=0)
    everyone, found = cases(study)
    race = methods.race_of(everyone, found)
    assert race.winners == {"a": ["half"], "b": ["full+answer+lora"]}
    assert race.cost_share == pytest.approx((800 + 1000) / 2 / 900)
    assert race.points_below_tuned_grid == pytest.approx(100 / 40 * ((36 - 34) + (20 - 22)) / 2)
    rows = {row["data_set"]: row for row in methods.sign(everyone, found)}
    assert (rows["a"]["raced"], rows["a"]["test"]) == ("half", pytest.approx(-10.0))
    assert rows["b"]["validation"] == pytest.approx(-9.0)
    assert methods.race_of(everyone[2:], found) is None


def test_a_race_counts_with_every_seed_whatever_rate_it_chose_and_other_methods_at_one_rate(study):
    for seed, right in ((1, 34), (2, 22)):
        for method in ("race", "lora"):
            study.run("a", method, right, seed, flops=800 * seed, learning_rate=0.1 * seed)
    found = summaries(study)
    assert (found["race"].seeds, found["lora"].seeds) == ([1, 2], [1])
    assert found["race"].total_cost_share == pytest.approx(1200 / 900)
    assert found["race"].mean_difference_points == pytest.approx(100 * ((34 + 22) / 2 - 36) / 40)


def test_the_effect_of_scope_under_adapters_is_that_of_the_same_datasets_and_seeds(study):
    """Half costs 0 points on a with weights and 5 under LoRA; salf 15 and 2.5; b has no adapters above a boundary."""
    for method, right in {"lora": 36, "half+lora": 34, "salf+lora": 35}.items():
        study.run("a", method, right, 1, flops=300)
    study.run("b", "lora", 30, 1, flops=300)
    everyone, tables = cases(study)[0], Tables(study.folder)
    half, salf = methods.orthogonal(everyone, tables)
    assert (half.scope, half.datasets, salf.scope, salf.datasets) == ("half", ["a"], "salf", ["a"])
    assert [one.mean_difference_points for one in (half.weights, half.lora, half.lora_minus_weights)] == [
        0.0,
        -5.0,
        -5.0,
    ]
    assert salf.lora_minus_weights.mean_difference_points == pytest.approx(-2.5 + 15)
    assert methods.orthogonal(everyone[2:], tables) == []


def test_what_was_forgotten_is_a_geometric_mean_and_the_base_reads_for_answer_sides(tmp_path):
    row = {"data_set": "a", "model": "tiny", "seed": 1, "text": "t", "tokens": 9, "before": 10.0}
    rows = [
        {**row, "method": "half-again", "after": after, "data_set": name} for name, after in (("a", 20.0), ("b", 45.0))
    ]
    rows += [{**row, "method": "answer-again", "after": 40.0}, {**row, "model": "other", "method": "x", "after": 1.0}]
    pd.DataFrame(rows).to_csv(tmp_path / "forgetting.csv", index=False)
    half, answer = methods.forgetting(Tables(tmp_path), "tiny")
    assert (half["method"], half["before"], half["after"], half["in_use"]) == (
        "half",
        pytest.approx(10.0),
        *[pytest.approx(30.0)] * 2,
    )
    assert (answer["method"], answer["after"], answer["in_use"]) == (
        "full+answer",
        pytest.approx(40.0),
        pytest.approx(10.0),
    )


def test_other_kept_weights_are_compared_with_the_last_ones_of_the_same_runs(tmp_path):
    scores = {("a", "last"): 0.5, ("a", "mean"): 0.6, ("b", "last"): 0.7, ("b", "mean"): 0.7}
    rows = [
        {"data_set": name, "model": "tiny", "seed": 1, "method": "half-again", "keep": keep, "test_accuracy": score}
        for (name, keep), score in scores.items()
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "kept.csv", index=False)
    (mean,) = methods.weights_kept(Tables(tmp_path), "tiny")
    assert (mean["keep"], mean["data_sets"], mean["gain"]) == ("mean", 2, pytest.approx(5.0))
    assert methods.weights_kept(Tables(tmp_path), "other") == []


def test_full_and_half_are_compared_at_every_rate_that_both_were_trained_at(two_data_sets):
    """On b half was trained at 0.2, where full lost with the first seed; at half's rate full was trained on purpose."""
    kept = [row for row in two_data_sets.runs if row["data_set"] == "b"]
    full = next(row for row in kept if (row["method"], row["seed"]) == ("full", 1))
    for row in kept:
        row["learning_rate"] = 0.2 if row["method"] == "freeze-2" else 0.1
    lost = {name: full[name] for name in ("data_set", "model", "seed", "method", "budget", "point")}
    rates = [{**lost, "learning_rate": rate, "test_accuracy": 0.7, "validation_accuracy": 0.6} for rate in (0.1, 0.2)]
    pd.DataFrame(rates).to_csv(two_data_sets.folder / "rates.csv", index=False)
    place = ["data_set", "learning_rate"]
    found = methods.at_equal_rates(read_study(two_data_sets.write()), "tiny").set_index(place)
    assert list(found.index) == [("a", 0.1), ("b", 0.2)]
    assert (found.loc[("a", 0.1), "kept"], found.loc[("b", 0.2), "kept"]) == ("both", "half")
    assert list(found.loc[("b", 0.2), ["test_accuracy_full", "test_accuracy_half", "seeds"]]) == [70.0, 80.0, 1]
    for seed in (1, 2):
        two_data_sets.run("b", "half-at-full-rate", 20, seed, learning_rate=0.1)
    found = methods.at_equal_rates(read_study(two_data_sets.write()), "tiny").set_index(place)
    assert list(found.loc[("b", 0.1), ["test_accuracy_full", "test_accuracy_half", "seeds"]]) == [90.0, 50.0, 2]
    assert "half-at-full-rate" not in methods.summarise(cases(two_data_sets, 50)[0])


def test_a_technique_is_compared_with_the_method_without_it_at_the_same_budget(study):
    study.run("a", "half+sift", 33, 1, flops=480)
    study.run("a", "half+sift", 20, 1, budget="compute")
    study.run("a", "freeze-2", 34, 1, budget="compute")
    study.run("b", "half+lora", 30, 1)
    study.run("b", "half+lora+pace", 31, 1)
    study.run("b", "half+lora+pace", 31, 2)  # half+lora has no second seed
    found, _ = cases(study)
    rows = {(row["method"], row["data_set"]): row for row in methods.techniques(found)}
    sift, pace = rows["half+sift", "a"], rows["half+lora+pace", "b"]
    assert list(rows) == [("half+lora+pace", "b"), ("half+sift", "a")]
    assert [sift[budget].mean_difference_points for budget in ("epochs", "compute")] == pytest.approx([-7.5, -35])
    assert (pace["plain"], pace["seeds"], "compute" in pace) == ("half+lora", 1, False)
    assert pace["epochs"].mean_difference_points == pytest.approx(2.5)
    assert list(methods.summarise(found)) == ["full", "half", "half+lora"]
