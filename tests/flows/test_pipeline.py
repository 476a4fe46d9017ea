import json
import os

import pytest
from prefect.artifacts import Artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

from flows import pipeline as module
from flows.aside import keep_aside
from flows.graph import read_graph
from flows.pipeline import main, pipeline
from flows.workspace import sole_run

pytestmark = pytest.mark.usefixtures("prefect_server")


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


def test_a_task_says_in_its_state_what_dvc_did(toy):
    def names() -> dict[str, str]:
        state = run(toy, targets=["first"])
        with get_client(sync_client=True) as client:
            of_run = FlowRunFilter(id=FlowRunFilterId(any_=[state.state_details.flow_run_id]))
            return {task.name: task.state.name for task in client.read_task_runs(flow_run_filter=of_run)}

    assert names() == {"first": "Ran"}
    assert names() == {"first": "Cached"}
    toy.configure(word="other")
    assert names() == {"first": "Ran"}
    toy.configure()
    assert names() == {"first": "Restored"}


def test_an_uncached_output_that_a_killed_run_lost_is_put_back_by_the_next_one(toy):
    toy.uncached("red", "fine")
    assert run(toy).is_completed()
    before = (toy.root / "page.html").read_text()
    keep_aside(read_graph(toy.root)[0], toy.root)
    (toy.root / "page.html").unlink()
    assert run(toy).is_completed()
    assert outcomes() == {"only": "cached"}
    assert (toy.root / "page.html").read_text() == before


def test_overrides_hold_for_one_run(toy):
    assert run(toy, targets=["first"]).is_completed()
    before = (toy.root / "params.yaml").read_bytes()
    assert run(toy, targets=["first"], overrides={"word": "other"}).is_completed()
    assert (toy.root / "first.txt").read_text().startswith("other")
    assert (toy.root / "params.yaml").read_bytes() == before
    assert run(toy, targets=["first"]).is_completed()
    assert outcomes() == {"first": "restored"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--set", "wrod=x"], "error: wrod: unknown parameter; did you mean word?"),
        (["--set", "word=[x"], "error: word: not valid YAML"),
    ],
)
def test_a_bad_request_is_one_line_and_runs_nothing(toy, monkeypatch, capsys, words, message):
    monkeypatch.chdir(toy.root)
    assert main(words) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(message)
    assert toy.calls("first") == 0


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
