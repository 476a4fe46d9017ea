"""What docs/method.md says of the study is what its tables say."""

import io
import json
import re
from functools import cache
from pathlib import Path

import pandas as pd
import pytest
from ruamel.yaml import YAML

from salf.errors import UserError
from stages.study.reading import read_study
from stages.study.resamples import Resamples, interval
from stages.study.shown import page, update
from stages.study.summary import Summary
from tests.study.first_round import recompute

PROJECT = Path(__file__).parents[2]
PAGE = PROJECT / "docs/method.md"
PAGES = (PAGE, PROJECT / "docs/techniques.md")


def curves():
    """The committed study's."""
    return pd.read_csv(PROJECT / "reports/study/curves.csv")


@cache
def study():
    return read_study(PROJECT / "reports/study")


def shown():
    return page(summary(), curves())


def first_round():
    return json.loads((PROJECT / "reports/study/first_round.json").read_text(encoding="utf-8"))


def summary():
    return json.loads((PROJECT / "reports/study/summary.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("quoting", PAGES, ids=lambda path: path.stem)
def test_a_page_quotes_the_study_as_it_is(quoting, tmp_path):
    copy = tmp_path / "page.md"
    copy.write_bytes(quoting.read_bytes())
    update(copy, shown())
    assert copy.read_bytes() == quoting.read_bytes()


def test_the_page_says_the_headline():
    assert f"> {summary()['headline']}\n" in PAGE.read_text(encoding="utf-8")


def test_a_table_of_qualities_is_what_was_measured():
    """By the headings, against the rows of curves.csv."""
    text = PAGE.read_text(encoding="utf-8")
    by_place = {(one.data_set, one.model, one.boundary): one for one in curves().itertuples()}
    checked = 0
    for table in re.findall(r"<!-- study: quality -->\n(.*?)<!-- end -->", text, flags=re.DOTALL):
        head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.strip().splitlines()]
        for boundary, _, *cells in rows:
            for heading, cell in zip(head[2:], cells, strict=True):
                if cell:
                    one = by_place[heading.removesuffix(" (nats)"), "embedded", int(boundary)]
                    assert float(cell) == pytest.approx(abs(one.quality), abs=0.05 if one.unit == "points" else 0.005)
                    checked += 1
    assert checked > 80


def test_a_part_that_there_is_none_of_is_one_line_and_changes_nothing(tmp_path):
    path = tmp_path / "page.md"
    path.write_text("# Title\n<!-- study: weather -->\nsunny\n<!-- end -->\n")
    with pytest.raises(UserError, match="no part 'weather' of the study; there are: headline, methods"):
        update(path, shown())
    assert "sunny" in path.read_text()
    open_ended = "<!-- study: headline -->\nlost\n\n# Title\n<!-- study: methods -->\n<!-- end -->"
    path.write_text(open_ended)
    with pytest.raises(UserError, match="a part of the study has no end"):
        update(path, shown())
    assert path.read_text() == open_ended
    with pytest.raises(UserError, match="no such file"):
        update(tmp_path / "none.md", shown())


def test_every_figure_that_the_page_shows_is_there():
    text = PAGE.read_text(encoding="utf-8")
    figures = re.findall(r"!\[[^\]]+\]\(([^)]+\.svg)\)", text)
    assert len(figures) == 2
    assert all((PROJECT / "docs" / figure).resolve().is_file() for figure in figures)


def test_the_outcomes_of_other_rates_belong_to_runs_and_hold_the_winners():
    """Web snippets at one rate: full and half differ by 0.2 points with seed 1, where the winners differ by 6.8."""
    runs, rates = (pd.read_csv(PROJECT / f"reports/study/{name}.csv") for name in ("runs", "rates"))
    both = rates.merge(runs, on="point", suffixes=("", "_kept"), validate="many_to_one")
    assert len(both) == len(rates) == len(rates.drop_duplicates(["point", "learning_rate"]))
    won = both[both["learning_rate"] == both["learning_rate_kept"]]
    assert set(won["point"]) == set(rates["point"])
    assert (won["validation_loss"] == won["validation_loss_kept"]).all()
    webss = rates[(rates["data_set"] == "webss") & (rates["model"] == "embedded") & (rates["seed"] == 1)]
    full = webss[webss["method"] == "full"].set_index("learning_rate")["test_accuracy"]
    half = runs.query("data_set == 'webss' and model == 'embedded' and seed == 1 and method == 'freeze-15'")
    assert dict(full) == pytest.approx({1e-4: 0.9, 2e-4: 0.88667, 4e-4: 0.83333}, abs=1e-5)
    assert dict(zip(half["learning_rate"], half["quality"], strict=True))[1e-4] == pytest.approx(0.90167, abs=1e-5)


def selector(scope, rule):
    return next(row for row in first_round()["selectors"][scope] if row["rule"] == rule)


def test_what_is_significant_is_said_over_these_datasets_and_over_datasets_like_these():
    """The figures of an independent recomputation from runs.csv and predictions.parquet."""
    found = summary()
    pilot = selector("all models", "pilot")["over_fixed"]
    assert [round(pilot[name], digits) for name, digits in (("p_holm", 3), ("p_datasets", 3))] == [0.003, 0.036]
    assert pilot["p_holm_datasets"] == pytest.approx(0.51, abs=0.01)
    over = {
        scope: [row["over_fixed"] for row in rows if row["over_fixed"]]
        for scope, rows in first_round()["selectors"].items()
    }
    assert min(one["p_datasets"] for one in over["embedded"]) == pytest.approx(0.088, abs=0.001)
    assert min(one["p_holm_datasets"] for rows in over.values() for one in rows) > 0.05
    assert found["headline"].startswith("Default by the rule fixed beforehand: half. half is 0.07 points better")
    assert found["headline"].count("Of 13 selectors that look at the data or the model") == 2
    degenerate = {row["rule"] for row in first_round()["selectors"]["embedded"] if row["degenerate"]}
    assert degenerate == {"affordable", "grad-norm", "spectrum"}


def test_a_random_boundary_is_as_bad_as_the_mean_over_all():
    for scope, expected in (("all models", (-1.24, 0.513)), ("embedded", (-1.88, 0.554))):
        random = selector(scope, "random")
        assert (random["over_full"], random["cost_share"]) == pytest.approx(expected, abs=0.005)


def test_detectable_differences_are_those_of_the_standard_errors():
    half, salf = summary()["methods"]["half"], selector("embedded", "salf")["over_fixed"]
    powers = ("detectable_points", "detectable_points_datasets")
    assert [half[name] for name in powers] == pytest.approx([1.3, 2.95], abs=0.05)
    assert [salf[name] for name in powers] == pytest.approx([0.9, 1.7], abs=0.05)


def test_the_default_is_the_one_that_params_and_readme_name():
    params = YAML(typ="safe", pure=True).load((PROJECT / "params.yaml").read_text(encoding="utf-8"))
    found = Summary.model_validate(summary())
    assert found.default_method == params["plan"]["selector"] == "half"
    left = [one["points"] for one in found.default.left_out]
    assert found.default.points_left_out == pytest.approx(sum(left) / len(left), abs=1e-6)


def test_half_in_float32_differs_from_its_rows_in_bfloat16_as_the_page_says():
    runs = pd.read_csv(PROJECT / "reports/study/runs.csv").query("model == 'embedded' and budget == 'epochs'")
    rounded = runs[(runs["method"] == "freeze-15") & (runs["dtype"] == "bfloat16")]
    exact = runs[runs["method"] == "half-float32"]
    pairs = exact.merge(rounded, on=["data_set", "seed", "learning_rate"], suffixes=("", "_rounded"))
    gaps = dict(zip(pairs["data_set"], 100 * (pairs["quality"] - pairs["quality_rounded"]), strict=True))
    assert gaps == pytest.approx({"docstrings": 0.8, "cola": 2.7, "trec-bare": 0.0, "trec": -0.6}, abs=0.05)


def test_the_headroom_is_at_a_third_of_the_cost_and_not_at_half():
    """Against an independent analysis of the same tables, whose splits of the test examples were others."""
    (embedded,) = [one for one in first_round()["interaction"] if one["model"] == "embedded"]
    assert (embedded["observed"], embedded["noise"], embedded["excess"]) == pytest.approx((5.37, 1.58, 1.95), abs=0.02)
    assert embedded["p"] == pytest.approx(0.0002, abs=1e-4)
    found = {(one["picked_by"], one["aim"]): one for one in first_round()["headroom"] if one["model"] == "embedded"}
    within, seen = found["cross-fitted", "within 1"], found["seen", "within 1"]
    assert within["cost_share"] == pytest.approx(0.563, abs=0.01)
    assert within["behind_full"] == pytest.approx(1.1, abs=0.15)
    assert (seen["cost_share"], seen["behind_full"]) == pytest.approx((0.616, 0.17), abs=0.005)
    third, half = found["cross-fitted", "trade 11"], found["cross-fitted", "trade 4"]
    assert third["cost_share"] == pytest.approx(0.36, abs=0.01)
    assert third["gain"] == pytest.approx(2.2, abs=0.3)
    assert third["gain_error"] == pytest.approx(1.2, abs=0.1)
    assert half["gain"] <= 0
    assert found["seen", "trade 4"]["gain"] == pytest.approx(0.8, abs=0.05)


@pytest.mark.timeout(600)
def test_what_is_kept_of_the_first_round_is_computed_from_its_rows(tmp_path):
    """Differences, p-values over datasets, choices, headroom; intervals over examples from fewer resamples, roughly."""
    for file in (PROJECT / "reports/study").iterdir():
        if file.is_file() and file.name != "runs.csv":
            (tmp_path / file.name).symlink_to(file)
    runs = pd.read_csv(PROJECT / "reports/study/runs.csv", dtype=str)
    runs[(runs["data_set"] != "ag-news") | (runs["seed"] == "1")].to_csv(tmp_path / "runs.csv", index=False)
    found, tables = recompute(tmp_path, 200)
    kept = first_round()
    for name, table in tables.items():
        saved = pd.read_csv(PROJECT / f"reports/study/{name}.csv")
        again = pd.read_csv(io.StringIO(table.to_csv(index=False)))
        pd.testing.assert_frame_equal(saved, again, check_dtype=False, rtol=1e-6, atol=1e-8)
    scopes = [
        (kept["selectors"], found["selectors"]),
        (kept["readings"]["scopes"], found["readings"]["scopes"]),
    ]
    for old, new in scopes:
        for scope, rows in old.items():
            again = {row["rule"]: row for row in new[scope]}
            for row in rows:
                for over in ("compared", "over_fixed"):
                    one, other = row[over], again[row["rule"]][over]
                    assert (one is None) == (other is None)
                    for name in ("mean_difference_points", "p_datasets", "p_holm_datasets") if one else ():
                        assert other[name] == pytest.approx(one[name], abs=1e-6)
                    if one:
                        assert other["interval_examples"] == pytest.approx(one["interval_examples"], abs=0.8)
    assert [row["rule"] for row in found["readings"]["left_out"]] == [
        row["rule"] for row in kept["readings"]["left_out"]
    ]


def test_accuracy_under_natural_frequencies_is_plain_accuracy_where_the_test_split_is_natural():
    """CoLA counts both labels alike; weighed by its own frequencies the answers give the accuracy that was measured."""
    points = pd.read_csv(PROJECT / "reports/study/curves.csv").set_index(["data_set", "model", "boundary"])
    runs = pd.read_csv(PROJECT / "reports/study/runs.csv").query("budget == 'epochs' and model == 'embedded'")
    plain = 100 * runs[runs["method"] == "freeze-15"].groupby("data_set")["quality"].mean()
    for data_set in ("cola", "cola-out-of-domain", "trec"):
        assert points.loc[(data_set, "embedded", 15), "natural"] == pytest.approx(plain[data_set], abs=1e-3)


def test_the_named_examples_are_those_that_were_predicted():
    """Of GSM8K the toy models can read some alone; the study's description names all rows by this table."""
    named = pd.read_parquet(PROJECT / "reports/study/examples.parquet").astype(str)
    assert not named.duplicated(["name", "example_id"]).any()
    test = named[named["split"] == "test"].groupby("name")["example_id"].agg(frozenset)
    described = YAML(typ="safe", pure=True).load((PROJECT / "stages/study/study.yaml").read_text(encoding="utf-8"))
    runs = pd.read_csv(PROJECT / "reports/study/runs.csv").drop_duplicates(["data_set", "model"])
    said = pd.read_parquet(PROJECT / "reports/study/predictions.parquet", columns=["point", "example_id"])
    said = said[said["point"].isin(runs["point"])].astype(str).groupby("point")["example_id"].agg(frozenset)
    for _, run in runs.iterrows():
        known = test[described["data_sets"][run["data_set"]]["data"]["examples"]["name"]]
        predicted = said[run["point"]]
        assert predicted <= known
        assert predicted == known or (run["data_set"] == "gsm8k" and run["model"] != "embedded")
    sizes = named.groupby("name")["split"].value_counts().unstack()
    assert dict(sizes.loc["trec"]) == {"train": 512, "validation": 256, "test": 500}


def test_label_frequencies_add_up_and_cover_every_dataset_with_labels():
    shares = pd.read_csv(PROJECT / "reports/study/priors.csv").groupby("data_set")["share"].sum()
    assert shares.to_numpy() == pytest.approx(1, abs=1e-4)
    natural = pd.read_csv(PROJECT / "reports/study/curves.csv").dropna(subset="natural")
    assert set(natural["data_set"]) == set(shares.index)


def test_the_ablation_is_quoted_as_it_is():
    found = pd.read_csv(PROJECT / "reports/study/ablation.csv").set_index("rule")
    assert f"{len(found)} variants of the selector" in PAGE.read_text(encoding="utf-8")
    everywhere = found[found["cases"] == found["cases"].max()].drop(
        index=found.index[found.index.str.contains("marginal")]
    )
    assert everywhere["behind_full"].min() > 1.5
    assert not ((found["over_constant"] > 0) & (found["over_constant_p_holm"] < 0.05)).any()
    best = found.loc["loss, marginal gain by a law from the peak on, the plan's trace, not smoothed"]
    bounds = best[["behind_full", "cost_share", "over_constant", "over_constant_low", "over_constant_high"]]
    assert list(bounds) == pytest.approx([0.3, 0.59, -0.04, -0.11, 0.03], abs=0.02)


def test_the_evidence_of_answer_side_tuning_is_what_was_measured():
    """Quality, differences with their intervals, and FLOPs, from the committed rows of the first seed."""
    text = (PROJECT / "docs/selectors.md").read_text(encoding="utf-8")
    table = re.findall(r"^\| (\S+) \| `(full\+answer\S*)` \| (.*) \|$", text, flags=re.MULTILINE)
    cases = {case.data_set: case for case in study().cases if case.model == "embedded"}
    assert [(data_set, method) for data_set, method, _ in table] == [
        (data_set, method)
        for data_set in ("trec-bare", "mrpc", "cola")
        for method in ("full+answer", "full+answer+lora")
    ]
    for data_set, method, cells in table:
        case, (quality, *told, flops, _) = cases[data_set], cells.split(" | ")
        assert float(quality) == pytest.approx(case.quality(method), abs=0.05)
        assert float(flops.removesuffix(" %")) == pytest.approx(100 * case.cost_share(method), abs=0.5)
        drawn = Resamples(case, 2000)
        for other, cell in zip(("full", "freeze-15"), told, strict=True):
            numbers = [float(number) for number in re.findall(r"-?\d+\.\d", cell.replace("−", "-"))]
            over = drawn.over(method, other)
            assert numbers == [
                pytest.approx(over[0], abs=0.05),
                *(pytest.approx(end, abs=0.6) for end in interval(over)),
            ]
