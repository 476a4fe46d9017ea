"""The goals that a benchmark is held against."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Final, Literal

from stages.bench import reasons
from stages.bench.tracing import WHOLE
from stages.common.benchmark import Bases, Deciding, ModelResult, Point, Spread, Target

_IDEAL: Final = {"cpu": 0.90, "cuda": 0.95}
_LORA: Final = 2.0
_LORA_EPOCHS: Final = 3


def targets(
    models: Sequence[ModelResult],
    deciding: Deciding | None,
    bases: Bases | None,
    startup: Mapping[str, Spread],
    device: str,
) -> list[Target]:
    """Those of each model, of the worst point, and those of deciding and bases where they were measured.

    Args:
        models: what was measured with each.
        deciding: trace, fit and plan; ``None`` where they were left out.
        bases: likewise.
        startup: seconds until a process could begin, by stage: says where deciding's time goes.
        device: torch's name of its type.
    """
    found = [target for model in models for target in _of_model(model, device)]
    if deciding is not None:
        words = f"a full fine-tune of {deciding.epochs} epochs"
        where = f"{deciding.rows} rows"
        for whose, share in (("by the Trainer", deciding.of_trainer_full), ("of ours", deciding.of_our_full)):
            why = partial(reasons.of_deciding, deciding, share, startup)
            found.append(_target(f"deciding, of {words} {whose}", "at most", 0.05, share, where, why))
    if bases is not None:
        where = f"{bases.vocabulary:,} x {bases.hidden:,}"
        why = partial(reasons.of_bases, bases)
        found.append(_target("seconds for the semantic bases", "at most", 60.0, bases.seconds, where, why))
    return found


def _of_model(model: ModelResult, device: str) -> Iterator[Target]:
    name = model.workload.model
    above = [point for point in model.points if point.boundary]
    worst = min(above, key=lambda point: point.of_ideal)
    goal, why = _IDEAL.get(device, _IDEAL["cpu"]), partial(reasons.beside_ideal, model, worst)
    yield _target(f"{name}: share of the ideal speed-up", "at least", goal, worst.of_ideal, _where(worst), why)
    worst = min(model.points, key=lambda point: point.trainer_frozen.median)
    as_fast, why = worst.trainer_frozen.median, partial(reasons.beside_trainer, model, worst)
    yield _target(f"{name}: times as fast as Trainer, same layers frozen", "at least", 1.0, as_fast, _where(worst), why)
    half = model.workload.layers // 2
    for point in above:
        if point.boundary == half and point.epochs == _LORA_EPOCHS:
            as_fast, why = point.trainer_lora.median, partial(reasons.beside_lora, model, point, _LORA)
            where = _where(point)
            yield _target(f"{name}: times as fast as LoRA on all layers", "at least", _LORA, as_fast, where, why)
    for way in model.tracing:
        if way.what == WHOLE:
            share, why = way.of_plain_forward.median, partial(reasons.beside_forward, way)
            yield _target(f"{name}: tracing, of a plain forward's rate", "at least", 0.95, share, WHOLE, why)


def _target(
    name: str, sense: Literal["at least", "at most"], goal: float, value: float, where: str, why: Callable[[], str]
) -> Target:
    """``why`` is asked where the goal is missed."""
    met = value >= goal if sense == "at least" else value <= goal
    return Target(name=name, sense=sense, goal=goal, value=value, where=where, met=met, why="" if met else why())


def _where(point: Point) -> str:
    return f"boundary {point.boundary}, {point.epochs} epoch{'s' * (point.epochs > 1)}"
