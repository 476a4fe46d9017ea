"""What is done with boundary states: computed, reused or left, and why."""

import errno
import os
import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from salf.engine.batches import Split
from salf.engine.boundary_cache import cache as cache_module
from salf.engine.boundary_cache import folder as folder_module
from salf.engine.boundary_cache.cache import print_opened
from salf.engine.boundary_cache.folder import CacheFolder
from salf.errors import UserError
from tests.engine.boundary_cache.tiny_task import Task, make_model

FAST, SLOW = 1e12, 1.0  # bytes per second of the disk


@pytest.fixture
def task(tmp_path):
    return Task(tmp_path / "cache")


@pytest.fixture
def machine(monkeypatch):
    """Sets what the machine would say of itself."""

    def say(disk=FAST, memory=2**40):
        monkeypatch.setattr(cache_module, "disk_rate", lambda _folder: disk)
        monkeypatch.setattr(cache_module, "PROBE_BYTES", 0)  # below it, states are written whatever the disk
        monkeypatch.setattr(cache_module, "free_memory_bytes", lambda: memory)

    say()
    return SimpleNamespace(say=say)


def layers_run(task, opening):
    """Which layers ran while ``opening`` was called, from 1."""
    ran = set()
    hooks = [
        layer.register_forward_hook(lambda *_, number=number: ran.add(number))
        for number, layer in enumerate(task.model.layers, 1)
    ]
    opened = opening()
    for hook in hooks:
        hook.remove()
    return opened, sorted(ran)


@pytest.mark.parametrize("mode", ["disk", "auto"])
def test_states_on_disk_are_reused_bit_by_bit_and_nothing_is_computed(task, machine, mode):
    first, ran = layers_run(task, lambda: task.open(mode))
    assert (first.origin, ran) == ("computed", [1, 2])
    second, ran = layers_run(task, lambda: task.open(mode))
    assert (second.origin, ran, second.kept) == ("reused", [], "on disk")
    assert torch.equal(first.start.rows, second.start.rows)
    assert second.seconds_computing == pytest.approx(first.seconds_computing, abs=1e-6)


def test_other_methods_and_seeds_share_the_states_and_another_model_does_not(task):
    task.open("disk")
    task.model = make_model()
    with torch.no_grad():
        for parameter in task.model.layers[2:].parameters():
            parameter.normal_()
    assert task.open("disk").origin == "reused"
    task.model = make_model(rope_theta=7.0)
    assert task.open("disk").origin == "computed"


@pytest.mark.parametrize("mode", ["memory", "off"])
def test_without_disk_nothing_is_written_or_read(task, mode):
    task.open("disk")
    before = sorted(task.folder.rglob("*"))
    opened = task.open(mode)
    assert opened.origin == {"memory": "computed", "off": "off"}[mode]
    assert sorted(task.folder.rglob("*")) == before


def test_memory_that_does_not_suffice_is_said_at_once(task, machine):
    machine.say(memory=100)
    with pytest.raises(UserError, match=r"cache = memory: the boundary states need 0\.0 MiB.* disk, off or auto"):
        task.open("memory")


def test_auto_keeps_states_in_memory_alone_where_writing_costs_much(task, machine):
    machine.say(SLOW)
    opened = task.open("auto")
    assert (opened.kept, task.files) == ("in memory", [])
    assert "faster than a disk" in opened.words


def test_auto_writes_past_memory_and_computes_for_every_batch_where_the_folder_is_too_small(task, machine):
    machine.say(memory=100)
    opened = task.open("auto")
    assert (opened.origin, opened.kept, len(task.files)) == ("computed", "on disk", 1)
    assert torch.equal(opened.start.rows, task.computed().rows)
    task.files[0].unlink()
    task.gib = 1e-6
    opened = task.open("auto")
    assert (opened.origin, opened.kept, task.files) == ("off", "nowhere", [])
    assert "too large for memory" in opened.words


def test_auto_with_a_full_disk_makes_do_with_memory(task, machine, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: namedtuple("usage", "total used free")(2**30, 2**30, 0))
    opened = task.open("auto")
    assert (opened.kept, task.files) == ("in memory", [])
    assert "there is room for 0.0 MiB" in opened.words


def test_auto_whose_room_is_taken_by_another_makes_do_with_memory(task, machine, monkeypatch):
    def taken(*_):
        raise UserError("another run took the room")

    monkeypatch.setattr(CacheFolder, "make_room", taken)
    opened = task.open("auto")
    assert (opened.kept, task.files) == ("in memory", [])
    assert "another run took the room" in opened.words


def test_auto_without_a_usable_folder_makes_do_with_memory(task, machine):
    task.folder.parent.mkdir(exist_ok=True)
    task.folder.write_text("a file in the folder's place")
    opened = task.open("auto")
    assert (opened.origin, opened.kept) == ("computed", "in memory")
    assert f"{task.folder} cannot be written: Not a directory" in opened.words
    machine.say(memory=100)
    assert task.open("auto").origin == "off"


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_folder_that_is_only_readable_is_read_by_auto_and_refused_for_disk(task, machine, monkeypatch, number):
    """Root may write anywhere, so that the refusal of the kernel is played."""

    def refuse(*_, **__):
        raise OSError(number, os.strerror(number), "somewhere")

    task.open("disk", 2)
    before = {path: path.read_bytes() for path in task.folder.rglob("*") if path.is_file()}
    monkeypatch.setattr(Path, "mkdir", refuse)
    monkeypatch.setattr(os, "utime", refuse)
    reason = f"{task.folder} cannot be written: {os.strerror(number)}"
    opened, ran = layers_run(task, lambda: task.open("auto", 2))
    assert (opened.origin, ran) == ("reused", [])
    assert torch.equal(opened.start.rows, task.computed(2).rows)
    opened = task.open("auto", 3)
    assert (opened.origin, opened.kept) == ("computed", "in memory")
    assert reason in opened.words
    machine.say(memory=100)
    opened = task.open("auto", 3)
    assert (opened.origin, reason in opened.words) == ("off", True)
    with pytest.raises(UserError) as refused:
        task.open("disk", 2)
    assert str(refused.value).startswith(
        f"finetune.cache = disk: {reason}; make it writable, or set finetune.cache_folder"
    )
    assert {path: path.read_bytes() for path in task.folder.rglob("*") if path.is_file()} == before


def test_half_of_the_free_memory_is_left_to_training(task, machine):
    size = task.open("auto").bytes
    for memory, kept in ((2 * size, "in memory and on disk"), (2 * size - 1, "on disk")):
        task.files[0].unlink()
        machine.say(memory=memory)
        assert task.open("auto").kept == kept


def test_what_was_done_is_said_in_one_line(task, machine, capsys):
    opened = {"training": task.open("auto"), "validation": task.open("off")}
    capsys.readouterr()
    print_opened("boundary states of layer 2", opened)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(
        "boundary states of layer 2: training 0.0 MiB computed, cached in memory and on disk (for other runs)"
    )
    assert line.endswith("; validation recomputed for every batch (finetune.cache = off)")
    assert opened["training"].seconds >= opened["training"].seconds_computing > 0


def split_and_cache(task, mode, keys_values):
    """The base reads all but two tokens of each prompt."""
    rows = [len(example.prompt_ids) - 2 for example in task.examples]
    cache = task.cache(mode, boundary=4)
    cache = replace(cache, keys_values=keys_values)
    return Split(task.examples, 3, base_rows=rows), cache


def open_prompts(task, mode, boundary=0, keys_values="exact"):
    """Prompts' keys and values, by a base of its own where nothing is cached."""
    split, cache = split_and_cache(task, mode, keys_values)
    states = task.open("memory", boundary) if boundary else None
    return cache.open_prompts(split, boundary, states, make_model)


def open_both(task, mode, keys_values="exact"):
    split, cache = split_and_cache(task, mode, keys_values)
    return cache.open_both(split, 2, make_model)


def assert_same_prompts(left, right):
    """Row by row, whatever their order, to float32's rounding."""
    for number in range(len(left.start.layout.examples)):
        one, other = (
            opened.start.rows[opened.start.layout.rows_of(torch.tensor([number]), joined=True)]
            for opened in (left, right)
        )
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("keys_values", ["exact", "int8"])
@pytest.mark.parametrize("mode", ["memory", "disk", "auto"])
def test_one_pass_computes_the_states_of_the_frozen_layers_own_pass_and_the_prompts(task, machine, mode, keys_values):
    prompts, states = open_both(task, mode, keys_values)
    assert (prompts.origin, prompts.begun, states.origin, states.begun) == ("computed", 2, "computed", 0)
    assert torch.equal(states.start.rows, task.computed().rows)
    assert prompts.seconds_computing > 0 < states.seconds_computing
    if keys_values == "exact":
        assert_same_prompts(prompts, open_prompts(task, "memory"))
    again = open_both(task, mode, keys_values)
    assert [one.origin for one in again] == 2 * ["computed" if mode == "memory" else "reused"]
    assert [one.begun for one in again] == [2, 0 if mode == "memory" else 2]
    assert torch.equal(again[0].start.rows, prompts.start.rows)
    assert torch.equal(again[1].start.rows, states.start.rows)


def test_prompts_of_one_pass_are_not_taken_for_others_and_are_computed_again_to_the_same_bits(task, machine):
    prompts, _ = open_both(task, "auto")
    assert task.open("disk").origin == "reused"
    states, held = task.cache("disk").open(task.examples), {file: file.stat().st_size for file in task.files}
    max(held, key=held.get).unlink()  # the prompts' file
    again, reused = open_both(task, "auto")
    assert (again.origin, reused.origin) == ("computed", "reused")
    assert torch.equal(again.start.rows, prompts.start.rows)
    assert torch.equal(reused.start.rows, states.start.rows)
    apart = open_prompts(task, "disk")
    assert apart.origin == "computed"
    found, _ = open_both(task, "auto")
    assert (found.origin, found.begun) == ("reused", 2)
    assert torch.equal(found.start.rows, prompts.start.rows)


@pytest.mark.parametrize("why", ["off", "memory", "prompts too large"])
def test_where_one_pass_is_not_worth_it_both_are_opened_by_themselves(task, machine, why):
    size = task.open("memory").bytes
    if why != "off":
        machine.say(SLOW, memory=2 * size - (why == "memory"))
    prompts, states = open_both(task, "off" if why == "off" else "auto")
    assert (prompts.origin, prompts.begun) == ("off", 0)
    assert (states.origin, states.kept) == {
        "off": ("off", "nowhere"),
        "memory": ("off", "nowhere"),
        "prompts too large": ("computed", "in memory"),
    }[why]
    if why == "prompts too large":
        assert torch.equal(states.start.rows, task.computed().rows)


def test_states_that_memory_does_not_hold_meanwhile_are_read_again_and_no_bit_changes(task, machine):
    size = task.open("memory").bytes
    held = open_both(task, "memory")
    machine.say(memory=2 * size - 1)
    prompts, states = open_both(task, "auto")
    assert [(one.origin, one.begun, one.kept) for one in (prompts, states)] == 2 * [("computed", 0, "on disk")]
    assert torch.equal(prompts.start.rows, held[0].start.rows)
    assert torch.equal(states.start.rows, held[1].start.rows)


@pytest.mark.parametrize("boundary", [0, 2])
def test_keys_and_values_of_prompts_are_reused_bit_by_bit_by_what_they_were_computed_from(task, machine, boundary):
    first = open_prompts(task, "disk", boundary)
    again = open_prompts(task, "auto", boundary)
    assert (first.origin, again.origin, again.kept) == ("computed", "reused", "on disk")
    assert torch.equal(first.start.rows, again.start.rows)
    assert first.bytes == first.start.rows.nbytes
    assert open_prompts(task, "disk", 1).origin == open_prompts(task, "disk", boundary, "int8").origin == "computed"
    task.model = make_model(rope_theta=7.0)
    assert open_prompts(task, "disk", boundary).origin == "computed"


def test_prompts_that_have_no_room_in_memory_go_to_disk_unless_computing_is_faster(task, machine):
    machine.say(memory=100)
    opened = open_prompts(task, "auto")
    assert (opened.origin, opened.kept, len(task.files)) == ("computed", "on disk", 1)
    task.files[0].unlink()
    machine.say(SLOW, memory=100)
    opened = open_prompts(task, "auto")
    assert (opened.origin, opened.kept, task.files) == ("off", "nowhere", [])
    assert (
        "too large for memory, and computed faster than a disk of 0.0 MiB per second writes and reads them"
        in opened.words
    )
    with pytest.raises(UserError, match=r"the keys and values of prompts need .* disk, off or auto"):
        open_prompts(task, "memory")


def test_prompts_are_rounded_by_themselves_only_where_that_lets_memory_hold_them(task, machine, capsys):
    exact, rounded = (open_prompts(task, "memory", 0, kind).bytes for kind in ("exact", "int8"))
    for memory, mode, int8 in [
        (2 * exact, "auto", False),
        (2 * exact - 1, "auto", True),
        (2 * rounded, "memory", True),
        (2 * rounded - 1, "auto", False),  # in neither form: exact, on disk
        (2 * rounded, "disk", False),
    ]:
        machine.say(memory=memory)
        assert open_prompts(task, mode, 0, "auto").int8 is int8, (memory, mode)
    assert capsys.readouterr().out.count("prompts in 8 bits: exact keys and values need") == 2


def test_a_disk_s_rate_is_what_writing_and_reading_a_file_there_takes(tmp_path, monkeypatch):
    clock = iter([10.0, 10.5])
    monkeypatch.setattr(folder_module.time, "perf_counter", lambda: next(clock))
    assert folder_module.disk_rate(tmp_path) == 2 * folder_module.PROBE_BYTES
    assert folder_module.disk_rate(tmp_path) == 2 * folder_module.PROBE_BYTES  # not measured again
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(OSError, match="No such file"):
        folder_module.disk_rate(tmp_path / "nowhere")
