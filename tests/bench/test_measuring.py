"""Peaks, processes and rounds: the benchmark's own machinery."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch

from stages.bench.contender import Lap, contender, forget_peak, peak_bytes
from stages.bench.rounds import in_turn
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
        return Lap([float(held[-1])])


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells the peak anew")
def test_each_piece_of_work_has_a_peak_of_its_own():
    def peak_of(mebibytes):
        forget_peak(CPU)
        Allocating(None).run(mebibytes=mebibytes)
        return peak_bytes(CPU)

    small, large, again = (peak_of(n) for n in (1, 300, 1))
    assert large - small == pytest.approx(299 * MEBI, abs=40 * MEBI)
    assert again - small == pytest.approx(0, abs=40 * MEBI)


def test_a_contender_lives_in_a_process_of_its_own_and_tells_what_it_measured(tmp_path):
    with contender(Allocating, None, tmp_path / "log") as ask:
        laps = [ask(mebibytes=n) for n in (1, 200, 1)]
    assert [lap["seconds"] for lap in laps] == [[1.0]] * 3
    if laps[0]["peak_bytes"] is not None:
        assert laps[1]["peak_bytes"] - laps[2]["peak_bytes"] == pytest.approx(199 * MEBI, abs=40 * MEBI)


@pytest.mark.slow
def test_a_contender_that_fails_or_dies_ends_the_benchmark_with_its_reason(tmp_path):
    for task, mebibytes, reason in (("at start", 1, "no such weights"), (None, -1, "terminated abruptly")):
        with contender(Allocating, task, tmp_path / "log") as ask, pytest.raises(RuntimeError, match=reason):
            ask(mebibytes=mebibytes)


@pytest.mark.slow
def test_no_contender_outlives_a_benchmark_that_was_killed(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(
        textwrap.dedent("""
            import multiprocessing, time
            from pathlib import Path
            from stages.bench.contender import contender
            from tests.bench.test_measuring import Allocating

            if __name__ == "__main__":
                with contender(Allocating, None, Path("log")) as ask:
                    ask(mebibytes=1)
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


def test_every_run_is_warmed_up_and_every_other_round_is_in_reverse_order():
    asked = []

    def ask(**request):
        asked.append((request["name"], request["examples"]))
        return {"seconds": [float(len(asked))]}

    runs = {name: (ask, {"name": name, "examples": 9}) for name in "ab"}
    measured = in_turn("a title", runs, {"examples": 1}, repeats=2)
    assert asked == [("a", 1), ("b", 1), ("a", 9), ("b", 9), ("b", 9), ("a", 9)]
    assert [lap["seconds"] for lap in measured["a"]] == [[3.0], [6.0]]


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
