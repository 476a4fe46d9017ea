"""The benchmark's tables on the page."""

import json

import pytest

from salf.files import write_json
from stages.report.__main__ import main

SPREAD = {"median": 1.5, "low": 1.25, "high": 1.75}


def target(name, **found):
    return {"name": name, "sense": "at least", "goal": 0.9, "where": "boundary 6", **found}


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
                "allocator": {"boundary": 6, "epochs": 5, "slower_without": SPREAD},
                "tracing": [
                    {
                        "what": "deviations",
                        "device": "Some GPU",
                        "examples_per_second": SPREAD,
                        "of_plain_forward": SPREAD,
                    }
                ],
                "answer_side": [],
                "bytes_per_second": None,
            }
        ],
        "startup": {"python": SPREAD, "finetune": SPREAD, "finetune+lora": SPREAD},
        "no_op_repro": None,
        "deciding": None,
        "bases": {"vocabulary": 128000, "hidden": 4096, "tokens": 256, "seconds": 41.5, "peak_bytes": None},
        "notes": [],
        "targets": [
            target("ideal", value=0.8125, met=False, why="Epochs 2 to 3 took 3 s for 2 s."),
            target("tracing", value=0.96875, met=True, why=""),
        ],
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
    assert "Some &lt;b&gt;Processor&lt;/b&gt;, 2 threads, float32, 3 rounds, 2026-01-02; 1 of 2 targets met" in page
    for value in (1.5, 1.875, 0.8125, 3 << 30, 41.5):
        assert f'<data value="{value}">' in page
    assert "1.25 to 1.75" in page
    assert "start of finetune+lora" in page
    assert "tracing on Some GPU." in page


def test_a_missed_target_says_where_the_time_goes(page_with):
    table = page_with(benchmark=benchmark()).partition('id="table-speed-targets-benchmark"')[2].partition("</table>")[0]
    assert "Epochs 2 to 3 took 3 s for 2 s." in table


def test_a_benchmark_from_before_reasons_were_told_is_still_shown(page_with):
    before = [{key: value for key, value in one.items() if key != "why"} for one in benchmark()["targets"]]
    page = page_with(benchmark=benchmark(targets=before))
    assert "1 of 2 targets met" in page


def test_kept_benchmarks_of_other_machines_stand_beside_it(page_with):
    page = page_with(benchmark=benchmark(), benchmark_h200=benchmark(machine={"accelerators": ["NVIDIA H200"]}))
    assert "benchmark-h200: NVIDIA H200" in page
    assert page.count('id="table-speed-targets-') == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "content", [None, benchmark(quick=True), benchmark(schema_version=2), {"commit": "x", "benchmarks": []}, []]
)
def test_no_table_where_there_is_none_or_only_a_short_or_a_foreign_one(page_with, content):
    page = page_with() if content is None else page_with(benchmark=content)
    assert 'id="speed"' not in page


def test_the_example_here_is_of_the_shape_that_is_written():
    from stages.common.benchmark import Benchmark

    record = benchmark()
    assert Benchmark.model_validate_json(json.dumps(record)).model_dump(mode="json") == record
