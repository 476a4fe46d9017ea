"""Where the time goes where a target is missed, from given numbers."""

from stages.bench import targets
from stages.bench.rounds import WHOLE
from stages.common.benchmark import Bases, Deciding, ModelResult, Point, Spread, Tracing, Workload


def point(boundary, epochs, seconds, ideal=1.0, frozen=1.0, lora=1.0):
    one = Spread.of([1.0])
    return Point(
        boundary=boundary,
        epochs=epochs,
        seconds=Spread.of([seconds]),
        trainer_full=one,
        trainer_frozen=Spread.of([frozen]),
        trainer_lora=Spread.of([lora]),
        speed_up=one,
        ideal=ideal,
        of_ideal=1.0,
    )


def model(*points, layers=12):
    numbers = {"hidden": 8, "vocabulary": 9, "parameters": 10, "examples": 16, "batch_size": 8, "shared_tokens": 0}
    workload = Workload(model="m", origin="o", layers=layers, mean_tokens=12.0, **numbers)
    return ModelResult(workload=workload, points=list(points), memory=[], allocator=None, tracing=[])


def test_layer_passes_say_what_half_of_the_depth_can_bring_compared_with_lora():
    deep = point(10, 3, 12.0, lora=1.5)
    assert targets._why_lora(model(point(10, 1, 7.0, lora=1.0), deep), deep) == (
        "In layer passes, an epoch of LoRA on all layers costs 24, of ours 9.33 (10/3 for the states at the boundary, "
        "3 x 2 above it): they allow 2.57 times. By epochs, compared with LoRA's: epoch 1 with the states at the "
        "boundary 7.0 s against 7.0 s, epochs 2 to 3 5.0 s against 11.0 s."
    )


def test_epochs_beside_their_operations_tell_building_the_states_from_training():
    deep = point(9, 3, 9.0, ideal=3.0)
    found = model(point(0, 1, 10.0), point(0, 3, 24.0), point(9, 1, 6.0, ideal=2.0), deep)
    assert targets._why_ideal(found, deep) == (
        "By its FLOPs it would take 8.0 s of boundary 0's 24.0 s; by epochs: "
        "epoch 1 with the states at the boundary 6.0 s against 5.0 s, epochs 2 to 3 3.0 s against 3.0 s. "
        "Repeats of this run took 9.0 s to 9.0 s, of boundary 0's 24.0 s to 24.0 s."
    )


def test_epochs_beside_the_trainers():
    start, both = point(0, 1, 0.5, frozen=0.5), point(0, 2, 2.0, frozen=0.75)
    assert targets._why_trainer(model(both, start), both) == (
        "By epochs, compared with the Trainer's: epoch 1 500 ms against 250 ms, epoch 2 1.5 s against 1.2 s."
    )
    assert targets._why_trainer(model(both, start), start).endswith("epoch 1 500 ms against 250 ms.")


def test_an_examples_time_beside_a_plain_forward_pass():
    way = Tracing(what=WHOLE, examples_per_second=Spread.of([5.0]), of_plain_forward=Spread.of([0.75]))
    assert targets._why_tracing(way) == (
        "An example takes 200 ms, of which a plain forward pass would take 150 ms: the other 50 ms (25%) go to the "
        "deviations of all spaces and their shards."
    )


def test_deciding_is_told_by_stage_with_and_without_start_up():
    deciding = Deciding(
        rows=9,
        epochs=3,
        seconds=Spread.of([20.0]),
        stages={"trace": 16.0, "fit": 3.5, "plan": 0.5},
        of_trainer_full=0.04,
        of_our_full=0.08,
    )
    startup = {"python": Spread.of([0.1]), "trace": Spread.of([9.0, 10.0, 12.0]), "plan": Spread.of([0.75])}
    assert targets._why_deciding(deciding, 0.08, startup) == (
        "Of 20.0 s: trace 16.0 s (80%; 10.0 s of it start-up), fit 3.5 s (18%; start-up not measured), plan 500 ms "
        "(2%; 500 ms of it start-up). Start-up is 52% of deciding; without it, deciding would cost 3.8% instead of "
        "8.0%."
    )
    assert targets._why_deciding(deciding, 0.08, {}).endswith(
        "fit 3.5 s (18%; start-up not measured), plan 500 ms (2%; start-up not measured)."
    )


def test_the_rate_at_which_bases_are_solved():
    bases = Bases(vocabulary=128_000, hidden=4096, tokens=1, seconds=80.0, peak_bytes=None)
    assert targets._why_bases(bases).endswith("2,147 GFLOP at least: 27 GFLOP/s.")
