"""One thing changed at a time: what is chosen, and what that comes to."""

import csv

import numpy as np
import pandas as pd
import pytest

from stages.study.__main__ import main
from stages.study.ablation import VARIATIONS, largest_gain, smoothed, variations
from stages.study.reading import read_study


def test_smoothing_is_a_centred_moving_mean():
    curve = np.random.default_rng(0).uniform(size=31)
    for window in (1, 3, 5):
        expected = pd.Series(curve).rolling(window, center=True, min_periods=1).mean()
        np.testing.assert_allclose(smoothed(curve, window), expected)


def test_layers_one_and_last_are_never_chosen_and_small_values_need_less():
    """Drops of 90, 1, 3, 1.9 and 3.5 by layer: the third is the largest inside, the fourth in its share."""
    curve = np.array([100.0, 10.0, 9.0, 6.0, 4.1, 0.6])
    assert largest_gain(curve[1:], "observed") == 3
    local = np.log(curve[:-1] / curve[1:]) / np.log((np.arange(1, 6) + 1) / np.arange(1, 6))
    assert largest_gain(curve[1:], "local") == 2 + int(local[1:4].argmax())
    assert largest_gain(np.array([4.0, 3.0, 2.0, 1.0, 0.5]), "observed") == 4  # of equals the deepest


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
    found = {choice.rule: choice.boundary for choice in variations(study.cases[0], study.intervals)}
    assert found["loss, observed gain, the plan's trace, mean of 3 spaces"] == 3


def test_every_variation_whose_trace_is_there_is_read_off(traced):
    study = read_study(traced.write())
    found = {choice.rule: choice.boundary for choice in variations(study.cases[0], study.intervals)}
    assert set(found) == {name for name, one in VARIATIONS.items() if one.quantity == "loss"}
    assert found["loss, observed gain, the plan's trace, not smoothed"] == 2
    assert found["loss, observed gain, a larger trace, not smoothed"] == 3


def test_what_it_comes_to_is_read_off_the_measured_boundaries(traced):
    folder = traced.write()
    main(["--study", str(folder), "--resamples", "50"])
    with (folder / "ablation.csv").open(encoding="utf-8") as file:
        rows = {row["rule"]: row for row in csv.DictReader(file)}
    one = rows["loss, observed gain, the plan's trace, not smoothed"]
    assert (float(one["behind_full"]), float(one["cost_share"]), one["groups"]) == (5.0, 0.5, "2")
    assert not any("larger trace, not" in name for name in rows)  # boundary 3 lies towards L: nothing is read there
