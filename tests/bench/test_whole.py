"""A whole benchmark of tiny models, processes and all."""

import shutil

import pytest
from pydantic_core import to_jsonable_python

from salf.files import read_json, write_json
from stages.bench import measure as module
from stages.bench.__main__ import main
from stages.bench.measure import measure
from stages.bench.rounds import Plan
from tests.bench.conftest import CPU, SHAPE
from tests.conftest import PROJECT, write_params

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def test_a_benchmark_is_complete(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(PROJECT / "params.yaml", tmp_path)
    monkeypatch.setitem(module.SHAPES, "tiny", SHAPE)
    plan = Plan(
        quick=True,
        models=["tiny"],
        batch_size=4,
        quarters=(0, 2, 3),
        epochs=(1, 3),
        repeats=2,
        training_seconds=0.1,
        tracing_seconds=0.1,
    )
    found = to_jsonable_python(measure(plan, CPU, tmp_path))
    write_json(tmp_path / "benchmark.json", found)
    (model,) = found["models"]
    ours = {(one["boundary"], one["epochs"]): one for one in model["speeds"] if one["contender"] == "ours"}
    assert list(ours) == [(b, e) for b in (0, 2, 3) for e in (1, 3)]
    assert model["workload"]["examples"] == 8
    assert {one["contender"] for one in model["speeds"] if one["of_ideal"] is None} == {"trainer", "lora"}
    assert all(one["of_ideal"]["low"] > 0 for one in ours.values())
    assert len(model["speeds"]) == 2 * (2 * 3 + 3)
    ways = {way["what"]: way["device"] for way in model["tracing"]}
    assert ways == dict.fromkeys(("plain forward", "deviations", "prompts' keys and values"), "cpu")


def test_the_cached_prefix_is_measured_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_params(tmp_path, device__kind="cpu", device__dtype="float32")
    (tmp_path / "reports").mkdir()
    monkeypatch.setitem(module.SHAPES, "6x384", SHAPE)
    main(["--only", "prefix", "--models", "6x384", "--examples", "8", "--batch-size", "4", "--repeats", "2"])
    found = read_json(tmp_path / "reports/prefix-benchmark.json")["speeds"]
    assert [(one["at"], one["epochs"]) for one in found] == [(b, e) for b in (2, 3) for e in (1, 3, 5)]
    assert all(0 < one["cache_share"]["low"] <= one["cache_share"]["high"] < 1 for one in found)
    assert "  at 2, epochs 1, seconds " in capsys.readouterr().out
    assert not list((tmp_path / "reports/.work").glob("*"))


def test_answer_side_tuning_is_measured_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_params(tmp_path, device__kind="cpu", device__dtype="float32")
    (tmp_path / "reports").mkdir()
    monkeypatch.setitem(module.SHAPES, "6x384", SHAPE)
    main(["--only", "answer-side", "--models", "6x384", "--examples", "8", "--batch-size", "4", "--repeats", "2"])
    found = read_json(tmp_path / "reports/answer-side-benchmark.json")["speeds"]
    assert [(one["at"], one["epochs"]) for one in found] == [(n, e) for n in (64, 256, 1024) for e in (1, 3)]
    assert all(0 < one["cache_share"]["low"] <= one["cache_share"]["high"] < 1 for one in found)
    assert not list((tmp_path / "reports/.work").glob("*"))
