"""What a study starts first: curves of all datasets before anything that makes them finer."""

import pandas as pd
import pytest

from stages.study.agenda import FineTune
from stages.study.description import Case
from stages.study.progress import Job, Progress
from stages.study.settings import Places
from stages.study.tables import Tables, records
from tests.conftest import PROJECT

A, B = Case("a", "m"), Case("b", "m")


@pytest.fixture
def progress(described, tmp_path, monkeypatch):
    """Two data sets, of which the first one's model was looked at already."""
    rules = {"half": {"selector": "half"}, "raw": {"selector": "salf", "set": {"trace.space": "raw"}}}
    description = described(methods={"lisa": {}}, rules=rules, together=4)
    found = Progress(description, Places(PROJECT, tmp_path, tmp_path), Tables(tmp_path / "study"))
    plain = next(look for look in found.looks() if (look.case, look.source) == (A, "plain"))
    row = {"data_set": "a", "model": "m", "rule": "half", "selector": "half", "boundary": 3, "layers": 8}
    found.tables.keep_choices([{**row, "settings": found.tables.keep_settings(plain.settings)}])
    return found


def words(jobs):
    return [job.words for job in jobs]


def test_every_data_set_has_its_coarse_grid_before_another_plan_is_made(progress):
    assert words(progress.ready([])) == [
        "a, m, seed 1: full, freeze-4 at equal epochs",
        "b, m: plan (plain)",
        "a, m: plan (trace.space=raw)",
        "b, m: plan (trace.space=raw)",
        "a, m, seed 1: lisa at equal epochs",
    ]


def test_what_runs_or_has_failed_is_not_started_again(progress):
    first = progress.ready([])
    assert words(progress.ready(first[:2])) == words(first[2:])


def test_a_boundary_of_the_grid_is_no_other_method(progress):
    lisa = FineTune(A, 1, "lisa", 0, "epochs", (0.1,))
    full, later = FineTune(A, 1, "full", 0, "epochs", (0.1,)), FineTune(A, 2, "full", 0, "epochs", (0.1,))
    longer = FineTune(A, 1, "freeze-4", 4, "compute", (0.1,))
    ranks = [progress.rank(Job(fine_tunes=(one,))) for one in (full, lisa, later, longer)]
    assert ranks == [(0, 0, 0, 0), (1, 0, 1, 0), (0, 0, 1, 0), (1, 0, 1, 0)]


def test_a_rule_that_stands_for_another_selector_is_looked_at_again(progress):
    row = records(progress.tables.choices)[0]
    progress.tables.keep_choices([{**row, "selector": "full"}])
    assert (A, "plain") in [(look.case, look.source) for look in progress.looks()]


def test_a_finished_fine_tune_is_not_wanted_again_while_its_settings_hold(progress):
    (full, *_) = progress.ready([])[0].fine_tunes
    case = progress.settings[A]
    row = {"data_set": "a", "model": "m", "method": "full", "seed": 1, "budget": "epochs", "boundary": 0, "layers": 8}
    row |= {"rates": "0.001 0.002", "learning_rate": 0.002, "validation_loss": 1.0, "method_settings": ""}
    row |= {"settings": progress.tables.keep_settings(case.training), "seconds_wall": 20.0, "machine": "elsewhere"}
    said = pd.DataFrame({"example_id": ["x"], "label": ["yes"], "correct": [True], "loss": [0.5]})
    progress.tables.keep_runs([(row, said)])
    known = progress.known()
    assert known.done[full] == 0.002
    assert full not in progress.wanted(known)
    outlook = progress.outlook()
    assert "2 pairs of dataset and model, 1 fine-tunes finished, 3 plans to make" in outlook
    other = {**case.training, "prepare": {**case.training["prepare"], "max_tokens": 9}}
    progress.tables.keep_runs([({**row, "settings": progress.tables.keep_settings(other)}, said)])
    assert len(progress.known().done) == 1
    changed = Progress(progress.description, progress.places, Tables(progress.tables.folder))
    changed.settings[A] = case._replace(training=other)
    assert len(changed.known().done) == 1
    changed.settings[A] = case._replace(training={**other, "data": {}})
    assert changed.known().done == {}
