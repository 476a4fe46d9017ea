"""A trace that was killed resumes where it stopped, to the same bytes; other parameters start anew."""

import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from stages.trace import collect
from stages.trace.__main__ import main
from tests.conftest import PROJECT, write_tiny_task

ARGV = ["--base", "base", "--prepared", "prepared", "--out", "traces"]

KILLED = """
import os, signal, sys
from stages.trace import collect
from stages.trace.__main__ import main
collect.SHARD_EXAMPLES = 16
write = collect.pq.write_table
def write_then_die(*args, **options):
    if len(list(args[1].parent.parent.rglob("part-*.parquet"))) >= 2:
        os.kill(os.getpid(), signal.SIGKILL)
    write(*args, **options)
collect.pq.write_table = write_then_die
main(sys.argv[1:])
"""


@pytest.fixture
def project(tmp_path, monkeypatch, hub_folder) -> Path:
    from stages.base.__main__ import main as base
    from stages.prepare.__main__ import main as prepare

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(collect, "SHARD_EXAMPLES", 16)
    params(tmp_path, hub_folder)
    base(["--out", "base"])
    prepare(["--base", "base", "--out", "prepared"])
    return tmp_path


def params(folder, hub_folder, **changes):
    limits = {"train": 80, "validation": 10, "test": 10}
    write_tiny_task(folder, hub_folder, data__limits=limits, **{"trace__sample": 80, "trace__losses": 20, **changes})


def parts(project: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted((project / "traces").iterdir())}


def killed(project: Path) -> None:
    env = {**os.environ, "PYTHONPATH": str(PROJECT)}
    done = subprocess.run([sys.executable, "-c", KILLED, *ARGV], cwd=project, env=env, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (project / "traces").exists()


def test_a_killed_trace_resumes_to_the_same_bytes(project, monkeypatch):
    main(ARGV)
    whole = parts(project)
    assert len(whole) == 5
    for file in (project / "traces").iterdir():
        file.unlink()
    (project / "traces").rmdir()

    killed(project)
    traced = []
    trace_shard = collect._traced
    monkeypatch.setattr(collect, "_traced", lambda *args: traced.append(args[1]) or trace_shard(*args))
    main(ARGV)
    assert parts(project) == whole
    assert len(traced) == 3  # two of five were there


@pytest.mark.parametrize("harm", [None, "a bit", "another's content"])
def test_what_was_traced_before_a_kill_is_checked(project, harm, capsys):
    main(ARGV)
    whole = parts(project)
    shutil.rmtree(project / "traces")
    killed(project)
    first, second = sorted((project / ".work").glob("traces-*/part-*.parquet"))
    if harm == "a bit":
        data = bytearray(first.read_bytes())
        data[len(data) // 2] ^= 1
        first.write_bytes(bytes(data))
    elif harm:
        shutil.copy(second, first)
    capsys.readouterr()
    main(ARGV)
    said = capsys.readouterr().out
    assert said.count("damaged") == bool(harm)
    assert (f"{first.name}: damaged, its checksum does not match" in said) is bool(harm)
    assert f"resumes from example {16 if harm else 32} of 80" in said
    assert parts(project) == whole


@pytest.mark.slow
def test_other_parameters_do_not_resume_what_was_left_behind(project, hub_folder, monkeypatch):
    killed(project)
    params(project, hub_folder, trace__space="raw")
    main(ARGV)
    raw = parts(project)
    for file in (project / "traces").iterdir():
        file.unlink()
    main(ARGV)
    assert parts(project) == raw


@pytest.fixture
def one_thread():
    """A forked child would wait for ever for the threads of its parent's pool."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
def test_kills_at_random_moments_end_in_the_same_bytes(project, one_thread):
    """Children of this process, so that each starts at once; every one goes on from what the last left."""
    main(ARGV)
    whole = parts(project)
    shutil.rmtree(project / "traces")
    started = time.monotonic()
    assert child(None) == 0
    usual = time.monotonic() - started
    shutil.rmtree(project / "traces")
    rng, statuses = random.Random(4), []
    while not (project / "traces").exists():
        assert len(statuses) < 60
        # longer and longer: it ends on a machine whose speed changes, too
        statuses.append(child(usual * rng.uniform(0.05, 0.3) * (1 + len(statuses) / 5)))
    assert -signal.SIGKILL in statuses
    assert parts(project) == whole


def child(seconds):
    """Exit status of a run that is killed after so long; ``None``: it may end."""
    process = multiprocessing.get_context("fork").Process(target=traced)
    process.start()
    process.join(seconds)
    process.kill()
    process.join()
    return process.exitcode


def traced():
    """A run that ends with its work: what other tests left to be done at the end of this process is not its own."""
    main(ARGV)
    os._exit(0)
