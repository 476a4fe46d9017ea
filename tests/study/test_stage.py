import csv
import json
import subprocess
import sys
import xml.etree.ElementTree as ET

import pandas as pd
import pytest

from stages.study.__main__ import main
from stages.study.analysis import Scope, finding

FIGURES = {"groups": 2, "cost_share": 0.5, "deciding_share": 0.0, "groups_behind": 1}


@pytest.fixture
def analysed(two_data_sets):
    """The two data sets, analysed."""
    folder = two_data_sets.write()
    main(["--analyse", "--out", str(folder), "--resamples", "200"])
    return folder


def summary_of(folder):
    return json.loads((folder / "summary.json").read_text(encoding="utf-8"))


def test_the_summary_names_the_default_and_its_figures_are_those_of_the_table(analysed):
    summary = summary_of(analysed)
    assert (summary["default_rule"], summary["default_selector"]) == ("half", "half")
    assert (summary["data_sets"], summary["models"]) == (["a", "b"], ["tiny"])
    assert summary["seeds_each"] == {"a, tiny": 2, "b, tiny": 2}
    with (analysed / "table.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["rule"] == "half"]
    half = summary["rules"]["half"]
    assert half["regret_at_cost"] == sum(float(row["regret_at_cost"]) for row in rows) / 2 == 0.0
    assert half["regret"] == sum(float(row["regret"]) for row in rows) / 2 == 5.0
    assert half["cost_share"] == sum(float(row["cost_share"]) for row in rows) / 2 == 0.5
    assert summary["machines"] == ["Some Processor, cpu, float32"]
    assert [one["regret"] for one in summary["leave_one_out"]] == [0.0, 10.0]


def test_a_difference_has_an_interval_of_the_examples_and_a_wider_one_of_the_data_sets(analysed):
    over = summary_of(analysed)["rules"]["half"]["over_full"]
    assert over["difference"] == -5.0
    assert over["low_elsewhere"] < over["low"] < -5.0 < over["high"] < over["high_elsewhere"]
    assert over["high_elsewhere"] == pytest.approx(-5 + 12.7062 * 5, abs=1e-3)  # Student's t of one degree of freedom
    assert summary_of(analysed)["rules"]["half"]["equal_compute_over_full"] is None


def test_where_no_depth_costs_as_little_no_rule_is_held_against_one(analysed):
    """salf takes 4 of 4 on a: no depth above which a layer trains costs as little."""
    rules = summary_of(analysed)["rules"]
    assert [rule for rule, one in rules.items() if one["over_constant"]] == []
    assert "fixed depth" not in summary_of(analysed)["headline"]


def told(*over, behind=0.1, degenerate=()):
    """What is said of a selector r with no difference from full fine-tuning, and of selectors over fixed depths."""
    rules = pd.DataFrame([{**FIGURES, "behind_full": behind}], index=["r"])
    fixed = pd.DataFrame(over, columns=["rule", "difference", "p_holm", "p_holm_elsewhere"]).set_index("rule")
    none = pd.DataFrame()
    scope = Scope("the tiny model", rules, {"over_full": none, "over_constant": fixed}, dict.fromkeys(degenerate, ""))
    return finding(scope, "r")


def test_the_headline_counts_selectors_that_are_better_or_worse_than_a_fixed_depth():
    text = told(("a", 0.5, 0.01, 1.0), ("b", -0.5, 0.06, 1.0), ("c", -0.6, 0.04, 1.0))
    assert text.endswith(
        "Of 3 selectors that look at the data or the model, 1 on these datasets and 0 over datasets like these are "
        "significantly better than a fixed depth of the same cost; 1 and 0 are significantly worse (Holm's procedure, "
        "at 5%)."
    )
    worse = told(("c", -2.0, 0.01, 0.03), ("b", -2.0, 0.02, 1.0))
    assert "0 on these datasets and 0 over datasets like these are significantly better" in worse
    assert "2 and 1 are significantly worse" in worse
    assert "Of 1 selectors" in told(("c", -2.0, 0.01, 1.0), ("blind", -2.0, 0.01, 1.0), degenerate=["blind"])


def test_the_headline_says_on_which_side_of_full_fine_tuning_and_how_far(analysed):
    text = summary_of(analysed)["headline"]
    assert text.startswith(
        "With the tiny model, half costs 50% of full fine-tuning's FLOPs and is 5.00 points worse (mean over 2 "
        "datasets; worse on 1). Above full fine-tuning: \N{MINUS SIGN}"
    )
    over = summary_of(analysed)["rules"]["half"]["over_full"]
    assert f"to +{over['high_elsewhere']:.2f} over datasets like these (95% intervals)" in text
    assert "The paper's selector, salf, costs 30% and is 30.00 points worse." in text
    assert "is 0.25 points better (mean" in told(behind=-0.25)


def test_the_first_model_is_judged_alone_too_where_there_are_others(two_data_sets):
    main(["--analyse", "--out", str(two_data_sets.write()), "--resamples", "50"])
    assert summary_of(two_data_sets.folder)["alone"] is None
    for method, right in {"full": 36, "freeze-2": 20, "freeze-4": 8}.items():
        two_data_sets.run("b2", method, right, group="b", model="other", flops=100 if method == "full" else 50)
    main(["--analyse", "--out", str(two_data_sets.write()), "--resamples", "50"])
    alone = summary_of(two_data_sets.folder)["alone"]
    assert (alone["model"], alone["rules"]["half"]["behind_full"]) == ("tiny", 5.0)
    two_data_sets.choice("b2", "half", 2)
    two_data_sets.choices[-1]["model"] = "other"
    main(["--analyse", "--out", str(two_data_sets.write()), "--resamples", "50"])
    text = summary_of(two_data_sets.folder)["headline"]
    assert text.startswith("With the tiny model, half")
    assert " With all 2 models, half" in text


def test_every_measured_boundary_has_its_point(analysed):
    with (analysed / "curves.csv").open(encoding="utf-8") as file:
        points = {(row["data_set"], int(row["boundary"])): row for row in csv.DictReader(file)}
    assert [key for key in points if key[0] == "b"] == [("b", 0), ("b", 2), ("b", 4)]
    half = points["b", 2]
    assert (float(half["quality"]), float(half["cost_share"]), half["seeds"], half["longer"]) == (80.0, 0.5, "2", "")
    assert float(half["low"]) < 80 < float(half["high"])


def test_a_gpu_is_named_once(two_data_sets):
    for row in two_data_sets.runs:
        row.update(machine="Some GPU", device="Some GPU")
    main(["--analyse", "--out", str(two_data_sets.write()), "--resamples", "50"])
    assert summary_of(two_data_sets.folder)["machines"] == ["Some GPU, float32"]


def test_rates_that_a_grid_decided_are_counted_and_those_at_its_ends(two_data_sets):
    grids = [("0.1 0.2 0.4", 0.2), ("0.2", 0.2), ("0.1 0.2 0.05", 0.05), ("0.05", 0.05), ("0.1 0.2", 0.2), ("0.2", 0.2)]
    for row, (rates, best) in zip(two_data_sets.runs, grids, strict=False):
        row.update(rates=rates, learning_rate=best)
    main(["--analyse", "--out", str(two_data_sets.write()), "--resamples", "50"])
    summary = summary_of(two_data_sets.folder)
    assert (summary["tuned_rates"], summary["tuned_rates_at_an_end"]) == (3, 2)


def test_every_data_set_has_a_figure_that_is_valid_and_marks_the_choices(analysed):
    figures = {file.name: file.read_text(encoding="utf-8") for file in (analysed / "figures").iterdir()}
    assert sorted(figures) == ["a-tiny.svg", "b-tiny.svg", "depth.svg"]
    for text in figures.values():
        assert ET.fromstring(text).tag.endswith("svg")
    assert "half" in figures["b-tiny.svg"]
    assert "http" not in figures["depth.svg"].replace("http://www.w3.org/", "")


def test_the_same_tables_give_the_same_bytes(analysed):
    before = {file: file.read_bytes() for file in analysed.rglob("*") if file.is_file()}
    main(["--analyse", "--out", str(analysed), "--resamples", "200"])
    assert {file: file.read_bytes() for file in analysed.rglob("*") if file.is_file()} == before


def test_without_a_rule_within_the_cost_the_summary_says_so(analysed):
    main(["--analyse", "--out", str(analysed), "--resamples", "50", "--cost-cap", "0.01"])
    summary = summary_of(analysed)
    assert summary["default_rule"] is None
    assert summary["headline"] == "No selector was measured on every dataset within the cost cap."


def test_a_missing_study_is_one_line(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "stages.study", "--analyse", "--out", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {tmp_path}/runs.csv: no such file")
    assert len(done.stderr.splitlines()) == 1


def test_the_analysis_loads_no_torch():
    code = "import sys, stages.study.__main__; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
