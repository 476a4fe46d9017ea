import threading

import pytest
from ruamel.yaml import YAML

from flows.lineage.ledger import Ledger, record_all, record_stage
from flows.lineage.project import lock_entry
from tests.flows.lineage.conftest import Project


def lock_of(project, stage: str):
    return lock_entry(YAML(typ="safe").load((project.root / "dvc.lock").read_text())["stages"][stage])


def test_a_run_is_claimed_once_and_tied_to_what_dvc_locked(project):
    project.dvc("repro", "prepare")
    record_stage(project.root, "prepare", "ran", "flow-1")
    (start,), (locked,) = project.records("start"), project.records("locked")
    assert locked.run == start.run
    assert (locked.outcome, locked.flow_run) == ("ran", "flow-1")
    assert locked.lock == lock_of(project, "prepare")
    record_stage(project.root, "prepare", "cached", "flow-2")
    assert record_all(project.root) == []
    assert len(project.records("locked")) == 1
    assert Ledger(project.ledger).faults == []


def test_a_lock_in_the_middle_of_being_written_is_read_again(project):
    """DVC rewrites the file in place: a stage that ends beside this one leaves it cut short for a moment."""
    project.dvc("repro", "prepare")
    lock = project.root / "dvc.lock"
    whole = lock.read_text()
    lock.write_text(whole[: whole.index("stages:")])
    mending = threading.Timer(0.3, lock.write_text, [whole])
    mending.start()
    record_stage(project.root, "prepare", "ran", None)
    mending.join()
    (locked,) = project.records("locked")
    assert locked.lock == lock_of(project, "prepare")


def test_what_dvc_restores_is_tied_to_the_run_that_made_it(project):
    for word in ("red", "blue"):
        project.params(prepare=word)
        project.dvc("repro", "prepare")
        record_stage(project.root, "prepare", "ran", None)
    project.params(prepare="red")
    assert "is cached - skipping run" in project.dvc("repro", "prepare")
    record_stage(project.root, "prepare", "restored", None)
    red, blue, restored = project.records("locked")
    assert len(project.records("start")) == 2
    assert restored.run == red.run != blue.run
    assert (restored.outcome, restored.lock) == ("restored", red.lock)


def test_plain_dvc_runs_are_taken_over_afterwards(project):
    project.dvc("repro")
    assert record_all(project.root) == ["prepare", "train@1", "train@2", "judge"]
    runs = {start.stage: start.run for start in project.records("start")}
    assert {r.stage: r.run for r in project.records("locked")} == runs
    assert {r.outcome for r in project.records("locked")} == {"ran"}


def test_a_lock_that_no_run_explains_is_only_observed(project):
    project.dvc("repro", "prepare")
    record_all(project.root)
    (project.root / "data/prepared/one").unlink()
    (project.root / "data/prepared/one").write_text("by hand")
    project.dvc("commit", "--force", "prepare")
    assert record_all(project.root) == ["prepare"]
    assert (project.records("locked")[-1].outcome, project.records("locked")[-1].run) == ("observed", None)


def test_a_failed_run_claims_nothing(project):
    project.dvc("repro", "prepare")
    record_all(project.root)
    project.params(prepare="bad")
    project.dvc("repro", "prepare", check=False)
    assert project.records("end")[-1].status == 2
    assert record_all(project.root) == []


@pytest.mark.slow
def test_an_experiment_in_a_temporary_copy_is_not_taken_for_a_run_here(tmp_path):
    project = Project(tmp_path / "plain letters")  # DVC's own experiments fail in a folder with others
    project.dvc("repro", "prepare")
    record_all(project.root)
    project.commit("ran")
    project.dvc("exp", "run", "--temp", "--set-param", "prepare.word=blue", "prepare")
    assert [start.temporary for start in project.records("start")] == [False, True]
    project.params(prepare="green")
    project.dvc("commit", "--force", "prepare")
    assert record_all(project.root) == ["prepare"]
    assert project.records("locked")[-1].outcome == "observed"


def test_an_unknown_outcome_is_a_bug_of_the_caller(project):
    project.dvc("repro", "prepare")
    with pytest.raises(ValueError, match="'done'"):
        record_stage(project.root, "prepare", "done", None)
