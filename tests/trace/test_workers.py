"""Tracing shared by worker processes comes to what one process traces, whoever is killed on the way."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest

from stages.base.__main__ import main as base
from stages.prepare.__main__ import main as prepare
from stages.trace.__main__ import main as trace
from tests.conftest import PROJECT, write_colours, write_tiny_task

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
EXAMPLES = 700  # in six shards
ARGV = ["--base", "base", "--prepared", "prepared", "--out"]


@pytest.fixture
def project(tmp_path, hub_folder, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    set_parameters(tmp_path, hub_folder)
    base(["--out", "base"])
    prepare(["--base", "base", "--out", "prepared"])
    return tmp_path


def set_parameters(root: Path, hub_folder: Path, **changes):
    limits = {"train": EXAMPLES, "validation": 10, "test": 10}
    settings = {"data__limits": limits, "trace__sample": EXAMPLES, "trace__losses": 300, "trace__batch_tokens": 32}
    write_tiny_task(root, hub_folder, **{**settings, **changes})
    write_colours(root / "colours.csv", rows=900)


def started(project: Path, out: str) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "stages.trace", *ARGV, out]
    return subprocess.Popen(command, cwd=project, env=environment, stderr=subprocess.PIPE, text=True)


def ended(process: subprocess.Popen) -> tuple[int, str]:
    _, told = process.communicate(timeout=500)
    return process.returncode, told


def rows(folder: Path):
    return pq.read_table(folder).sort_by([("example_id", "ascending"), ("position", "ascending")])


def require_equal(one, other):
    """The same rows; the curves up to float rounding, which depends on how many threads multiply."""
    curves = ["deviation", "loss"]
    assert one.drop_columns(curves).equals(other.drop_columns(curves))
    for name in curves:
        missing = np.array(one[name].is_null())
        assert np.array_equal(missing, np.array(other[name].is_null()))
        mine, theirs = (np.stack(table[name].filter(table[name].is_valid()).to_numpy()) for table in (one, other))
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6)


def test_two_workers_trace_what_one_process_does_although_one_is_killed(project, hub_folder):
    trace([*ARGV, "alone"])
    set_parameters(project, hub_folder, trace__workers=2)
    process = started(project, "shared")
    killed = kill_a_worker(process, project)
    status, told = ended(process)
    assert status == 0, told
    assert killed.pid not in psutil.pids()
    assert sorted(file.name for file in (project / "shared").iterdir()) == sorted(
        file.name for file in (project / "alone").iterdir()
    )
    require_equal(rows(project / "shared"), rows(project / "alone"))
    assert not list((project / ".work").iterdir())


def kill_a_worker(process: subprocess.Popen, project: Path) -> psutil.Process:
    """One of two, in the middle of a shard: some are written, some are not."""
    written = 0
    while not written:
        assert process.poll() is None, process.stderr.read()
        written = len(list(project.rglob("part-*.parquet"))) - len(list((project / "alone").iterdir()))
        time.sleep(0.02)
    assert written < len(list((project / "alone").iterdir()))
    workers = [
        one for one in psutil.Process(process.pid).children(recursive=True) if "spawn_main" in str(one.cmdline())
    ]
    assert len(workers) == 2
    workers[0].send_signal(signal.SIGKILL)
    return workers[0]


def test_a_fault_in_a_worker_is_one_line(project, hub_folder):
    set_parameters(project, hub_folder, trace__workers=2)
    weights = next((project / "base").glob("*.safetensors"))
    weights.unlink()
    status, told = ended(started(project, "shared"))
    assert status == 2, told
    (line,) = [line for line in told.splitlines() if line.startswith("error: ")]
    assert weights.name in line
    assert not (project / "shared").exists()
