"""The goals of a benchmark, and where the time goes where one is missed."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, Literal

from stages.bench.rounds import WHOLE
from stages.common.benchmark import Deciding, ModelResult, Point, Spread, Target

_IDEAL: Final = {"cpu": 0.90, "cuda": 0.95}
_LORA: Final = 2.0
_LORA_EPOCHS: Final = 3
_ANSWERS: Final = 0.8


def targets(
    models: Sequence[ModelResult],
    deciding: Deciding | None,
    startup: Mapping[str, Spread],
    device: str,
) -> list[Target]:
    """Return each model's targets, at the worst point, and those of deciding where that was measured."""
    found = [target for model in models for target in _of_model(model, device)]
    if deciding is not None:
        where, why = f"{deciding.rows} rows", _by_stage(deciding, startup)
        for whose, share in (("by the Trainer", deciding.of_trainer_full), ("of ours", deciding.of_our_full)):
            name = f"deciding, of a full fine-tune of {deciding.epochs} epochs {whose}"
            found.append(_target(name, "at most", 0.05, share, where, why))
    return found


def _of_model(model: ModelResult, device: str) -> Iterator[Target]:
    name, half = model.workload.model, model.workload.layers // 2
    above = [point for point in model.points if point.boundary]
    full = {point.epochs: point.seconds.median for point in model.points if point.boundary == 0}

    def at(point: Point, what: str, goal: float, value: float, other: str, seconds: Callable[[Point], float]) -> Target:
        where = f"boundary {point.boundary}, {point.epochs} epoch{'s' * (point.epochs > 1)}"
        why = f"Ours and {other}: {_by_epochs(model, point, seconds)}."
        return _target(f"{name}: {what}", "at least", goal, value, where, why)

    worst, goal = min(above, key=lambda point: point.of_ideal), _IDEAL.get(device, _IDEAL["cpu"])
    ideal = "what the FLOPs promise"
    yield at(worst, "share of the ideal speed-up", goal, worst.of_ideal, ideal, lambda p: full[p.epochs] / p.ideal)
    worst = min(model.points, key=lambda point: point.trainer_frozen.median)
    what, ratio = "times as fast as Trainer, same layers frozen", worst.trainer_frozen.median
    yield at(worst, what, 1.0, ratio, "the Trainer", lambda p: p.seconds.median * p.trainer_frozen.median)
    for point in above:
        if (point.boundary, point.epochs) == (half, _LORA_EPOCHS):
            what, ratio = "times as fast as LoRA on all layers", point.trainer_lora.median
            yield at(point, what, _LORA, ratio, "LoRA", lambda p: p.seconds.median * p.trainer_lora.median)
    for speed in model.answer_side:
        if speed.epochs == _LORA_EPOCHS and model.bytes_per_second:
            took = speed.seconds.median
            why = f"Ours took {_seconds(took)}, and these rates promise {_seconds(took * speed.of_ideal)}."
            what = f"{name}: {speed.method}, share of what FLOPs and the optimizer's memory traffic allow"
            yield _target(what, "at least", _ANSWERS, speed.of_ideal, f"{speed.epochs} epochs", why)
    for way in model.tracing:
        if way.what == WHOLE:
            share, took = way.of_plain_forward.median, 1 / way.examples_per_second.median
            why = f"An example takes {_seconds(took)}, a plain forward pass {_seconds(took * share)}."
            yield _target(f"{name}: tracing, of a plain forward's rate", "at least", 0.95, share, WHOLE, why)


def _target(
    name: str, sense: Literal["at least", "at most"], goal: float, value: float, where: str, why: str
) -> Target:
    met = value >= goal if sense == "at least" else value <= goal
    return Target(name=name, sense=sense, goal=goal, value=value, where=where, met=met, why="" if met else why)


def _by_stage(deciding: Deciding, startup: Mapping[str, Spread]) -> str:
    """Each stage's seconds, and how much of them is start-up."""
    parts = []
    for stage, took in deciding.stages.items():
        start = f"{_seconds(startup[stage].median)} of it start-up" if stage in startup else "start-up not measured"
        parts.append(f"{stage} {_seconds(took)} ({start})")
    return f"Of {_seconds(sum(deciding.stages.values()))}: {', '.join(parts)}."


def _by_epochs(model: ModelResult, point: Point, other: Callable[[Point], float]) -> str:
    """Seconds of the first epochs, which include the states at the boundary, and of the later ones."""
    first = min((p for p in model.points if p.boundary == point.boundary), key=lambda p: p.epochs)
    text = f"{_seconds(first.seconds.median)} and {_seconds(other(first))} up to epoch {first.epochs}"
    if point.epochs == first.epochs:
        return text
    took, others = point.seconds.median - first.seconds.median, other(point) - other(first)
    return f"{text}, {_seconds(took)} and {_seconds(others)} from there to epoch {point.epochs}"


def _seconds(value: float) -> str:
    return f"{1000 * value:.0f} ms" if value < 1 else f"{value:.1f} s"
