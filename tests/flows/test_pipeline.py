import json
import os

import pytest
from prefect.artifacts import Artifact
from prefect.testing.utilities import prefect_test_harness

from flows import pipeline as module
from flows.pipeline import main, pipeline
from flows.workspace import sole_run


@pytest.fixture(scope="session", autouse=True)
def prefect_server():
    with prefect_test_harness(server_startup_timeout=240):
        yield


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch):
    monkeypatch.setattr(module, "RETRY_SECONDS", 0)


def run(toy, **options):
    return pipeline(project=toy.root, return_state=True, **options)


def outcomes() -> dict[str, str]:
    rows = json.loads(Artifact.get("stages").data)
    return {row["stage"]: row["outcome"] for row in rows}


def test_the_flow_runs_the_graph_in_order_then_nothing_then_restores(toy, caplog):
    state = run(toy)
    assert state.is_completed()
    assert list(outcomes().items()) == [
        ("first", "ran"),
        ("train@a+b-1", "ran"),
        ("train@c-1", "ran"),
        ("judge", "ran"),
    ]
    assert "first at work" in caplog.text
    metrics = json.loads(Artifact.get("metrics-judge").data)
    assert metrics == [{"metric": "score.accuracy", "value": "0.5"}]

    state = run(toy)
    assert set(outcomes().values()) == {"cached"}
    assert state.message.startswith("nothing had to be done: all 4 stages")
    assert toy.calls("first") == 1


def test_bad_input_is_one_line_and_is_not_tried_again(toy, monkeypatch, capsys, caplog):
    toy.single("bad-input")
    monkeypatch.chdir(toy.root)
    assert main([]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == "error: only: rows.csv: no column 'label'"
    assert toy.calls("only") == 1
    assert outcomes() == {"only": "failed"}
    assert "Traceback" not in caplog.text


def test_a_failure_that_may_pass_is_tried_again(toy):
    toy.single("flaky")
    assert run(toy).is_completed()
    assert toy.calls("only") == 2


def test_what_follows_a_failed_stage_is_not_reached(toy):
    toy.configure(mode="bad-input")
    state = run(toy)
    assert state.is_failed()
    assert state.message == "train@a+b-1: rows.csv: no column 'label'"
    assert outcomes() == {
        "first": "ran",
        "train@a+b-1": "failed",
        "train@c-1": "not reached",
        "judge": "not reached",
    }


def test_a_second_flow_is_refused_and_told_of_the_first(toy):
    with sole_run(toy.root, "early-bird"):
        state = run(toy)
    assert state.is_failed()
    assert f"'early-bird' (process {os.getpid()})" in state.message
    assert toy.calls("first") == 0


def test_an_unknown_target_fails_before_anything_runs(toy, monkeypatch, capsys):
    monkeypatch.chdir(toy.root)
    assert main(["--targets", "trian"]) == 2
    assert "no stage 'trian' in dvc.yaml" in capsys.readouterr().err
    assert toy.calls("first") == 0
