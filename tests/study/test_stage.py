import csv
import json
import subprocess
import sys
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from stages.study.__main__ import main
from stages.study.figures import mean_depth
from stages.study.reading import read_study
from stages.study.resamples import Resamples
from stages.study.summary import Summary


@pytest.fixture
def analysed(two_data_sets):
    """The two data sets, analysed."""
    folder = two_data_sets.write()
    main(["--analyse", "--out", str(folder), "--resamples", "200"])
    return folder


def summary_of(folder):
    return json.loads((folder / "summary.json").read_text(encoding="utf-8"))


def test_the_summary_is_a_record_that_names_the_default_and_what_it_comes_to(analysed):
    """On a half loses nothing, on b ten points: five on the mean are too many, so all layers train."""
    summary = Summary.model_validate(summary_of(analysed))
    assert (summary.default_method, summary.leading) == ("full", "tiny")
    assert (summary.study["data_sets"], summary.study["models"]) == (["a", "b"], ["tiny"])
    assert summary.study["machines"] == ["Some Processor, cpu, float32"]
    half = summary.methods["half"]
    assert (half.mean_difference_points, half.cost_share, half.datasets) == (-5.0, 0.5, ["a", "b"])
    low, high = half.interval_examples
    assert low < -5 < high
    assert half.interval_datasets[1] == pytest.approx(-5 + 12.7062 * 5, abs=1e-3)  # Student's t, one degree of freedom
    assert (summary.race, summary.answer_side, summary.other_models) == (None, None, {})
    assert [row["half"] for row in summary.by_dataset] == [0.0, -10.0]


def test_the_headline_says_what_to_use_what_it_costs_and_how_sure_that_is(analysed):
    text = summary_of(analysed)["headline"]
    assert text.startswith("Default by the rule fixed beforehand: full. full is 0.00 points better")
    assert "half is 5.00 points worse than tuned full fine-tuning (datasets: 2, seeds: 2; \N{MINUS SIGN}" in text
    assert "over datasets like these) at 50% of its FLOPs, " in text


def test_partial_rows_say_what_is_missing(two_data_sets):
    two_data_sets.run("a", "full+answer", 34, flops=25)
    two_data_sets.run("a", "race", 34, flops=60)
    main(["--analyse", "--out", str(two_data_sets.write()), "--resamples", "50"])
    summary = Summary.model_validate(summary_of(two_data_sets.folder))
    assert (summary.methods["full+answer"].missing, summary.answer_side["datasets"]) == (["b"], ["a"])
    assert summary.answer_side["mean_difference_points"] == 5.0
    assert (summary.race, summary.default.not_everywhere) == (None, {"race": ["a", "b"]})  # on a with one seed of two
    page = json.loads((two_data_sets.folder / "page.json").read_text(encoding="utf-8"))
    assert page["report"][0] == "methods"
    table = page["tables"]["methods"]
    row = next(row for row in table["rows"] if row[0] == "`full+answer`")
    assert row[table["headings"].index("opened by")] == "salf"


def test_other_models_come_second(two_data_sets):
    for method, right in {"full": 36, "freeze-2": 20, "freeze-4": 8, "full+answer": 30}.items():
        two_data_sets.run("b2", method, right, group="b", model="other", flops=100 if method == "full" else 50)
    two_data_sets.choice("b2", "half", 2)
    two_data_sets.choices[-1]["model"] = "other"
    main(["--analyse", "--out", str(two_data_sets.write()), "--resamples", "50"])
    summary = summary_of(two_data_sets.folder)
    assert (summary["leading"], summary["first_round"]) == ("tiny", None)
    assert set(summary["other_models"]["other"]) == {"full", "half", "full+answer"}


def test_every_measured_boundary_has_its_point(analysed):
    with (analysed / "curves.csv").open(encoding="utf-8") as file:
        points = {(row["data_set"], int(row["boundary"])): row for row in csv.DictReader(file)}
    assert [key for key in points if key[0] == "b"] == [("b", 0), ("b", 2), ("b", 4)]
    half = points["b", 2]
    assert (float(half["quality"]), float(half["cost_share"]), half["seeds"]) == (80.0, 0.5, "2")
    assert float(half["low"]) < 80 < float(half["high"])


def test_a_gpu_is_named_once(two_data_sets):
    for row in two_data_sets.runs:
        row.update(machine="Some GPU", device="Some GPU")
    main(["--analyse", "--out", str(two_data_sets.write()), "--resamples", "50"])
    assert summary_of(two_data_sets.folder)["study"]["machines"] == ["Some GPU, float32"]


def test_the_figure_names_every_method_and_is_valid(analysed):
    (figure,) = (analysed / "figures").glob("*.svg")
    text = figure.read_text(encoding="utf-8")
    assert ET.fromstring(text).tag.endswith("svg")
    assert "half" in text
    assert "http" not in text.replace("http://www.w3.org/", "")


def test_the_line_of_fixed_depths_is_the_one_worked_by_hand(two_data_sets):
    """At half of the layers a loses nothing and b ten points; in between both go straight."""
    cases = [Resamples(case, 50) for case in read_study(two_data_sets.write()).cases]
    costs, points = mean_depth(cases)
    np.testing.assert_allclose(costs, np.linspace(1, 0.5, len(costs)))
    np.testing.assert_allclose(points[0], -10 * (1 - costs), atol=1e-12)
    assert mean_depth([]) is None


def test_the_same_tables_give_the_same_bytes(analysed):
    before = {file: file.read_bytes() for file in analysed.rglob("*") if file.is_file()}
    main(["--analyse", "--out", str(analysed), "--resamples", "200"])
    assert {file: file.read_bytes() for file in analysed.rglob("*") if file.is_file()} == before


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
