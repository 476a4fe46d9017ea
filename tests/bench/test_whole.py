"""A whole benchmark of tiny models, processes and all."""

import shutil

import pytest

from salf.files import write_json
from stages.bench import measure as module
from stages.bench.__main__ import main
from stages.bench.measure import measure
from stages.bench.rounds import Plan
from stages.common.benchmark import AnswerSideBenchmark, PrefixBenchmark, read_benchmark
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
    first = measure(plan, CPU, tmp_path)
    write_json(tmp_path / "benchmark.json", first.model_dump(mode="json"))
    assert read_benchmark(tmp_path / "benchmark.json") == first

    (model,) = first.models
    assert [(p.boundary, p.epochs) for p in model.points] == [(b, e) for b in (0, 2, 3) for e in (1, 3)]
    assert model.workload.examples == 8
    deep, shallow = (next(p for p in model.points if (p.boundary, p.epochs) == (b, 3)) for b in (3, 2))
    assert deep.ideal > shallow.ideal > 1
    assert [m.boundary for m in model.memory] == [0, 2, 3]
    assert [way.device for way in model.tracing] == ["cpu"] * 3


def test_the_cached_prefix_is_measured_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_params(tmp_path, device__kind="cpu", device__dtype="float32")
    (tmp_path / "reports").mkdir()
    monkeypatch.setitem(module.SHAPES, "6x384", SHAPE)
    main(["--only", "prefix", "--models", "6x384", "--examples", "8", "--batch-size", "4", "--repeats", "2"])
    found = PrefixBenchmark.model_validate_json((tmp_path / "reports/prefix-benchmark.json").read_text())
    assert [(p.boundary, p.epochs) for p in found.points] == [(b, e) for b in (2, 3) for e in (1, 3, 5)]
    assert all(0 < p.prefix_share.low <= p.prefix_share.high < 1 for p in found.points)
    assert not list((tmp_path / "reports/.work").glob("*"))


def test_answer_side_tuning_is_measured_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_params(tmp_path, device__kind="cpu", device__dtype="float32")
    (tmp_path / "reports").mkdir()
    monkeypatch.setitem(module.SHAPES, "6x384", SHAPE)
    main(["--only", "answer-side", "--models", "6x384", "--examples", "8", "--batch-size", "4", "--repeats", "2"])
    found = AnswerSideBenchmark.model_validate_json((tmp_path / "reports/answer-side-benchmark.json").read_text())
    assert [(p.prompt_tokens, p.epochs) for p in found.points] == [(n, e) for n in (64, 256, 1024) for e in (1, 3)]
    assert all(0 < p.cache_share.low <= p.cache_share.high < 1 for p in found.points)
    assert not list((tmp_path / "reports/.work").glob("*"))
