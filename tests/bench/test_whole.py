"""A whole benchmark of tiny models, processes and all."""

import shutil

import pytest
from pydantic_core import to_jsonable_python

from salf.files import read_json, write_json
from stages.bench import workloads
from stages.bench.__main__ import main
from stages.bench.rounds import PREFIX, TRAINER, Plan, measure
from tests.bench.conftest import CPU, SHAPE
from tests.conftest import PROJECT, write_params

BRIEF = {"repeats": 2, "training_seconds": 0.1, "tracing_seconds": 0.1, "quick": True}
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def test_a_benchmark_is_complete(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(PROJECT / "params.yaml", tmp_path)
    monkeypatch.setitem(workloads.SHAPES, "tiny", SHAPE)
    plan = Plan(models=["tiny"], batch_size=4, quarters=(0, 2, 3), epochs=(1, 3), **BRIEF)
    found = to_jsonable_python(measure(plan, CPU, tmp_path))
    write_json(tmp_path / "benchmark.json", found)
    (model,) = found["models"]
    ours = {(one["boundary"], one["epochs"]): one for one in model["speeds"] if one["contender"] == "ours"}
    assert list(ours) == [(b, e) for b in (0, 2, 3) for e in (1, 3)]
    assert model["workload"]["examples"] == 8
    assert {one["contender"] for one in model["speeds"] if one["of_ideal"]} == {
        "ours",
        "ours, full+answer",
        "ours, full+answer+lora",
    }
    assert all(one["of_ideal"]["low"] > 0 for one in ours.values())
    assert len(model["speeds"]) == 2 * (2 * 3 + 2 + 4)
    ways = {way["what"]: way["device"] for way in model["tracing"]}
    assert ways == dict.fromkeys(("plain forward", "deviations", "prompts' keys and values"), "cpu")


def test_some_contenders_are_measured_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_params(tmp_path, device__kind="cpu", device__dtype="float32")
    monkeypatch.setitem(workloads.SHAPES, "6x384", SHAPE)
    monkeypatch.setattr("stages.bench.__main__._QUICK", Plan(models=["6x384"], quarters=(0, 2), epochs=(1, 3), **BRIEF))
    main(["--quick", "--contenders", PREFIX, "trainer, cached prompts", "--batch-size", "4"])
    (model,) = read_json(tmp_path / "reports/benchmark.json")["models"]
    cached = {one["contender"]: one["times_as_fast_as"] for one in model["speeds"] if one["epochs"] == 3}
    assert set(cached) == {TRAINER, PREFIX, "trainer, cached prompts"}
    assert cached[PREFIX]["Trainer, same layers frozen"]["low"] > 0
    assert "  contender trainer, cached prefix, boundary 2, epochs 1, seconds " in capsys.readouterr().out
    assert not list((tmp_path / "reports/.work").glob("*"))
