"""Readings of the paper's gain: against the committed ablation, closed forms, and a study of two datasets."""

import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from salf import gains
from stages.study.__main__ import main
from stages.study.readings import READINGS, Reading
from stages.study.tables import read_traces
from tests.study.test_documented import PROJECT, summary

FOLDER = PROJECT / "reports/study"


def layer(reading, curve):
    return int(reading.layers(curve[None], gains.falling(curve[None]))[0])


def test_kept_traces_have_the_means_that_the_study_saved():
    """The traces were made again from the kept rows; the study of release 0.1.0 saved the means to eight digits."""
    saved = pd.read_csv(FOLDER / "intervals.csv").dropna(subset="observed")
    traces = read_traces(FOLDER)
    assert len(traces) == 43
    for (data_set, model, source), rows in saved[saved["source"].str.startswith("plain:")].groupby(
        ["data_set", "model", "source"]
    ):
        mean = traces[data_set, model][source.removeprefix("plain:")].mean(axis=0)
        np.testing.assert_allclose(rows.sort_values("place")["observed"], mean, rtol=1e-6)


def test_the_readings_reproduce_the_rows_of_the_committed_ablation():
    """Its loss, marginal, from the peak on is what release 0.1.0 computed with code of its own, now deleted."""
    before = pd.read_csv(FOLDER / "ablation.csv").set_index("rule")
    now = {row["rule"]: row for row in summary()["readings"]["scopes"]["all models"]}
    names = {
        "loss, marginal, observed": "loss, marginal gain by a law from the peak on, the plan's trace, not smoothed",
        "loss, ratio, observed": "loss, ratio gain by a law from the peak on, the plan's trace, not smoothed",
        "loss, observed, observed": "loss, observed gain, the plan's trace, not smoothed",
        "deviation, observed, observed": "deviation, observed gain, the plan's trace, not smoothed",
        "deviation, local, observed": "deviation, local gain, the plan's trace, not smoothed",
    }
    for name, old in names.items():
        for mine, theirs in (("cost_share", "cost_share"), ("behind_full", "behind_full"), ("regret", "regret")):
            assert now[name][mine] == pytest.approx(before.loc[old, theirs], abs=1e-8), (name, mine)
        assert now[name]["difference"] == pytest.approx(before.loc[old, "over_constant"], abs=1e-6)


def test_the_selector_s_boundaries_are_those_of_the_ablation_s_row_but_one():
    """salf-law takes the gain from the fitted law alone; marginal is the law's exponent times the observed loss."""
    curves = {case: examples["loss"].mean(axis=0) for case, examples in read_traces(FOLDER).items()}
    selector = {case: layer(Reading("loss", "observed", "law"), curve) for case, curve in curves.items()}
    for case, curve in curves.items():
        law = gains.falling(curve[None])
        assert selector[case] == gains.named(gains.by_law(law, len(curve) - 1))[0]
    row = {case: layer(Reading("loss", "marginal", "observed"), curve) for case, curve in curves.items()}
    assert {case: (selector[case], row[case]) for case in row if selector[case] != row[case]} == {
        ("sst5", "embedded"): (17, 18)
    }
    saved = pd.read_csv(FOLDER / "readings.csv").query("rule == 'loss, observed, law'")
    assert {(one.data_set, one.model): one.boundary for one in saved.itertuples()} == selector
    assert ((saved["low"] <= saved["boundary"]) & (saved["boundary"] <= saved["high"])).all()


@pytest.mark.parametrize("reading", [one for one in READINGS if one.curve == "law"], ids=lambda one: one.name)
def test_by_a_pure_law_every_reading_says_where_falling_begins(reading):
    spaces = np.arange(21.0)
    curve = np.where(spaces < 9, 1 + spaces, 0.5 + 10 * (np.maximum(spaces, 1) / 9) ** -2.0)
    assert layer(reading, curve) == 10


def test_every_choice_by_the_law_is_measured_or_between_measured_boundaries():
    table = pd.read_csv(FOLDER / "readings.csv")
    assert set(table["rule"]) == {one.name for one in READINGS}
    assert len(table) == 43 * len(READINGS)
    by_law = table[table["rule"].str.endswith(", law") & (table["data_set"] != "gsm8k")]
    assert by_law["quality"].notna().all()


@pytest.fixture
def traced(two_data_sets):
    """Two datasets of a model of four layers whose loss falls above layer 1 as the measured quality does."""
    curves = {"a": [9.0, 8.0, 4.0, 2.0, 1.0], "b": [9.0, 8.0, 7.0, 2.0, 1.0]}
    folder = two_data_sets.write()
    rows = [
        {"data_set": name, "model": "tiny", "basis": "head", "example_id": f"e{i}", "deviation": each, "loss": each}
        for name, curve in curves.items()
        for i, each in enumerate(np.array(curve) + np.linspace(-0.01, 0.01, 5)[:, None])
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "traces.parquet")
    main(["--analyse", "--out", str(folder), "--resamples", "200"])
    return folder


def test_a_study_with_traces_has_readings_balance_claims_and_a_figure(traced):
    found = json.loads((traced / "summary.json").read_text(encoding="utf-8"))
    readings = pd.read_csv(traced / "readings.csv").set_index(["data_set", "rule"])["boundary"]
    assert readings["a", "loss, observed, observed"] == 2
    assert readings["b", "loss, observed, observed"] == 3
    assert (readings[:, "loss, observed, law"] == 2).all()  # four spaces: the law starts at the first
    balance = pd.read_csv(traced / "balance.csv").set_index(["data_set", "boundary"])
    assert list(balance.loc["a", "loss_observed"]) == pytest.approx([1.0, 3 / 7, 0.0])  # boundaries 0, 2 and 4
    assert {row["boundaries"] for row in found["readings"]["correlations"]} == {1}
    claims = found["readings"]["claims"] + summary()["readings"]["claims"]
    assert {(one["verdict"], one["high"] is not None and one["high"] < 0) for one in claims} == {
        ("contradicts", True),
        ("consistent with", False),
        ("not tested", False),
    }
    assert "Claims of the abstract" in found["headline"]
    assert (traced / "figures/balance.svg").exists()
    page = json.loads((traced / "page.json").read_text(encoding="utf-8"))
    shown = {"readings of tiny", "readings left out", "rank correlations", "claims", "headroom", "interaction"}
    assert shown <= set(page["report"])


def test_a_budget_by_the_trace_takes_the_deepest_of_the_best_that_it_pays_for(traced):
    """Boundaries 0 and 1 leave the same reduction; 1 costs 75 % of 100 %, 2 costs 50 %."""
    found = json.loads((traced / "summary.json").read_text(encoding="utf-8"))["readings"]["scopes"]["tiny"]
    costs = {row["rule"]: row["cost_share"] for row in found}
    assert costs["budget 80%, loss, observed"] == pytest.approx(0.75)
    assert costs["budget 60%, loss, observed"] == pytest.approx(0.5)


def test_damaged_traces_are_one_line(traced, capsys):
    (traced / "traces.parquet").write_bytes(b"no table")
    with pytest.raises(Exception, match=r"traces\.parquet: damaged table"):
        main(["--analyse", "--out", str(traced), "--resamples", "20"])
