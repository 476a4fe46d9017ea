"""The benchmark's tables on the page."""

import json

import pytest

from salf.files import write_json
from stages.common.benchmark import Benchmark, read_benchmark
from stages.report.__main__ import main
from tests.conftest import PROJECT

SPREAD = {"median": 1.5, "low": 1.25, "high": 1.75}


def benchmark(**changes):
    """A benchmark as ``make bench`` writes it."""
    workload = {
        "model": "12x1024",
        "origin": "random weights and random tokens",
        "layers": 12,
        "hidden": 1024,
        "vocabulary": 32000,
        "parameters": 219_000_000,
        "examples": 48,
        "batch_size": 8,
        "mean_tokens": 48.5,
        "shared_tokens": 0,
    }
    ratios = dict.fromkeys(("seconds", "trainer_full", "trainer_frozen", "trainer_lora", "speed_up"), SPREAD)
    point = {**ratios, "boundary": 6, "epochs": 3, "ideal": 1.875, "of_ideal": 0.8125}
    peaks = {"ours": 3 << 30, "trainer_full": 5 << 30, "trainer_frozen": 4 << 30, "trainer_lora": 2 << 30}
    over = dict.fromkeys(("seconds", "over_full", "over_half", "over_trainer_lora"), SPREAD)
    answers = {**over, "method": "full+answer", "epochs": 3, "ideal": 2.5, "of_ideal": 0.75}
    record = {
        "schema_version": 1,
        "quick": False,
        "at": "2026-01-02T03:04:05+00:00",
        "machine": {"cpu": "Some <b>Processor</b>", "threads": 2, "dtype": "float32", "accelerators": []},
        "repeats": 3,
        "models": [
            {
                "workload": workload,
                "points": [point],
                "memory": [{"boundary": 6, **peaks}],
                "tracing": [
                    {
                        "what": "deviations",
                        "device": "Some GPU",
                        "examples_per_second": SPREAD,
                        "of_plain_forward": SPREAD,
                    }
                ],
                "answer_side": [answers],
                "bytes_per_second": None,
            }
        ],
        "deciding": {
            "rows": 900,
            "epochs": 3,
            "seconds": SPREAD,
            "stages": {"trace": 1.0},
            "of_trainer_full": 0.0625,
            "of_our_full": 0.125,
        },
    }
    return {**record, **changes}


@pytest.fixture
def page_with(chain_of):
    """The page of a chain with these files among its reports."""

    def make(**files):
        chain = chain_of(seeds=(1,))
        for name, content in files.items():
            write_json(chain.root / "reports" / f"{name.replace('_', '-')}.json", content)
        main(chain.argv())
        return chain.page.read_text(encoding="utf-8")

    return make


def test_a_benchmark_is_shown_with_its_machine_and_every_exact_number(page_with):
    page = page_with(benchmark=benchmark())
    assert 'id="speed"' in page
    assert (
        "Some &lt;b&gt;Processor&lt;/b&gt;, 2 threads, float32, 3 rounds, 2026-01-02. Trace, fit and plan took 1.5"
        in page
    )
    for value in (1.5, 1.875, 0.8125, 3 << 30, 2.5):
        assert f'<data value="{value}">' in page
    assert "1.25 to 1.75" in page
    assert "tracing on Some GPU." in page


def test_parts_that_earlier_releases_measured_are_ignored():
    committed = read_benchmark(PROJECT / "reports/benchmark-2-cores-avx512.json")
    assert committed is not None
    assert committed.deciding is not None


def test_kept_benchmarks_of_other_machines_stand_beside_it(page_with):
    page = page_with(benchmark=benchmark(), benchmark_h200=benchmark(machine={"accelerators": ["NVIDIA H200"]}))
    assert "benchmark-h200: NVIDIA H200" in page
    assert page.count('id="table-speed-benchmark') == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "content", [None, benchmark(quick=True), benchmark(schema_version=2), {"commit": "x", "benchmarks": []}, []]
)
def test_no_table_where_there_is_none_or_only_a_short_or_a_foreign_one(page_with, content):
    page = page_with() if content is None else page_with(benchmark=content)
    assert 'id="speed"' not in page


def test_the_example_here_is_of_the_shape_that_is_written():
    record = benchmark()
    assert Benchmark.model_validate_json(json.dumps(record)).model_dump(mode="json") == record
