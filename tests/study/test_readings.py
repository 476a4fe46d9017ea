"""Readings of the paper's gain: what is kept against the traces, the committed ablation, and a small study."""

from itertools import product

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from scipy.stats import spearmanr

from salf import gains
from salf.laws import POWER
from tests.study.first_round import recompute
from tests.study.test_documented import PROJECT, first_round

FOLDER = PROJECT / "reports/study"
FOLDED = "deviation (head-and-norm)"
GAINS = [  # with the curve that each is computed from
    one for one in product(("observed", "ratio", "local", "marginal"), ("observed", "law")) if one != ("ratio", "law")
]
OF_FOLDED = [("observed", "observed"), ("observed", "law")]


def layers(values):
    """The layers of the largest gains of means [C, L+1], observed or of the law fitted from the peak on."""
    law, spaces, found = gains.falling(values), np.arange(1.0, values.shape[1]), {}
    for gain, curve in GAINS:
        fitted = np.concatenate([values[:, :1], POWER.curve(law.fit.theta, spaces)], axis=1)
        read = values if curve == "observed" else fitted
        more = {"ratio": (law.fit.theta, 1e-3 * read[:, 1:].mean(axis=1, keepdims=True)), "marginal": (law.fit.theta,)}
        each = getattr(gains, gain)(read, *more.get(gain, ()))
        if curve == "law" or gain in more:
            each = np.where(spaces > law.peaks[:, None], each, 0.0)
        found[gain, curve] = gains.named(each)
    return found, gains.named(gains.by_law(law, values.shape[1] - 1))


def traces():
    """The kept traces' means by case and quantity, with the basis if it is not the head's."""
    table = pq.read_table(FOLDER / "traces.parquet").to_pandas()
    found = {}
    for (data_set, model, basis), rows in table.groupby(["data_set", "model", "basis"], observed=True, sort=False):
        for quantity in ("deviation", "loss"):
            if rows[quantity].notna().all():
                name = quantity if basis == "head" else f"{quantity} ({basis})"
                found.setdefault((data_set, model), {})[name] = np.stack(rows[quantity]).astype(float).mean(axis=0)
    return found


def test_kept_traces_have_the_means_that_the_study_saved():
    """The traces were made again from the kept rows; the study of release 0.1.0 saved the means to eight digits."""
    saved = pd.read_csv(FOLDER / "intervals.csv").dropna(subset="observed")
    means = traces()
    assert len(means) == 43
    for (data_set, model, source), rows in saved[saved["source"].str.startswith("plain:")].groupby(
        ["data_set", "model", "source"]
    ):
        mean = means[data_set, model][source.removeprefix("plain:")]
        np.testing.assert_allclose(rows.sort_values("place")["observed"], mean, rtol=1e-6)


@pytest.mark.parametrize("spaces", [6, 9, 31])
def test_kept_readings_are_those_of_the_gains_on_the_kept_traces(spaces):
    saved = pd.read_csv(FOLDER / "readings.csv").query("selector == 'salf'")
    assert ((saved["low"] <= saved["boundary"]) & (saved["boundary"] <= saved["high"])).mean() > 0.99
    kept = saved.set_index(["data_set", "model", "rule"])["boundary"]
    mine = [
        (*case, name, mean) for case, each in traces().items() for name, mean in each.items() if len(mean) == spaces
    ]
    found, by_law = layers(np.stack([mean for *_, mean in mine]))
    checked = 0
    for at, (data_set, model, name, _) in enumerate(mine):
        for gain, curve in OF_FOLDED if name == FOLDED else GAINS:
            assert kept[data_set, model, f"{name}, {gain}, {curve}"] == found[gain, curve][at], (data_set, name)
            checked += 1
        if name == "loss":  # the selector salf-law
            assert kept[data_set, model, "loss, observed, law"] == by_law[at]
    assert checked == {6: 20, 9: 10, 31: 13}[spaces] * 16


def test_kept_benefits_are_what_the_traces_leave_above_a_boundary():
    kept, means = pd.read_csv(FOLDER / "balance.csv"), traces()
    for (data_set, model), rows in kept.groupby(["data_set", "model"]):
        for quantity in ("deviation", "loss"):
            mean = means[data_set, model][quantity][1:]
            benefit = (np.concatenate([mean[:1], mean]) - mean[-1])[rows["boundary"]]
            share = benefit / (mean[0] - mean[-1]) if mean[0] > mean[-1] else np.full(len(rows), np.nan)
            np.testing.assert_allclose(rows[f"{quantity}_observed"], share, rtol=1e-5, atol=1e-8)


def test_the_readings_reproduce_the_rows_of_the_committed_ablation():
    """Its loss, marginal, from the peak on is what release 0.1.0 computed with code of its own, now deleted."""
    before = pd.read_csv(FOLDER / "ablation.csv").set_index("rule")
    now = {row["rule"]: row for row in first_round()["readings"]["scopes"]["all models"]}
    names = {
        "loss, marginal, observed": "loss, marginal gain by a law from the peak on, the plan's trace, not smoothed",
        "loss, ratio, observed": "loss, ratio gain by a law from the peak on, the plan's trace, not smoothed",
        "loss, observed, observed": "loss, observed gain, the plan's trace, not smoothed",
        "deviation, observed, observed": "deviation, observed gain, the plan's trace, not smoothed",
        "deviation, local, observed": "deviation, local gain, the plan's trace, not smoothed",
    }
    for name, old in names.items():
        assert now[name]["cost_share"] == pytest.approx(before.loc[old, "cost_share"], abs=1e-8), name
        assert now[name]["over_full"] == pytest.approx(-before.loc[old, "behind_full"], abs=1e-8), name
        over = now[name]["over_fixed"]["mean_difference_points"]
        assert over == pytest.approx(before.loc[old, "over_constant"], abs=1e-6)


def test_by_a_pure_law_every_reading_says_where_falling_begins():
    spaces = np.arange(21.0)
    values = np.where(spaces < 9, 1 + spaces, 0.5 + 10 * (np.maximum(spaces, 1) / 9) ** -2.0)
    found, by_law = layers(values[None])
    assert {int(found[gain, "law"][0]) for gain in ("observed", "local", "marginal")} == {int(by_law[0])} == {10}


def test_every_choice_by_the_law_is_measured_or_between_measured_boundaries():
    table = pd.read_csv(FOLDER / "table.csv")
    by_law = table[table["rule"].str.endswith(", law") & (table["data_set"] != "gsm8k")]
    assert len(by_law) > 43 * 7
    assert by_law[by_law["selector"] == "salf"]["quality"].notna().all()


@pytest.fixture
def read(two_data_sets):
    """Two datasets with the boundaries of readings, and the benefits of measured boundaries."""
    folder = two_data_sets.write()
    rows = [("a", "loss, observed, law", 2), ("b", "loss, observed, law", 2), ("a", "deviation, observed, observed", 2)]
    rows += [("b", "deviation, observed, observed", 0), ("a", "budget 60%, loss, law", 2)]
    readings = pd.DataFrame(rows, columns=["data_set", "rule", "boundary"]).assign(model="tiny", low=1, high=3)
    kind = readings["rule"].str.startswith("budget").map({True: "budget", False: "salf"})
    readings.assign(selector=kind).to_csv(folder / "readings.csv", index=False)
    shares = {"deviation_observed": 0.5, "deviation_law": 0.5, "loss_observed": 0.25, "loss_law": 0.25}
    benefits = {"boundary": [0, 2, 4], **{name: [1.0, share, 0.0] for name, share in shares.items()}}
    parts = [pd.DataFrame(benefits).assign(data_set=name, model="tiny") for name in "ab"]
    pd.concat(parts).to_csv(folder / "balance.csv", index=False)
    boundaries = {"a": {0: 80.0, 2: 80.0, 4: 30.0}, "b": {0: 90.0, 2: 80.0, 4: 20.0}}
    curves = [(name, b, quality) for name, each in boundaries.items() for b, quality in each.items()]
    frame = pd.DataFrame(curves, columns=["data_set", "boundary", "quality"]).assign(model="tiny", layers=4)
    frame.to_csv(folder / "curves.csv", index=False)
    return recompute(folder, 200)[0]


def test_readings_are_compared_as_selectors_are_and_give_verdicts_on_claims(read):
    rows = {row["rule"]: row for row in read["readings"]["scopes"]["tiny"]}
    assert rows["loss, observed, law"]["over_full"] == -5.0
    assert rows["deviation, observed, observed"]["over_full"] == 0.0
    assert {row["rule"] for row in read["selectors"]["tiny"]} == {"half", "none", "full", "salf"}
    assert {row["boundaries"] for row in read["readings"]["correlations"]} == {1}
    claims = read["readings"]["claims"] + first_round()["readings"]["claims"]
    contradicted = {(one["verdict"], bool(ends := one["interval_examples"]) and ends[1] < 0) for one in claims}
    assert contradicted == {("contradicts", True), ("consistent with", False), ("not tested", False)}
    assert "Claims of the abstract" in read["headline"]


def test_the_benefit_of_the_trace_ranks_boundaries_as_scipy_says():
    """Spearman's correlations of the embedded model, from the kept benefits and the measured curves."""
    curves = pd.read_csv(FOLDER / "curves.csv")
    points = pd.read_csv(FOLDER / "balance.csv").merge(curves, on=["data_set", "model", "boundary"])
    points = points.assign(trained=points["layers"] - points["boundary"]).query("boundary > 0 and trained > 0")
    found = pd.DataFrame(first_round()["readings"]["correlations"]).set_index(["data_set", "model"])
    names = ["deviation_observed", "loss_observed", "deviation_law", "loss_law", "trained"]
    for place, rows in points.groupby(["data_set", "model"]):
        by_scipy = [spearmanr(rows[name], rows["quality"]).statistic for name in names]
        assert list(found.loc[place, names]) == pytest.approx(by_scipy, abs=1e-6, nan_ok=True)
    embedded = found.xs("embedded", level="model")[names]
    assert embedded.median().to_numpy() == pytest.approx([0.78, 0.78, 0.89, 0.92, 0.90], abs=0.01)
