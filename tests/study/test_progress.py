"""What a study does next, by its tables."""

import pandas as pd
import pytest

from stages.study.agenda import FineTune
from stages.study.description import Case
from stages.study.progress import Progress
from stages.study.settings import Places
from stages.study.tables import Tables
from tests.conftest import PROJECT

A, B = Case("a", "m"), Case("b", "m")


@pytest.fixture
def progress(described, tmp_path):
    """Two data sets, of which nothing is measured."""
    arms = {"lisa": {}, "lora-64": {"method": "lora", "set": {"finetune.lora_rank": 64}, "seeds": [1]}}
    description = described(methods=arms, seeds=[1])
    return Progress(description, Places(PROJECT, tmp_path, tmp_path), Tables(tmp_path / "study"))


def words(fine_tunes):
    return [one.words for one in fine_tunes]


def row_of(progress, one, **more):
    """A finished fine-tune's row, and its predictions."""
    found = {**one.case._asdict(), "method": one.method, "seed": one.seed, "budget": one.budget, "layers": 8}
    found |= {"rates": " ".join(map(repr, one.rates)), "learning_rate": one.rates[-1]}
    found |= {"settings": progress.tables.keep_settings(progress.settings[one.case].training), "method_settings": ""}
    said = pd.DataFrame({"example_id": ["x"], "label": ["yes"], "correct": [True], "loss": [0.5]})
    return {**found, "validation_loss": 1.0, "seconds_wall": 20.0, "machine": "elsewhere", **more}, said


def test_boundaries_come_first_and_what_is_running_is_not_started_again(progress):
    first = progress.ready([])
    assert words(first) == [
        "a, m, seed 1: full at equal epochs",
        "a, m, seed 1: freeze-4 at equal epochs",
        "b, m, seed 1: full at equal epochs",
        "b, m, seed 1: freeze-4 at equal epochs",
        "a, m, seed 1: lisa at equal epochs",
        "a, m, seed 1: lora-64 at equal epochs",
        "b, m, seed 1: lisa at equal epochs",
        "b, m, seed 1: lora-64 at equal epochs",
    ]
    assert words(progress.ready(first[:2])) == words(first[2:])


def test_a_finished_fine_tune_is_not_wanted_again_while_its_settings_hold(progress):
    full, case = progress.ready([])[0], progress.settings[A]
    row, said = row_of(progress, full)
    progress.tables.keep_run(row, said)
    known = progress.known()
    assert known.done[full] == 0.002
    assert full not in progress.wanted(known)
    told = progress.outlook().splitlines()
    assert told[0] == ("study: 2 pairs of dataset and model, 1 fine-tunes finished, 9 fine-tunes left")
    assert told[1:] == [
        "  freeze-4: a 1, b 1",
        "  freeze-8: a 1, b 1",
        "  full: b 1",
        "  lisa: a 1, b 1",
        "  lora-64: a 1, b 1",
    ]
    other = {**case.training, "prepare": {**case.training["prepare"], "max_tokens": 9}}
    progress.tables.keep_run({**row, "settings": progress.tables.keep_settings(other)}, said)
    assert len(progress.known().done) == 1
    changed = Progress(progress.description, progress.places, Tables(progress.tables.folder))
    changed.settings[A] = case._replace(training=other)
    assert len(changed.known().done) == 1
    changed.settings[A] = case._replace(training={**other, "data": {}})
    assert changed.known().done == {}


def test_other_settings_of_a_method_make_it_another(progress):
    arm = progress.description.methods["lora-64"]
    one = FineTune(A, 1, "lora-64", "epochs", (0.001, 0.002))
    own = progress._own(A, "lora-64")
    assert (own["lora_rank"], own["set"]) == (64, arm.set)
    row, said = row_of(progress, one, method_settings=progress.tables.keep_settings(own))
    progress.tables.keep_run(row, said)
    assert one in progress.known().done
    rank_8 = {**own, "set": {"finetune.lora_rank": 8}}
    progress.tables.keep_run({**row, "method_settings": progress.tables.keep_settings(rank_8)}, said)
    progress.tables.runs = progress.tables.runs.tail(1)
    assert one not in progress.known().done
