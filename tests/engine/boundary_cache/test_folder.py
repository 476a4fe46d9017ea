"""Files of boundary states: whole or absent, under a limit, one writer at a time."""

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections import namedtuple
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from salf.errors import UserError
from tests.conftest import PROJECT
from tests.engine.boundary_cache.tiny_task import Task

GIB = 2**30


@pytest.fixture
def task(tmp_path):
    return Task(tmp_path / "cache")


def test_a_file_of_states_is_plain_safetensors(task):
    opened = task.open("disk")
    (file,) = task.files
    assert torch.equal(load_file(file)["states"], task.computed().rows)
    assert opened.bytes == opened.start.rows.numel() * 4
    assert file.stat().st_size - opened.bytes < 1024


def test_states_of_a_file_are_mapped_and_not_read_into_memory(task):
    task.open("disk")
    rows = task.open("disk").start.rows
    with open("/proc/self/maps", encoding="utf-8") as maps:
        ranges = [line.split()[0].split("-") for line in maps if task.files[0].name in line]
    assert any(int(low, 16) <= rows.data_ptr() < int(high, 16) for low, high in ranges)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def flip(path):
    data = bytearray(path.read_bytes())
    data[-50] ^= 1
    path.write_bytes(bytes(data))


def empty(path):
    path.write_bytes(b"")


def foreign(path):
    save_file({"states": torch.zeros(3, 32)}, path)


def no_tensors(path):
    path.write_text("hello")


@pytest.mark.parametrize("harm", [truncate, flip, empty, foreign, no_tensors])
@pytest.mark.parametrize("mode", ["disk", "auto"])
def test_torn_damaged_and_foreign_files_are_never_taken_and_are_replaced(task, harm, mode):
    task.open("disk")
    harm(task.files[0])
    opened = task.open(mode)
    assert opened.origin == "computed"
    assert torch.equal(opened.start.rows, task.computed().rows)
    assert task.open("disk").origin == "reused"


def test_a_file_under_the_name_of_another_key_is_not_taken(task):
    task.open("disk", boundary=2)
    (file,) = task.files
    task.open("disk", boundary=3)
    (other,) = set(task.files) - {file}
    shutil.copy(other, file)
    opened = task.open("disk", boundary=2)
    assert opened.origin == "computed"
    assert torch.equal(opened.start.rows, task.computed(2).rows)


def test_a_writer_that_is_stopped_leaves_no_file(task, monkeypatch):
    class StoppedError(Exception):
        pass

    def fatal(*_):
        raise StoppedError

    handle = task.model.layers[1].register_forward_hook(
        lambda *_: fatal() if counter.append(1) or len(counter) > 3 else None
    )
    counter = []
    with pytest.raises(StoppedError):
        task.open("disk")
    handle.remove()
    assert not task.files
    assert task.open("disk").origin == "computed"


def test_the_least_recently_used_file_goes_first(task):
    size = task.open("disk", boundary=1).bytes
    (first,) = task.files
    task.open("disk", boundary=2)
    (second,) = set(task.files) - {first}
    os.utime(first, (1, 1))
    os.utime(second, (2, 2))
    assert task.open("disk", boundary=1).origin == "reused"  # which makes it the last used
    task.gib = 2.9 * size / GIB
    task.examples = task.examples[::-1]  # or the new file would go on from the second one, and use it
    task.open("disk", boundary=2)
    assert first in task.files
    assert second not in task.files
    assert len(task.files) == 2


def test_other_peoples_files_in_the_folder_stay(task):
    size = task.open("disk", boundary=1).bytes
    own = task.folder / "notes.safetensors"
    own.write_text("mine")
    task.gib = 1.5 * size / GIB
    task.open("disk", boundary=2)
    assert own.read_text() == "mine"
    assert len(task.files) == 2


@pytest.mark.parametrize("what", ["limit", "disk"])
def test_states_that_do_not_fit_are_refused_before_anything_is_computed_or_dropped(task, what, monkeypatch):
    task.open("disk", boundary=1)
    if what == "limit":
        task.gib = 1e-6
    else:
        full = namedtuple("usage", "total used free")(GIB, GIB, 0)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
    task.model.layers[3].register_forward_hook(lambda *_: pytest.fail("computed"))
    with pytest.raises(
        UserError, match=r"boundary states need 0\.0 MiB and there is room for 0\.0 MiB .*finetune.cache"
    ):
        task.open("disk", boundary=4)
    assert len(task.files) == 1


def test_leftovers_of_a_killed_writer_are_cleared_by_the_next(task):
    work = task.folder / ".work"
    work.mkdir(parents=True)
    (work / "states-0123.safetensors.partial").write_bytes(b"half")
    task.open("disk")
    assert not list(work.glob("*.partial"))


WRITER = """
    import sys, time
    from pathlib import Path
    from tests.engine.boundary_cache.tiny_task import Task
    task = Task(Path(sys.argv[1]))
    task.model.layers[1].register_forward_hook(lambda *_: time.sleep(float(sys.argv[2])))
    print("ready", flush=True)
    sys.stdin.readline()
    opened = task.open("disk")
    print(opened.origin, opened.start.rows.sum().item().hex(), flush=True)
"""


def writer(task, pause):
    command = [sys.executable, "-c", textwrap.dedent(WRITER), str(task.folder), str(pause)]
    process = subprocess.Popen(command, cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    return SimpleNamespace(
        process=process, line=process.stdout.readline, go=lambda: process.stdin.write("\n") and process.stdin.flush()
    )


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.slow
def test_of_two_processes_one_writes_and_the_other_waits_for_it(task):
    first, second = writer(task, 0.3), writer(task, 0.3)
    for one in (first, second):
        assert one.line() == "ready\n"
    for one in (first, second):
        one.go()
    lines = [line for one in (first, second) for line in one.process.communicate(timeout=120)[0].splitlines()]
    said = [line for line in lines if not line.startswith("another process")]
    assert len(lines) == 3
    assert sorted(line.split()[0] for line in said) == ["computed", "reused"]
    assert {line.split()[1] for line in said} == {task.computed().rows.sum().item().hex()}


@pytest.mark.slow
def test_a_process_that_is_killed_while_it_writes_leaves_the_work_to_the_next(task):
    killed = writer(task, 0.5)
    assert killed.line() == "ready\n"
    killed.go()
    wait_for(lambda: list((task.folder / ".work").glob("*.partial")))
    killed.process.send_signal(signal.SIGKILL)
    killed.process.wait()
    assert not task.files
    opened = task.open("disk")
    assert opened.origin == "computed"
    assert torch.equal(opened.start.rows, task.computed().rows)
    assert not list((task.folder / ".work").glob("*.partial"))
