"""Several processes: two give what one gives, and a fault in one ends all with one line."""

import json
import math
import os
import subprocess
import sys
import time

import psutil
import pytest
import torch
from safetensors.torch import load_file

from salf.engine.training.loop import train
from salf.engine.training.processes import ALONE
from salf.engine.training.scope import LayerDraws
from salf.records import RaceRecord
from tests.conftest import PROJECT
from tests.engine.boundary_cache.tiny_task import Task
from tests.engine.training.test_answer_side_training import job as answer_job
from tests.engine.training.tiny_training import made_examples, params, run, trainable, weights
from tests.own_plan import write_plan_and_base

OURS = "from stages.finetune.launch import launch; launch('tests.finetune.worker', sys.argv[1:], 2)"
LAUNCHERS = {
    "ours": [
        sys.executable,
        "-c",
        f"import sys; from stages.common.command import exit_code; sys.exit(exit_code(lambda _: exec({OURS!r})))",
    ],
    "torchrun": [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"],
}


def start(folder, launcher="ours", **settings):
    words = LAUNCHERS[launcher]
    module = [] if launcher == "ours" else ["tests.finetune.worker"]
    command = [*words, *module, str(folder), json.dumps({"boundary": 2, "params": {}, **settings})]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.Popen(
        command, cwd=PROJECT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process):
    out, said = process.communicate(timeout=200)
    return process.returncode, out, said


def alone(settings, boundary=2, draws=None, **options):
    made, examples = trainable(boundary, draws=draws), made_examples()
    return made, run(made, examples, settings, **options)


def assert_as_one(folder, boundary=2, draws=None, **changes):
    assert_as(folder, *alone(params(**changes), boundary, draws))


def assert_as(folder, made, done):
    """Stated tolerance: losses to 1e-4, weights to 2e-4 after six steps of AdamW at rate 0.01."""
    first, second = (load_file(folder / f"weights-{rank}.safetensors") for rank in range(2))
    record = json.loads((folder / "record-0.json").read_text())
    assert record == json.loads((folder / "record-1.json").read_text())
    assert record["steps"] == done.steps
    for mine, theirs in zip(record["curve"], done.curve, strict=True):
        assert mine["validation_loss"] == pytest.approx(theirs.validation_loss, rel=1e-4)
        assert mine["train_loss"] == (theirs.train_loss and pytest.approx(theirs.train_loss, rel=1e-4))
    for name, weight in weights(made).items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], weight, rtol=1e-3, atol=2e-4)


def test_two_processes_train_answers_alone_as_one_does(tmp_path):
    changes = {"batch_size": 5, "accumulate": 3}
    status, _, said = finish(start(tmp_path, method="freeze-2+answer", params=changes))
    assert status == 0, said
    job = answer_job("freeze-2+answer", params(**changes))
    assert_as(tmp_path, job.trainable, train(job))


@pytest.mark.parametrize(
    ("launcher", "boundary", "changes"),
    [
        # Batches of five, five and two: one process has more examples than the other, and more parts.
        ("ours", 2, {"batch_size": 5, "accumulate": 3, "gradient_checkpointing": True, "keep": ["mean"]}),
        pytest.param("ours", 0, {}, marks=pytest.mark.slow),
        # Batches of eleven and one: the second process has nothing to do in the last step.
        pytest.param("torchrun", 2, {"batch_size": 11}, marks=pytest.mark.slow),
    ],
)
def test_two_processes_give_what_one_gives(tmp_path, launcher, boundary, changes):
    status, out, said = finish(start(tmp_path, launcher, boundary=boundary, params=changes))
    assert status == 0, said
    assert out.splitlines() == ["process 0 of 2"]  # the main one alone speaks
    assert_as_one(tmp_path, boundary, **changes)


@pytest.mark.slow
def test_two_processes_race_and_read_no_checkpoint_before_it_is_written(tmp_path, hub_folder):
    """The last arm wins: the next epoch begins with what was written just before."""
    write_plan_and_base(tmp_path, hub_folder)
    status, _, said = finish(start(tmp_path, race=[1e-6, 0.01]))
    assert status == 0, said
    first, second = ((tmp_path / f"record-{rank}.json").read_text() for rank in range(2))
    assert first == second
    record = RaceRecord.model_validate_json(first)
    assert (record.winner, [arm.steps for arm in record.arms]) == (1, [3, 6])
    weights_0, weights_1 = (load_file(tmp_path / f"weights-{rank}.safetensors") for rank in range(2))
    assert all(torch.equal(weights_0[name], weights_1[name]) for name in weights_0)


@pytest.mark.slow
def test_two_processes_draw_the_same_layers_and_add_up_their_gradients_alone(tmp_path):
    drawn = [4, 1, 2, 3]
    status, _, said = finish(start(tmp_path, boundary=0, draws=drawn))
    assert status == 0, said
    assert_as_one(tmp_path, 0, LayerDraws(*drawn))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "line"),
    [
        ("one", "error: the second process has a fault"),
        ("all", "error: all processes have the same fault"),
        ("killed", "error: process 2 of 2 was ended by SIGKILL, the others with it; if memory ran out"),
    ],
)
def test_a_fault_in_one_process_ends_all_with_one_line(tmp_path, fault, line):
    began = time.monotonic()
    status, _, said = finish(start(tmp_path, fault=fault))
    assert status == 2
    lines = [text for text in said.splitlines() if not text.startswith("test: ")]  # progress
    assert len(lines) == 1, said
    assert lines[0].startswith(line)
    assert time.monotonic() - began < 150  # nobody waits for a process that is gone
    assert not list(tmp_path.glob("record-*"))


@pytest.mark.slow
def test_processes_end_with_a_launcher_that_is_killed_and_the_next_run_goes_on(tmp_path):
    settings = {"checkpoint": True, "params": {"checkpoint_minutes": 0}}
    status, _, said = finish(
        start(tmp_path, fault="launcher killed", **settings)
    )  # ends only when no process holds its output any more
    assert status == -9, said
    assert not [
        other
        for other in psutil.process_iter(["cmdline"])
        if str(tmp_path) in " ".join(other.info["cmdline"] or []) and other.status() != psutil.STATUS_ZOMBIE
    ]
    assert not list(tmp_path.glob("record-*"))

    status, _, said = finish(start(tmp_path, **settings))
    assert status == 0, said
    assert_as_one(tmp_path, checkpoint_minutes=0)


@pytest.mark.slow
def test_processes_share_the_frozen_layers_pass_and_each_gets_all_states(tmp_path):
    """Bit by bit those of one process: the groups that go through the layers are the same."""
    status, _, said = finish(start(tmp_path, open=["memory", "auto", "auto", "disk"]))
    assert status == 0, said
    task = Task(tmp_path / "alone")
    groups = len(task.computed().layout.groups)
    together = {"origin": "computed", "kept": "in memory", "passes": 1 + math.ceil(groups / 2)}  # 1: the beginning
    reused = {"origin": "reused", "kept": "on disk", "passes": 0}
    for rank in range(2):
        both_places = {**together, "kept": "in memory and on disk"} if rank == 0 else together
        found = [json.loads((tmp_path / f"opened-{number}-{rank}.json").read_text()) for number in range(4)]
        assert found == [together, both_places, reused, reused]
        for number in range(4):
            rows = load_file(tmp_path / f"rows-{number}-{rank}.safetensors")["rows"]
            assert torch.equal(rows, task.computed().rows)


def test_one_process_alone_sends_nothing():
    tensor = torch.arange(3.0)
    assert ALONE.add_up(tensor) is tensor
    assert ALONE.total(7) == 7
    ALONE.agree(3, "anything")
    assert list(ALONE.share([1, 2, 3])) == [1, 2, 3]
