"""From measured seconds to ratios."""

import pytest

from stages.bench.rounds import LORA, OURS, PREFIX, TRAINER, Plan, Spread, speeds


def rounds(*seconds, least=(), peak=100):
    return [{"seconds": list(lap), "least": list(least), "peak_bytes": peak + n} for n, lap in enumerate(seconds)]


# Seconds at the end of epochs 1, 2 and 3; the machine is twice as slow in the second round.
MEASURED = {
    (OURS, 0): rounds((8, 16, 24), (16, 32, 48), (8, 16, 24), least=(6, 12, 18)),
    (OURS, 2): rounds((5, 9, 13), (10, 18, 26), (6, 10, 14), least=(4, 8, 12)),
    (TRAINER, 0): rounds((10, 20, 30), (20, 40, 60), (12, 22, 32), peak=400),
    (TRAINER, 2): rounds((7, 14, 21), (14, 28, 42), (7, 14, 21), peak=300),
    (LORA, 0): rounds((8, 16, 24), (16, 32, 48), (8, 16, 24), peak=250),
    (PREFIX, 2): rounds((7, 10, 14), (14, 20, 28), (7, 10, 14), peak=300),
    ("ours, full+answer", 0): rounds((5, 7, 9), (10, 14, 18), (4, 6, 8), least=(2, 4, 6)),
    ("ours, full+answer+lora", 0): rounds((4, 6, 8), (8, 12, 16), (4, 6, 8), least=(1, 2, 3)),
}


@pytest.fixture
def found():
    return {(one.contender, one.boundary, one.epochs): one for one in speeds(MEASURED, (1, 3))}


def test_a_spread_is_that_of_the_rounds_own_ratios():
    assert Spread.of_ratios([3, 8, 5], [1, 2, 5]) == Spread(3, 1, 4)


def test_a_round_has_all_boundaries_and_answers_alone():
    plan = Plan(quarters=(0, 2, 3))
    assert [run for run in plan.runs(4) if run[0] == OURS] == [(OURS, 0), (OURS, 2), (OURS, 3)]
    assert {("ours, full+answer", 0), ("ours, full+answer+lora", 0), (LORA, 0), (TRAINER, 3)} < set(plan.runs(4))
    assert [run for run in plan.runs(4) if run[0] == PREFIX] == [(PREFIX, 2), (PREFIX, 3)]
    some = Plan(quarters=(0, 2), contenders=(PREFIX,))
    assert some.runs(4) == [(TRAINER, 0), (TRAINER, 2), (PREFIX, 2)]


def test_every_fine_tune_is_compared_in_the_same_rounds(found):
    assert set(found) == {(*run, epochs) for run in MEASURED for epochs in (1, 3)}
    half = found[OURS, 2, 3]
    assert half.seconds == Spread(14, 13, 26)
    assert half.times_as_fast_as["Trainer"].median == pytest.approx(30 / 13)
    assert half.times_as_fast_as["Trainer, same layers frozen"].low == pytest.approx(21 / 14)
    assert half.times_as_fast_as["Trainer, LoRA"].high == pytest.approx(24 / 13)
    answers = found["ours, full+answer", 0, 3]
    assert answers.times_as_fast_as["ours above 2"].median == pytest.approx(13 / 9)
    cached = found[PREFIX, 2, 3].times_as_fast_as
    assert [cached[name].median for name in ("Trainer", "Trainer, same layers frozen")] == [30 / 14, 1.5]
    assert found[TRAINER, 0, 1].times_as_fast_as == {}


def test_the_ideal_is_what_products_and_the_optimizers_traffic_took_in_the_same_round(found):
    assert found["ours, full+answer", 0, 3].of_ideal == Spread.of([6 / 9, 6 / 18, 6 / 8])
    assert found[OURS, 0, 1].of_ideal == Spread.of([6 / 8, 6 / 16, 6 / 8])
    assert {one.contender for one in found.values() if one.of_ideal is None} == {TRAINER, LORA, PREFIX}


def test_a_benchmark_of_some_contenders_compares_with_these(found):
    some = {run: laps for run, laps in MEASURED.items() if run[0] in (TRAINER, PREFIX)}
    (one,) = [one for one in speeds(some, (3,)) if one.contender == PREFIX]
    assert set(one.times_as_fast_as) == {"Trainer", "Trainer, same layers frozen"}


def test_memory_is_the_largest_of_the_rounds_and_none_where_a_round_does_not_say(found):
    assert (found[OURS, 2, 3].peak_bytes, found[TRAINER, 2, 3].peak_bytes) == (102, 302)
    silent = {**MEASURED, (LORA, 0): [{**lap, "peak_bytes": None} for lap in MEASURED[LORA, 0]]}
    assert {one.contender for one in speeds(silent, (3,)) if one.peak_bytes is None} == {LORA}
