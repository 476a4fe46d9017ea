"""Clocks, peaks, processes and what is kept: the benchmark's own machinery."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch

from salf.errors import UserError
from stages.bench import processes
from stages.bench.contender import Contender, Kept, Lap, PeakMemory
from stages.bench.processes import deciding, stage_names, startup
from tests.conftest import PROJECT

CPU = torch.device("cpu")
MEBI = 1 << 20


class Allocating:
    """Holds so many MiB for a moment."""

    device = CPU

    def __init__(self, fails):
        if fails == "at start":
            raise ValueError("no such weights")

    def run(self, *, mebibytes):
        if mebibytes < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        held = torch.ones(mebibytes * MEBI // 4)
        return Lap([float(held[-1])], [])


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells the peak anew")
def test_each_piece_of_work_has_a_peak_of_its_own():
    def peak_of(mebibytes):
        peak = PeakMemory(CPU)
        Allocating(None).run(mebibytes=mebibytes)
        return peak.bytes()

    small, large, again = (peak_of(n) for n in (1, 300, 1))
    assert large - small == pytest.approx(299 * MEBI, abs=40 * MEBI)
    assert again - small == pytest.approx(0, abs=40 * MEBI)


def test_a_contender_lives_in_a_process_of_its_own_and_tells_what_it_measured(tmp_path):
    with Contender(Allocating, None, tmp_path / "log") as contender:
        laps = [contender.ask(mebibytes=n) for n in (1, 200, 1)]
    assert [lap["seconds"] for lap in laps] == [[1.0]] * 3
    if laps[0]["peak_bytes"] is not None:
        assert laps[1]["peak_bytes"] - laps[2]["peak_bytes"] == pytest.approx(199 * MEBI, abs=40 * MEBI)


@pytest.mark.slow
def test_a_contender_that_fails_or_dies_ends_the_benchmark_with_its_reason(tmp_path):
    for task, mebibytes, reason in (("at start", 1, "no such weights"), (None, -1, "terminated abruptly")):
        with Contender(Allocating, task, tmp_path / "log") as contender, pytest.raises(RuntimeError, match=reason):
            contender.ask(mebibytes=mebibytes)


@pytest.mark.slow
def test_no_contender_outlives_a_benchmark_that_was_killed(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(
        textwrap.dedent("""
            import multiprocessing, time
            from pathlib import Path
            from stages.bench.contender import Contender
            from tests.bench.test_measuring import Allocating

            if __name__ == "__main__":
                contender = Contender(Allocating, None, Path("log"))
                contender.ask(mebibytes=1)
                Path("child").write_text(str(multiprocessing.active_children()[0].pid))
                time.sleep(600)
        """)
    )
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    with subprocess.Popen([sys.executable, str(script)], cwd=tmp_path, env=environment) as parent:
        wait_until(lambda: (tmp_path / "child").exists() and (tmp_path / "child").read_text())
        child = int((tmp_path / "child").read_text())
        parent.kill()
    wait_until(lambda: not alive(child))


def test_what_was_measured_is_not_measured_again(tmp_path):
    asked = []

    def measure(value):
        asked.append(value)
        return {"seconds": [value]}

    first = Kept(tmp_path / "measured.json")
    assert first.once("a", lambda: measure(1.25)) == {"seconds": [1.25]}
    with pytest.raises(KeyboardInterrupt):
        first.once("b", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
    again = Kept(tmp_path / "measured.json")
    assert again.once("a", lambda: measure(9.0)) == {"seconds": [1.25]}
    assert again.once("b", lambda: measure(2.0)) == {"seconds": [2.0]}
    assert asked == [1.25, 2.0]


def test_a_stage_that_cannot_start_ends_the_benchmark_with_its_reason(tmp_path):
    with pytest.raises(UserError, match="No module named"):
        startup(["no_such_stage"], 1, Kept(tmp_path / "measured.json"))


def test_every_stage_whose_start_is_measured_is_a_module_of_its_own(monkeypatch):
    monkeypatch.chdir(PROJECT)
    names = stage_names()
    assert {"base", "finetune", "report"} <= set(names)
    assert len(set(names)) == len(names)
    assert [name for name in names if not Path("stages", name, "__main__.py").is_file()] == []


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(condition, seconds=120):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.1)


def test_the_stages_that_decide_run_in_the_folder_of_their_task(tmp_path, monkeypatch):
    """As ``make bench`` has it: all paths are relative to the project, and parameters are in a folder below it."""
    monkeypatch.chdir(tmp_path)
    for folder in ("aside/base", "aside/prepared"):
        (tmp_path / folder).mkdir(parents=True)
    asked = []

    def time_of(command, folder):
        asked.append(command)
        for option in ("--base", "--prepared"):
            if option in command:
                assert (tmp_path / folder / command[command.index(option) + 1]).is_dir()
        return 1.0

    monkeypatch.setattr(processes, "timed", time_of)
    kept = Kept(tmp_path / "kept.json")
    assert deciding(Path("aside"), 2, kept) == {name: [1.0, 1.0] for name in ("trace", "fit", "plan")}
    assert len(asked) == 6
