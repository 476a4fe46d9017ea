"""What of a plan's artifacts becomes rows."""

from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.study import harvest
from stages.study.agenda import PLAIN, Look
from stages.study.description import Case, Rule

HERE = Path("job")


@pytest.fixture
def made(monkeypatch):
    """Artifacts of a model of two layers."""

    def make():
        chosen = {"half": (1, None), "pilot": (1, None), "arrival": (2, 0), "tolerance": (2, 0)}
        boundaries = {
            name: SimpleNamespace(boundary=k, before_budget=before, scores=[None, 1.0, None], reason="because")
            for name, (k, before) in chosen.items()
        }
        model = SimpleNamespace(layers=2)
        plan = SimpleNamespace(model=model, selector="arrival", boundaries=boundaries, absent={"probe": "no signals"})
        pilot = SimpleNamespace(flops=SimpleNamespace(share=1.5))
        monkeypatch.setattr(harvest, "_pilot", lambda _: pilot)
        monkeypatch.setattr(harvest.FreezePlan, "load", lambda _: plan)

    return make


def look(source=PLAIN, **rules):
    rules = {name: Rule(selector=selector) for name, selector in rules.items()}
    return Look(Case("a", "m"), source, {}, rules, {})


def test_a_selector_without_its_evidence_keeps_the_reason_and_pilots_their_price(made):
    made()
    rows = {row["rule"]: row for row in harvest.choices(look(half="half", cheap="pilot", probe="probe"), HERE)}
    assert (rows["half"]["boundary"], rows["half"]["scores"]) == (1, "[null, 1.0, null]")
    assert (rows["half"]["deciding_share"], rows["cheap"]["deciding_share"]) == (None, 1.5)
    assert ("boundary" in rows["probe"], rows["probe"]["reason"]) == (False, "no signals")
    assert all(row["machine"] and row["cores"] >= 1 for row in rows.values())


def test_traced_curves_are_means_over_an_example_s_positions(tmp_path):
    (tmp_path / "data/traces").mkdir(parents=True)
    rows = [("x", [1.0, 3.0], [4.0, 8.0]), ("y", [5.0, 6.0], None), ("x", [2.0, 1.0], [6.0, 2.0])]
    for i, part in enumerate((rows[:1], rows[1:])):
        table = [dict(zip(("example_id", "deviation", "loss"), row, strict=True)) for row in part]
        pq.write_table(pa.Table.from_pylist(table), tmp_path / f"data/traces/part-{i:05d}.parquet")
    traced = Look(Case("a", "m"), PLAIN, {}, {}, {"trace": {"basis": "head"}})
    x, y = harvest.traces(traced, tmp_path)
    assert [x[name] for name in ("data_set", "model", "basis", "example_id")] == ["a", "m", "head", "x"]
    assert (x["deviation"].tolist(), x["loss"].tolist()) == ([1.5, 2.0], [5.0, 5.0])
    assert (y["deviation"].tolist(), y.get("loss")) == ([5.0, 6.0], None)


def test_the_budget_counts_for_the_plans_own_selector_alone(made):
    made()
    rows = {row["rule"]: row["boundary"] for row in harvest.choices(look(own="arrival", other="tolerance"), HERE)}
    assert rows == {"own": 2, "other": 0}
