"""A study without DVC gives the tables of the study with it."""

import json
import os
import sys
import time

import psutil
import pytest

from flows.study.__main__ import main as through_dvc
from flows.study.apart import main as apart
from flows.study.tables import sole_writer
from tests.conftest import PROJECT
from tests.flows.study.small import OUT_OF_RANGE, describe, rows, study

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500), pytest.mark.usefixtures("prefect_server")]

CLOCK = ("seconds", "seconds_wall")


def without_the_clock(found):
    return sorted(([(k, v) for k, v in row.items() if k not in CLOCK] for row in found), key=str)


def test_both_ways_give_the_same_rows_and_either_goes_on_from_the_other(project, capsys):
    elsewhere = project / "reports/elsewhere"
    work = ["--work", str(project.parent / "work"), "--workers", "1"]
    assert apart(study("--out", str(elsewhere), *work)) == 0
    assert not list((project.parent / "work/jobs").iterdir())

    assert through_dvc(study()) == 0
    for name in ("runs.csv", "choices.csv", "intervals.csv"):
        assert rows(project, name)
        there = rows(project, f"../elsewhere/{name}")
        assert without_the_clock(there) == without_the_clock(rows(project, name))

    capsys.readouterr()
    assert through_dvc(study("--out", str(elsewhere), "--plan")) == 0
    assert ", 0 fine-tunes left" in capsys.readouterr().out
    before = rows(project)
    assert apart(study(*work)) == 0
    assert rows(project) == before

    describe(project, widen=1)  # the best of two rates is an end of the grid: one more is tried, and nothing else anew
    assert apart(study(*work)) == 0
    after = {row["method"]: row for row in rows(project)}
    (first,) = [row for row in before if row["method"] == "full"]
    beyond = {"0.001": "0.00033", "0.003": "0.009"}[first["learning_rate"]]
    assert after["full"]["rates"] == f"0.001 0.003 {beyond}"
    assert after["full"]["learning_rate"] in (first["learning_rate"], beyond)
    assert float(after["full"]["seconds_wall"]) > float(first["seconds_wall"])
    assert {method for method, row in after.items() if row not in before} == {"full"}
    assert len(rows(project)) == len(before)


def test_what_is_absent_or_over_is_told(project, capsys):
    assert apart(study("--data-sets", "nothing")) == 2
    assert capsys.readouterr().err.startswith("error: no data set 'nothing' is described")
    assert apart(study("--minutes", "0", "--workers", "1", "--work", "../work")) == 0
    assert rows(project) == []
    assert rows(project, "choices.csv")  # without its plan nobody knows the model's depth

    describe(project, rules={"odd": OUT_OF_RANGE}, boundaries=[0, 1])
    capsys.readouterr()
    assert apart(study("--workers", "1", "--work", "../work")) == 1
    told = capsys.readouterr()
    assert told.err.startswith(
        "error: colours, tiny: plan (trace.batch_tokens=1): params.yaml: trace.batch_tokens = 1: "
    )
    assert "left out: elsewhere: no " in told.out
    assert "full" in {row["method"] for row in rows(project)}


def test_other_data_are_prepared_anew(project):
    work = project.parent / "work"
    asked = study("--workers", "1", "--work", str(work), "--only-prepare")
    assert apart(asked) == 0
    assert apart(asked) == 0
    assert len(list((work / "cases").iterdir())) == 1
    describe(project, common={"data.limits": {"train": 30, "validation": 12, "test": 24}})
    assert apart(asked) == 0
    made = sorted(json.loads(meta.read_text())["splits"]["train"]["rows"] for meta in work.glob("cases/*/*/meta.json"))
    assert made == [30, 60]
    assert len(list((work / "bases").iterdir())) == 1


@pytest.mark.parametrize("folder", ["--out", "--work"])
def test_two_do_not_write_the_same_tables(project, capsys, folder):
    held = project.parent / "held"
    with sole_writer(held):
        assert apart(study(folder, str(held), "--workers", "1")) == 2
    assert f"{held}: another study is active there" in capsys.readouterr().err


def test_a_study_that_is_told_to_end_leaves_no_worker(project):
    command = [sys.executable, "-m", "flows.study.apart", *study("--workers", "2", "--work", "../work")]
    running = psutil.Popen(command, env={**os.environ, "PYTHONPATH": str(PROJECT)})
    workers = []
    while len(workers) < 2:
        assert running.is_running()
        time.sleep(0.1)
        workers = running.children()
    running.terminate()
    assert running.wait(60) == 143
    gone, _ = psutil.wait_procs(workers, timeout=10)
    assert len(gone) == 2


def test_a_bug_ends_it_at_once_with_its_traceback(project, monkeypatch):
    """What waits for a worker must not keep a broken study from ending."""

    def broken(*_):
        raise ZeroDivisionError

    monkeypatch.setattr("flows.study.apart.Bench.open_base", broken)
    with pytest.raises(ZeroDivisionError):
        apart(study("--workers", "1", "--work", "../work"))
