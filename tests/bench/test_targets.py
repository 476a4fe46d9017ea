"""Where the time goes where a target is missed, from given numbers."""

import pytest

from stages.bench import targets
from stages.common.benchmark import Deciding, ModelResult, Point, Spread, Workload


def point(boundary, epochs, seconds):
    one = Spread.of([1.0])
    ratios = dict.fromkeys(("trainer_full", "trainer_frozen", "trainer_lora", "speed_up"), one)
    return Point(boundary=boundary, epochs=epochs, seconds=Spread.of([seconds]), ideal=1.0, of_ideal=1.0, **ratios)


@pytest.mark.parametrize(
    ("epochs", "text"),
    [
        (1, "6.0 s and 3.0 s up to epoch 1"),
        (3, "6.0 s and 3.0 s up to epoch 1, 3.0 s and 1.5 s from there to epoch 3"),
    ],
)
def test_the_first_epochs_hold_the_states_and_are_told_apart_from_the_later_ones(epochs, text):
    points = {1: point(9, 1, 6.0), 3: point(9, 3, 9.0)}
    numbers = {"hidden": 8, "vocabulary": 9, "parameters": 10, "examples": 16, "batch_size": 8, "shared_tokens": 0}
    workload = Workload(model="m", origin="o", layers=12, mean_tokens=12.0, **numbers)
    model = ModelResult(workload=workload, points=list(points.values()), memory=[], allocator=None, tracing=[])
    assert targets._by_epochs(model, points[epochs], lambda p: p.seconds.median / 2) == text


def test_deciding_is_told_by_stage_with_its_start_up():
    stages = {"trace": 16.0, "fit": 3.5, "plan": 0.5}
    deciding = Deciding(
        rows=9, epochs=3, seconds=Spread.of([20.0]), stages=stages, of_trainer_full=0.04, of_our_full=0.08
    )
    startup = {"python": Spread.of([0.1]), "trace": Spread.of([9.0, 10.0, 12.0]), "plan": Spread.of([0.75])}
    assert targets._by_stage(deciding, startup) == (
        "Of 20.0 s: trace 16.0 s (10.0 s of it start-up), fit 3.5 s (start-up not measured), "
        "plan 500 ms (750 ms of it start-up)."
    )
