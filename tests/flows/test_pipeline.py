import os

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

from flows import pipeline as module
from flows.pipeline import counts_line, main, pipeline
from flows.stage_run import Outcome, StageRun
from flows.workspace import sole_run

pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch):
    monkeypatch.setattr(module, "RETRY_SECONDS", 0)


def run(toy, **options):
    return pipeline(project=toy.root, return_state=True, **options)


def outcomes(state) -> dict[str, str]:
    """Name and state of every task of a flow run, in the order of their starts."""
    with get_client(sync_client=True) as client:
        of_run = FlowRunFilter(id=FlowRunFilterId(any_=[state.state_details.flow_run_id]))
        tasks = client.read_task_runs(flow_run_filter=of_run)
    return {task.name: task.state.name for task in sorted(tasks, key=lambda task: task.start_time)}


def test_the_flow_runs_the_graph_in_order_then_nothing(toy, caplog):
    state = run(toy)
    assert state.is_completed()
    assert list(outcomes(state)) == ["first", "train@a+b-1", "train@c-1", "judge"]
    assert set(outcomes(state).values()) == {"Ran"}
    assert "first at work" in caplog.text

    state = run(toy)
    assert set(outcomes(state).values()) == {"Cached"}
    assert state.message.startswith("nothing had to be done: all 4 stages")
    assert toy.calls("first") == 1


def test_the_counts_add_up_to_the_stages():
    runs = [StageRun(Outcome.CACHED, 60), StageRun(Outcome.RAN, 1), StageRun(Outcome.RAN, 62)]
    assert counts_line(runs) == "2 ran, 1 cached in 2.05 min"


def test_a_task_says_in_its_state_what_dvc_did(toy):
    def names() -> dict[str, str]:
        return outcomes(run(toy, targets=["first"]))

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
    (toy.root / "page.html").unlink()
    assert outcomes(run(toy)) == {"only": "Restored"}
    assert toy.calls("page") == 1
    assert (toy.root / "page.html").read_text() == before


def test_overrides_hold_for_one_run(toy):
    assert run(toy, targets=["first"]).is_completed()
    before = (toy.root / "params.yaml").read_bytes()
    assert run(toy, targets=["first"], overrides={"word": "other"}).is_completed()
    assert (toy.root / "first.txt").read_text().startswith("other")
    assert (toy.root / "params.yaml").read_bytes() == before
    assert outcomes(run(toy, targets=["first"])) == {"first": "Restored"}


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
    assert outcomes(state) == {"first": "Ran", "train@a+b-1": "Failed"}


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
