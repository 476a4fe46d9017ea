"""The study's tables: whole at any moment, a row per fine-tune."""

import pandas as pd
import pyarrow.parquet as pq
import pytest

from salf.errors import UserError
from stages.study.tables import RUN_KEY, Tables, records, sole_writer
from tests.conftest import PROJECT

PREDICTIONS, RUNS = "predictions.parquet", "runs.csv"

SAID = pd.DataFrame({"example_id": ["x", "y"], "label": ["yes", None], "correct": [True, False], "loss": [0.5, None]})


def run(method="full", seed=1, settings="s", **more):
    key = {"data_set": "a", "model": "m", "seed": seed, "method": method, "budget": "epochs"}
    return {**key, "settings": settings, "method_settings": "", "quality": 0.1 + 0.2, "boundary": 0, **more}


def test_what_is_kept_is_read_back_exactly(tmp_path):
    tables = Tables(tmp_path / "study")
    tables.keep_run(run(), SAID)
    tables.keep_run(run("freeze-2", learning_rate=5e-05), SAID)
    again = Tables(tmp_path / "study")
    pd.testing.assert_frame_equal(again.runs, tables.runs)
    assert again.runs["quality"][0] == 0.1 + 0.2
    assert again.runs["learning_rate"][1] == 5e-05
    said = pq.read_table(tmp_path / "study" / PREDICTIONS).to_pylist()
    assert [row["point"] for row in said] == [row["point"] for row in records(again.runs) for _ in range(2)]
    assert [row["loss"] for row in said] == [0.5, None] * 2
    assert [row["label"] for row in said] == ["yes", None] * 2


def test_what_was_kept_keeps_its_bytes_when_more_is_kept_later(tmp_path):
    Tables(tmp_path).keep_run(run(epochs=1, seconds=2), SAID)
    before = (tmp_path / RUNS).read_bytes()
    Tables(tmp_path).keep_run(run("freeze-2"), SAID)
    assert (tmp_path / RUNS).read_bytes().startswith(before)


def test_a_run_of_the_same_key_takes_the_place_of_the_older(tmp_path):
    tables = Tables(tmp_path)
    tables.keep_run(run(), SAID)
    tables.keep_run(run("freeze-2"), SAID)
    tables.keep_run(run(code="later"), SAID.iloc[:1])
    assert [(row["method"], row.get("code")) for row in records(tables.runs)] == [("freeze-2", ""), ("full", "later")]
    points = pq.read_table(tmp_path / PREDICTIONS)["point"].to_pylist()
    assert points == [tables.runs["point"][0]] * 2 + [tables.runs["point"][1]]


def test_other_settings_are_another_run(tmp_path):
    tables = Tables(tmp_path)
    tables.keep_run(run(), SAID)
    tables.keep_run(run(settings="t"), SAID)
    tables.keep_run(run(seed=2), SAID)
    assert len({row["point"] for row in records(tables.runs)}) == 3


def test_settings_are_kept_once_under_their_digest(tmp_path):
    tables = Tables(tmp_path)
    name = tables.keep_settings({"a": 1})
    assert tables.keep_settings({"a": 1}) == name != tables.keep_settings({"a": 2})
    assert Tables(tmp_path).settings[name] == {"a": 1}


def test_a_row_is_never_there_without_its_predictions(tmp_path, monkeypatch):
    """Killed between the two files: the predictions are there, the row is not, and the next run writes both."""
    tables = Tables(tmp_path)
    tables.keep_run(run(), SAID)

    def dies(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Tables, "_keep", dies)
    with pytest.raises(KeyboardInterrupt):
        tables.keep_run(run("freeze-2"), SAID)
    monkeypatch.undo()
    again = Tables(tmp_path)
    assert list(again.runs["method"]) == ["full"]
    again.keep_run(run("freeze-2"), SAID)
    assert len(pq.read_table(tmp_path / PREDICTIONS)) == 4
    assert (tmp_path / RUNS).read_text().count("\n") == 3


def test_outcomes_of_rates_replace_those_of_the_same_rates(tmp_path):
    tables = Tables(tmp_path)
    for loss, rates in ((2.0, (0.1, 0.2)), (1.0, (0.2, 0.4))):
        more = {"rates": [{"learning_rate": rate, "validation_loss": loss} for rate in rates]}
        tables.keep_run(run(more=more), SAID)
    found = [(row["learning_rate"], row["validation_loss"], row["source"]) for row in records(Tables(tmp_path).rates)]
    assert found == [(0.1, 2.0, ""), (0.2, 1.0, ""), (0.4, 1.0, "")]


def test_scores_of_other_weights_and_of_texts_are_rows_of_their_own(tmp_path):
    kept = [{"keep": keep, "test_accuracy": score} for keep, score in (("last", 0.5), ("mean", 0.75))]
    texts = [{"text": "t", "before": 9.0, "after": 12.0, "tokens": 8}]
    Tables(tmp_path).keep_run(run(more={"kept": kept, "forgetting": texts}), SAID)
    again = Tables(tmp_path)
    assert list(zip(again.kept["keep"], again.kept["test_accuracy"], strict=True)) == [("last", 0.5), ("mean", 0.75)]
    (row,) = records(again.forgetting)
    assert (row["method"], row["before"], row["after"], row["point"]) == ("full", 9.0, 12.0, again.runs["point"][0])


@pytest.mark.parametrize("name", ["runs", "rates"])
def test_the_committed_tables_keep_their_bytes(tmp_path, name):
    """Read, written and read again, whatever is added later."""
    committed = PROJECT / "reports/study"
    table = getattr(Tables(committed), name)
    Tables(tmp_path)._keep(name, table.iloc[:0], records(table), RUN_KEY[:2])
    assert (tmp_path / f"{name}.csv").read_bytes() == (committed / f"{name}.csv").read_bytes()


def test_a_damaged_table_is_one_line(tmp_path):
    (tmp_path / "runs.csv").write_text("seed\nmany\n")
    with pytest.raises(UserError, match=r"runs\.csv: damaged table"):
        Tables(tmp_path)


def test_a_folder_has_one_writer(tmp_path):
    held = tmp_path / "held"
    refused = pytest.raises(UserError, match="held: another study is active there")
    with sole_writer(held), refused, sole_writer(held):
        pass
    with sole_writer(held):
        pass
