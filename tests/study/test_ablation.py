"""One thing changed at a time: what is chosen, and what that comes to."""

import csv

import pytest

from stages.study.__main__ import main
from stages.study.laws import VARIANTS, variants
from stages.study.reading import read_study


@pytest.fixture
def traced(two_data_sets):
    """On both data sets the loss falls most in layer 2, and in a larger trace in layer 3; deviations were not kept."""
    for data_set in ("a", "b"):
        for space, (plain, larger) in enumerate(zip([9, 8, 3, 2, 1], [9, 8, 7, 2, 1], strict=True)):
            two_data_sets.interval(data_set, "plain:loss", space, observed=float(plain))
            two_data_sets.interval(data_set, "reference:loss", space, observed=float(larger))
    return two_data_sets


def test_the_step_from_the_embeddings_is_not_smoothed_into_layer_two(traced):
    for row in traced.intervals:
        row["observed"] = {0: 900.0, 1: 8.0, 2: 7.9, 3: 2.0, 4: 1.0}[row["place"]]
    study = read_study(traced.write())
    found = {choice.rule: choice.boundary for choice in variants(study.cases[0], study.intervals)}
    assert found["loss, observed gain, the plan's trace, mean of 3 spaces"] == 3


def test_every_variation_whose_trace_is_there_is_read_off(traced):
    study = read_study(traced.write())
    found = {choice.rule: choice.boundary for choice in variants(study.cases[0], study.intervals)}
    assert set(found) == {name for name, one in VARIANTS.items() if one.quantity == "loss"}
    assert found["loss, observed gain, the plan's trace, not smoothed"] == 2
    assert found["loss, observed gain, a larger trace, not smoothed"] == 3


def test_what_it_comes_to_is_read_off_the_measured_boundaries(traced):
    folder = traced.write()
    main(["--analyse", "--out", str(folder), "--resamples", "50"])
    with (folder / "ablation.csv").open(encoding="utf-8") as file:
        rows = {row["rule"]: row for row in csv.DictReader(file)}
    one = rows["loss, observed gain, the plan's trace, not smoothed"]
    assert (float(one["behind_full"]), float(one["cost_share"]), one["groups"]) == (5.0, 0.5, "2")
    assert not any("larger trace, not" in name for name in rows)  # boundary 3 lies towards L: nothing is read there


def test_a_rule_that_is_one_of_the_readings_does_not_stand_twice(traced):
    for data_set in ("a", "b"):
        traced.choice(data_set, "salf", 2, selector="salf-deviation-observed")
        traced.choice(data_set, "salf-loss", 2, selector="salf-loss-observed")
        traced.choice(data_set, "salf-raw", 2, selector="salf-deviation-observed", plan="raw states")
    folder = traced.write()
    main(["--analyse", "--out", str(folder), "--resamples", "50"])
    with (folder / "ablation.csv").open(encoding="utf-8") as file:
        rules = {row["rule"] for row in csv.DictReader(file)} - set(VARIANTS)
    assert rules == {"salf-raw"}
