import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from flows import processes
from flows.processes import run_streaming

TREE = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGINT, {handler})
code = "import signal, time; signal.signal(signal.SIGINT, {handler}); time.sleep(600)"
child = subprocess.Popen([sys.executable, "-c", code])
print(os.getpid(), child.pid, flush=True)
time.sleep(600)
"""


def python(code: str, tmp_path, on_line, **options) -> int:
    return run_streaming([sys.executable, "-u", "-c", code], tmp_path, os.environ, on_line, **options)


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_lines_of_both_streams_arrive_in_order_and_as_they_come(tmp_path):
    arrived: list[tuple[str, float]] = []
    code = "import sys, time; print('one'); time.sleep(0.5); print('two', file=sys.stderr); print('50%\\r100%')"
    status = python(code, tmp_path, lambda line: arrived.append((line, time.monotonic())))
    assert status == 0
    assert [line for line, _ in arrived] == ["one", "two", "50%", "100%"]
    assert arrived[1][1] - arrived[0][1] > 0.3


def test_the_exit_status_is_the_commands(tmp_path):
    assert python("raise SystemExit(3)", tmp_path, print) == 3


@pytest.mark.parametrize("handler", ["signal.SIG_DFL", "signal.SIG_IGN"])
def test_a_time_out_ends_the_whole_family_even_when_it_will_not_listen(tmp_path, monkeypatch, handler):
    monkeypatch.setattr(processes, "GRACE_SECONDS", 0.5)
    lines: list[str] = []
    with pytest.raises(subprocess.TimeoutExpired):
        python(TREE.format(handler=handler), tmp_path, lines.append, timeout=2.0)
    pids = [int(pid) for pid in lines[0].split()]
    assert len(pids) == 2
    assert not any(alive(pid) for pid in pids)


def test_a_cancelled_flow_leaves_no_child_behind(tmp_path):
    pids: list[int] = []

    def cancel(line: str) -> None:
        pids.extend(int(pid) for pid in line.split())
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        python(TREE.format(handler="signal.SIG_DFL"), tmp_path, cancel)
    assert len(pids) == 2
    assert not any(alive(pid) for pid in pids)


def test_a_killed_flow_leaves_no_child_behind(tmp_path):
    code = f"""
import os, sys
from pathlib import Path
from flows.processes import run_streaming
tree = {TREE.format(handler="signal.SIG_DFL")!r}
run_streaming([sys.executable, "-u", "-c", tree], Path({str(tmp_path)!r}), os.environ, lambda l: print(l, flush=True))
"""
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True) as flow:
        pids = [int(pid) for pid in flow.stdout.readline().split()]
        flow.kill()
    assert len(pids) == 2
    deadline = time.monotonic() + 20
    while any(alive(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.1)
