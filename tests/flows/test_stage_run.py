import psutil
import pytest

from flows import processes
from flows.graph import read_graph
from flows.stage_run import Outcome, StageFailedError, failure, outcome, run_stage


def only(toy):
    return read_graph(toy.root)[0]


def test_ran_cached_and_restored_are_told_apart(toy):
    lines: list[str] = []

    def bring_up(word: str) -> Outcome:
        toy.configure(word=word)
        return toy.run(read_graph(toy.root)[0], lines).outcome

    assert bring_up("red") is Outcome.RAN
    assert "first at work" in lines
    assert bring_up("red") is Outcome.CACHED
    assert bring_up("blue") is Outcome.RAN
    assert bring_up("red") is Outcome.RESTORED
    assert toy.calls("first") == 2
    assert (toy.root / "first.txt").read_text().startswith("red")


def test_a_full_cache_fails_the_stage_although_dvc_ends_well(toy, monkeypatch):
    told = ["Running stage 'only':", "ERROR: failed to transfer 'md5: 1': No space left on device"]

    def full(_command, _folder, _environment, on_line, *_options):
        for line in told:
            on_line(line)
        return 0

    monkeypatch.setattr("flows.workspace.run_streaming", full)
    toy.single("fine")
    with pytest.raises(StageFailedError, match=r"only: failed to transfer .*No space left") as fault:
        toy.run(only(toy))
    assert not fault.value.passing


def test_force_runs_what_did_not_change(toy):
    toy.single("fine")
    toy.run(only(toy))
    assert toy.run(only(toy), force=True).outcome is Outcome.RAN
    assert toy.calls("only") == 2


def test_bad_input_is_the_stages_own_line_and_does_not_pass(toy):
    toy.single("bad-input")
    with pytest.raises(StageFailedError, match=r"^only: rows\.csv: no column 'label'$") as fault:
        toy.run(only(toy))
    assert not fault.value.passing


def test_a_crash_may_pass(toy):
    toy.single("crash")
    with pytest.raises(StageFailedError, match=r"^only: exited with 1; its log has the reason$") as fault:
        toy.run(only(toy))
    assert fault.value.passing


def test_a_missing_input_is_dvcs_line_and_does_not_pass(toy):
    toy.single("fine")
    (toy.root / "toy.py").unlink()
    with pytest.raises(StageFailedError, match=r"^only: .*toy\.py") as fault:
        toy.run(only(toy))
    assert not fault.value.passing


@pytest.mark.slow
def test_a_time_out_ends_dvc_and_the_stages_children(toy, monkeypatch):
    monkeypatch.setattr(processes, "GRACE_SECONDS", 1.0)
    toy.single("hang", timeout=6)
    with pytest.raises(StageFailedError, match=r"^only: stopped after 6 s \(meta.timeout\)$") as fault:
        toy.run(only(toy))
    assert fault.value.passing
    pids = [int(pid) for pid in (toy.root / "calls/pids").read_text().split()]
    assert len(pids) == 2
    assert not any(psutil.pid_exists(pid) for pid in pids)
    toy.single("fine")  # DVC's own lock did not stay behind
    assert toy.run(only(toy)).outcome is Outcome.RAN


def texts(toy) -> dict[str, str]:
    return {name: (toy.root / name).read_text() for name in ("page.html", "out.txt", "end.txt")}


def made(toy) -> dict[str, str]:
    """Run the only stage to a good end and return its outputs."""
    toy.uncached("old", "fine")
    toy.run(only(toy))
    return texts(toy)


def stop_at_work(toy) -> None:
    """Run the only stage and stop it once its last command is at work."""

    def on_line(line: str) -> None:
        if line == "only at work":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_stage(only(toy), toy.held, on_line)


def test_a_stage_that_fails_leaves_its_outputs_as_they_were_uncached_ones_too(toy):
    before = made(toy)
    toy.uncached("new", "crash")
    with pytest.raises(StageFailedError, match="exited with 1"):
        toy.run(only(toy))
    assert toy.calls("page") == 2
    assert texts(toy) == before
    toy.uncached("old", "fine")
    assert toy.run(only(toy)).outcome is Outcome.CACHED


def test_a_stage_that_finds_an_input_missing_leaves_its_outputs_as_they_were(toy):
    before = made(toy)
    (toy.root / "toy.py").unlink()
    with pytest.raises(StageFailedError, match=r"toy\.py"):
        toy.run(only(toy))
    assert texts(toy) == before


def test_a_stage_that_is_stopped_leaves_its_outputs_as_they_were_uncached_ones_too(toy, monkeypatch):
    monkeypatch.setattr(processes, "GRACE_SECONDS", 1.0)
    before = made(toy)
    toy.uncached("new", "hang")
    stop_at_work(toy)
    assert toy.calls("page") == 2
    assert texts(toy) == before


def test_a_stage_that_is_stopped_the_first_time_leaves_nothing_half_done(toy, monkeypatch):
    monkeypatch.setattr(processes, "GRACE_SECONDS", 1.0)
    toy.uncached("new", "hang")
    stop_at_work(toy)
    assert toy.calls("out") == 1
    assert not any((toy.root / name).exists() for name in ("page.html", "out.txt", "end.txt"))


@pytest.mark.slow
def test_a_stage_whose_time_is_up_leaves_its_outputs_as_they_were_uncached_ones_too(toy, monkeypatch):
    monkeypatch.setattr(processes, "GRACE_SECONDS", 1.0)
    before = made(toy)
    toy.uncached("new", "hang")
    with pytest.raises(StageFailedError, match="stopped after 12 s"):
        toy.run(only(toy))
    assert toy.calls("page") == 2
    assert texts(toy) == before


def test_while_another_dvc_is_at_work_on_the_outputs_they_are_left_to_it(toy, monkeypatch):
    made(toy)

    def busy(_command, _folder, _environment, on_line, *_options):
        (toy.root / "page.html").write_text("the other one's")
        (toy.root / "out.txt").unlink()
        on_line("ERROR: 'out.txt' is busy, it is being blocked by:")
        return 255

    monkeypatch.setattr("flows.workspace.run_streaming", busy)
    with pytest.raises(StageFailedError, match="is busy"):
        toy.run(only(toy))
    assert (toy.root / "page.html").read_text() == "the other one's"


def test_a_busy_dvc_may_pass_and_a_refusal_may_not():
    busy = ["ERROR: 'out.txt' is busy, it is being blocked by:", "  (PID 7): dvc repro"]
    assert failure("x", busy, 255).passing
    assert not failure("x", ["ERROR: './dvc.yaml' is invalid."], 255).passing


def test_another_stages_lines_are_not_this_stages():
    assert outcome("train@a-1", ["Running stage 'train@a-10':"]) is None


@pytest.mark.parametrize("status", [-9, 137, -7])
def test_a_killed_stage_is_told_what_needs_less_memory(status):
    lines = [
        f"ERROR: failed to reproduce 'finetune@full-1': failed to run: python -m stages.finetune, exited with {status}"
    ]
    fault = str(failure("finetune@full-1", lines, 255))
    assert fault.startswith(f"finetune@full-1: ended by {'SIGBUS' if status == -7 else 'SIGKILL'}, as a rule for lack")
    assert "raise finetune.accumulate" in fault
