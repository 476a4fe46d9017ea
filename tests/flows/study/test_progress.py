"""What a study starts first: curves of all data sets before anything that makes them finer."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows.study.agenda import Case, FineTune
from flows.study.description import Rule
from flows.study.item import Item, asked, keep, ready
from flows.study.outlook import outlook
from flows.study.progress import Progress
from flows.study.settings import Places
from flows.study.tables import PREDICTIONS, Tables
from salf.rate_choice import Tried, choose
from tests.conftest import PROJECT

A, B = Case("a", "m"), Case("b", "m")


@pytest.fixture
def progress(described, tmp_path, monkeypatch):
    """Two data sets, of which the first one's model was looked at already."""
    rules = {"half": {"selector": "half"}, "raw": {"selector": "salf", "set": {"trace.space": "raw"}}}
    description = described(methods=["lisa"], rules=rules, together=4)
    found = Progress(description, Places(PROJECT, tmp_path, tmp_path), Tables(tmp_path / "study"), False)
    plain = next(look for look in found.looks() if (look.case, look.source) == (A, "plain"))
    row = {"data_set": "a", "model": "m", "rule": "half", "selector": "half", "boundary": 3, "layers": 8}
    found.tables.keep_choices([{**row, "settings": found.tables.keep_settings(plain.settings)}], [])
    return found


def words(items):
    return [item.words for item in items]


def test_every_data_set_has_its_coarse_grid_before_another_plan_is_made(progress):
    assert words(ready(progress, [])) == [
        "a, m, seed 1: full, freeze-4 at equal epochs",
        "b, m: plan (plain)",
        "a, m: plan (trace.space=raw)",
        "b, m: plan (trace.space=raw)",
        "a, m, seed 1: lisa at equal epochs",
    ]


def test_what_runs_or_has_failed_is_not_started_again(progress):
    first = ready(progress, [])
    assert words(ready(progress, first[:2])) == words(first[2:])


def test_a_boundary_of_the_grid_is_no_other_method(progress):
    lisa = FineTune(A, 1, "lisa", 0, "epochs", (0.1,))
    full, later = FineTune(A, 1, "full", 0, "epochs", (0.1,)), FineTune(A, 2, "full", 0, "epochs", (0.1,))
    longer = FineTune(A, 1, "freeze-4", 4, "compute", (0.1,))
    ranks = [progress.rank((one,)) for one in (full, lisa, later, longer)]
    assert ranks == [(0, 0, 0, 0), (1, 0, 1, 0), (0, 0, 1, 0), (1, 0, 1, 0)]


def test_a_rule_that_stands_for_another_selector_is_looked_at_again(progress):
    row = progress.tables.choices[0]
    progress.tables.keep_choices([{**row, "selector": "full"}], [])
    assert (A, "plain") in [(look.case, look.source) for look in progress.looks()]


def test_what_is_left_takes_as_long_as_it_took_here_or_elsewhere(progress, monkeypatch):
    """A plan of half a minute and a full fine-tune of ten seconds were measured by a machine with two cores."""
    where = {"machine": "Some Processor", "cores": 2}
    monkeypatch.setattr("flows.study.harvest.where", lambda: where)
    assert "how long is known after the first of each)" in outlook(progress)
    row = progress.tables.choices[0]
    progress.tables.keep_choices([{**row, **where, "seconds": 30.0}], [])
    done = {"data_set": "a", "model": "m", "method": "full", "boundary": 0, "layers": 8, "seed": 9, "rates": "0.1"}
    done |= {**where, "budget": "epochs", "seconds_wall": 10.0, "settings": "of another study"}
    progress.tables.runs.append(done)
    progress.description = progress.description.model_copy(update={"rules": {"half": Rule(selector="half")}})
    progress.every_look = [look for look in progress.every_look if look.source == "plain"]
    assert "1 plan to make (about 30 s)" in outlook(progress)
    assert "on this machine (Some Processor with 2 cores; 1 fine-tune measured here)" in outlook(progress)
    monkeypatch.setattr("flows.study.harvest.where", lambda: {"machine": "Another", "cores": 1})
    said = outlook(progress)
    assert "on Some Processor with 2 cores, which measured most" in said
    assert "nothing was measured on this machine (Another with 1 core) yet" in said


def outcome(rate, loss, accuracy):
    tested = {"test_loss": loss + 1, "test_accuracy": accuracy and accuracy - 0.1}
    return {"learning_rate": rate, "validation_loss": loss, "validation_accuracy": accuracy, **tested}


@pytest.fixture
def run(progress, monkeypatch):
    """Runs the first full fine-tune that is wanted, whose rates have these outcomes; returns the rates trained at."""

    def run(outcomes):
        def results(_made, batch, facts):
            for one in batch:
                tried = [outcome(rate, *outcomes[rate]) for rate in one.new_rates]
                stood = [Tried(rate, *outcomes[rate]) for rate in one.new_rates]
                best = outcome(choose(stood, 256).rate, *outcomes[choose(stood, 256).rate])
                row = {"seed": one.seed, "method": one.method, "budget": one.budget, "boundary": one.boundary}
                row |= {"data_set": "a", "model": "m", "rates": " ".join(map(repr, one.rates)), **best}
                row |= {"loss": best["test_loss"], "quality": best["test_accuracy"], "validation_examples": 256}
                yield {**facts, **row, "outcomes": tried if len(one.rates) > 1 else []}, said(best["learning_rate"])

        item = next(item for item in ready(progress, []) if item.fine_tunes and item.fine_tunes[0].method == "full")
        only = Item.of((item.fine_tunes[0],))
        monkeypatch.setattr("flows.study.harvest.results", results)
        keep(only, None, progress, 10.0)
        return asked(only, progress)[0]["finetune.learning_rate"]["full"]

    progress.description = progress.description.model_copy(update={"widen": 1})
    return run


def said(rate):
    names = {"example_id": ["x", "y"], "label": ["yes", "no"], "correct": [True, False]}
    return pa.table({**names, "loss": pa.array([rate, rate])})


@pytest.mark.parametrize(
    ("loss", "accuracy", "rate"),
    [(0.8, None, 0.004), (1.0, None, 0.002), (1.2, None, 0.002), (0.8, 0.5, 0.002), (1.2, 0.9, 0.004)],
)
def test_of_a_widened_grid_the_best_rate_is_kept_wherever_it_was_tried(progress, run, loss, accuracy, rate):
    """What it said of the test examples is kept with it, and the outcome of every rate."""
    stood = accuracy and 0.8
    outcomes = {0.001: (1.5, stood), 0.002: (1.0, stood), 0.004: (loss, accuracy)}
    assert [run(outcomes), run(outcomes)] == [[0.001, 0.002], [0.004]]
    (row,) = progress.tables.runs
    assert (row["rates"], row["learning_rate"], row["seconds_wall"]) == ("0.001 0.002 0.004", rate, 20.0)
    assert row["validation_loss"] == (loss if rate == 0.004 else 1.0)
    assert pq.read_table(progress.tables.folder / PREDICTIONS)["loss"].to_pylist() == pytest.approx([rate, rate])
    again = Tables(progress.tables.folder)
    assert (again.runs, again.rates) == (progress.tables.runs, progress.tables.rates)
    names = ("learning_rate", "validation_loss", "validation_accuracy", "test_loss", "test_accuracy")
    assert sorted(tuple(one[name] for name in names) for one in again.rates) == [
        tuple(outcome(rate, *stood)[name] for name in names) for rate, stood in outcomes.items()
    ]
    assert {(one["point"], one["method"], one["source"]) for one in again.rates} == {(row["point"], "full", "")}
    left = [(one.seed, one.rates) for item in ready(progress, []) for one in item.fine_tunes if one.method == "full"]
    assert left == [(2, (rate,))]
    assert run(outcomes) == [rate]
    assert len(progress.tables.rates) == 3  # a single rate is in runs.csv


def test_where_a_new_rate_brings_back_one_that_had_lost_all_are_trained_again(progress, run):
    """The audit's example; another process goes on from the tables."""
    outcomes = {0.001: (0.40, 0.84), 0.002: (0.50, 0.86), 0.0005: (0.60, 0.87)}
    assert [run(outcomes), run(outcomes)] == [[0.001, 0.002], [0.0005]]
    (before,) = progress.tables.runs
    assert (before["rates"], before["learning_rate"], before["seconds_wall"]) == ("0.001 0.002", 0.001, 20.0)
    progress.tables = Tables(progress.tables.folder)
    assert len(progress.tables.rates) == 3
    assert run(outcomes) == [0.001, 0.002, 0.0005]
    (row,) = progress.tables.runs
    assert (row["rates"], row["learning_rate"]) == ("0.001 0.002 0.0005", 0.002)
    assert run(outcomes) == [0.002]  # the next seed
