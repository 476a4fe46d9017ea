"""From measured seconds to ratios and points."""

import pytest

from stages.bench import measure
from stages.bench.rounds import LORA, OURS, TRAINER, FineTunes, Plan
from stages.common.benchmark import Spread

PLAN = Plan(
    quick=True, models=["m"], batch_size=8, quarters=(0, 2, 3), epochs=(1, 3), repeats=3, training_seconds=1,
    tracing_seconds=1,
)  # fmt: skip


def rounds(*seconds, flops=(), traffic=(), peak=100):
    counted = {"flops": list(flops), "traffic": list(traffic), "bytes_per_second": 3}
    return [{"seconds": list(lap), **counted, "peak_bytes": peak + n} for n, lap in enumerate(seconds)]


@pytest.fixture
def tunes():
    """Seconds at the end of epochs 1, 2 and 3; the machine is twice as slow in the second round."""
    return FineTunes(
        PLAN,
        layers=4,
        examples=16,
        measured={
            (OURS, 0): rounds((8, 16, 24), (16, 32, 48), (8, 16, 24), flops=(90, 180, 270), traffic=(3, 6, 9)),
            (OURS, 2): rounds((5, 9, 13), (10, 18, 26), (6, 10, 14), flops=(60, 105, 150)),
            (OURS, 3): rounds((4, 6, 8), (8, 12, 16), (4, 6, 8), flops=(52, 66, 80)),
            (TRAINER, 0): rounds((10, 20, 30), (20, 40, 60), (12, 22, 32), peak=400),
            (TRAINER, 2): rounds((7, 14, 21), (14, 28, 42), (7, 14, 21), peak=300),
            (TRAINER, 3): rounds((6, 12, 18), (12, 24, 36), (6, 12, 18), peak=200),
            (LORA, 0): rounds((8, 16, 24), (16, 32, 48), (8, 16, 24), peak=250),
            ("ours, full+answer", 0): rounds((5, 7, 9), (10, 14, 18), (4, 6, 8), flops=(60, 75, 90), traffic=(3, 6, 9)),
            ("ours, full+answer+lora", 0): rounds(
                (4, 6, 8), (8, 12, 16), (4, 6, 8), flops=(50, 60, 70), traffic=(0, 0, 0)
            ),
        },
    )


def test_a_spread_is_that_of_the_rounds_own_ratios():
    spread = Spread.of_ratios([3, 8, 5], [1, 2, 5])
    assert (spread.median, spread.low, spread.high) == (3, 1, 4)


def test_points_hold_the_medians_of_ratios_measured_in_the_same_round(tunes):
    points = {(point.boundary, point.epochs): point for point in tunes.points()}
    assert list(points) == [(boundary, epochs) for boundary in (0, 2, 3) for epochs in (1, 3)]
    point = points[2, 3]
    assert (point.seconds.median, point.seconds.low, point.seconds.high) == (14, 13, 26)
    assert point.trainer_full.median == pytest.approx(30 / 13)
    assert point.trainer_frozen.low == pytest.approx(21 / 14)
    assert point.trainer_lora.high == pytest.approx(24 / 13)
    assert point.speed_up.median == pytest.approx(24 / 13)
    assert point.ideal == pytest.approx(270 / 150)
    assert point.of_ideal == pytest.approx(24 / 13 / 1.8)
    assert points[0, 1].speed_up.median == points[0, 1].ideal == 1


def test_answers_alone_are_compared_in_the_same_rounds(tunes):
    assert {(name, 0) for name in ("ours, full+answer", "ours, full+answer+lora")} < set(PLAN.runs(4))
    found = {(one.method, one.epochs): one for one in tunes.answers()}
    assert list(found) == [(method, epochs) for method in ("full+answer", "full+answer+lora") for epochs in (1, 3)]
    three = found["full+answer", 3]
    assert (three.seconds.median, three.over_full.median) == (9, pytest.approx(24 / 9))
    assert three.over_half.median == pytest.approx(13 / 9)
    assert three.over_trainer_lora.high == 3
    # At 3 bytes a second, 3 of full's 24 seconds are its optimizer's traffic; a third of its FLOPs takes 7 seconds.
    assert (three.ideal, three.of_ideal) == (24 / (7 + 3), pytest.approx(24 / 9 / 2.4))
    assert found["full+answer+lora", 3].ideal == pytest.approx(24 / (21 * 70 / 270))


def test_memory_is_the_largest_of_the_rounds(tunes):
    assert [(m.boundary, m.ours, m.trainer_full, m.trainer_frozen, m.trainer_lora) for m in tunes.memory()] == [
        (0, 102, 402, 402, 252),
        (2, 102, 402, 302, 252),
        (3, 102, 402, 202, 252),
    ]


def test_a_system_that_does_not_tell_its_memory_leaves_the_table_empty(tunes):
    tunes.measured[LORA, 0][1]["peak_bytes"] = None
    assert tunes.memory() == []


def test_deciding_runs_in_its_folder_and_is_a_share_of_fine_tunes_of_all_rows(tunes, tmp_path, monkeypatch):
    """As ``make bench`` has it: all paths are relative to the project, and parameters are in a folder below it."""
    for folder in ("base", "prepared"):
        (tmp_path / folder).mkdir()

    def time_of(command, folder):
        for option in ("--base", "--prepared"):
            assert option not in command or (folder / command[command.index(option) + 1]).is_dir()
        return {"stages.trace": 4.0, "stages.fit": 1.0, "stages.plan": 1.0}[command[2]]

    monkeypatch.setattr(measure, "timed", time_of)
    found = measure._deciding(tmp_path, repeats=2, rows=160, tunes=tunes)
    assert found.seconds == Spread(median=6, low=6, high=6)
    assert found.stages == {"trace": 4, "fit": 1, "plan": 1}
    assert (found.of_trainer_full, found.of_our_full) == (6 / (32 * 10), 6 / (24 * 10))
