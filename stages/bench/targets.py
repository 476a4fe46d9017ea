"""The goals that a benchmark is held against."""

from collections.abc import Iterator, Sequence
from typing import Final, Literal

from stages.bench.tracing import WHOLE
from stages.common.benchmark import Bases, Deciding, ModelResult, Point, Target

_IDEAL: Final = {"cpu": 0.90, "cuda": 0.95}
_LORA_EPOCHS: Final = 3


def targets(models: Sequence[ModelResult], deciding: Deciding | None, bases: Bases | None, device: str) -> list[Target]:
    """A target for each model, of the worst point, and those of deciding and bases where they were measured."""
    found = [target for model in models for target in _of_model(model, device)]
    if deciding is not None:
        words = f"a full fine-tune of {deciding.epochs} epochs"
        where = f"{deciding.rows} rows"
        found += [
            _target(f"deciding, of {words} by the Trainer", "at most", 0.05, deciding.of_trainer_full, where),
            _target(f"deciding, of {words} of ours", "at most", 0.05, deciding.of_our_full, where),
        ]
    if bases is not None:
        where = f"{bases.vocabulary:,} x {bases.hidden:,}"
        found.append(_target("seconds for the semantic bases", "at most", 60.0, bases.seconds, where))
    return found


def _of_model(model: ModelResult, device: str) -> Iterator[Target]:
    name = model.workload.model
    partial = [point for point in model.points if point.boundary]
    worst = min(partial, key=lambda point: point.of_ideal)
    goal = _IDEAL.get(device, _IDEAL["cpu"])
    yield _target(f"{name}: share of the ideal speed-up", "at least", goal, worst.of_ideal, _where(worst))
    worst = min(model.points, key=lambda point: point.trainer_frozen.median)
    as_fast = worst.trainer_frozen.median
    yield _target(f"{name}: times as fast as Trainer, same layers frozen", "at least", 1.0, as_fast, _where(worst))
    half = model.workload.layers // 2
    for point in partial:
        if point.boundary == half and point.epochs == _LORA_EPOCHS:
            as_fast = point.trainer_lora.median
            yield _target(f"{name}: times as fast as LoRA on all layers", "at least", 2.0, as_fast, _where(point))
    for way in model.tracing:
        if way.what == WHOLE:
            share = way.of_plain_forward.median
            yield _target(f"{name}: tracing, of a plain forward's rate", "at least", 0.95, share, WHOLE)


def _target(name: str, sense: Literal["at least", "at most"], goal: float, value: float, where: str) -> Target:
    met = value >= goal if sense == "at least" else value <= goal
    return Target(name=name, sense=sense, goal=goal, value=value, where=where, met=met)


def _where(point: Point) -> str:
    return f"boundary {point.boundary}, {point.epochs} epoch{'s' * (point.epochs > 1)}"
