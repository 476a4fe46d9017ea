"""The goals that a benchmark is held to, and, where one is missed, where the time goes."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Final, Literal

from stages.bench.rounds import WHOLE
from stages.common.benchmark import Bases, Deciding, ModelResult, Point, Spread, Target, Tracing

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
    """Return each model's targets, at the worst point, and those of deciding and of the bases where measured.

    Args:
        models: each model's measurements.
        deciding: trace, fit and plan; ``None`` where they were left out.
        bases: likewise.
        startup: seconds until a process could begin, by stage.
        device: torch's name of its type.
    """
    found = [target for model in models for target in _of_model(model, device)]
    if deciding is not None:
        fine_tune, where = f"a full fine-tune of {deciding.epochs} epochs", f"{deciding.rows} rows"
        for whose, share in (("by the Trainer", deciding.of_trainer_full), ("of ours", deciding.of_our_full)):
            why = partial(_why_deciding, deciding, share, startup)
            found.append(_target(f"deciding, of {fine_tune} {whose}", "at most", 0.05, share, where, why))
    if bases is not None:
        where, why = f"{bases.vocabulary:,} x {bases.hidden:,}", partial(_why_bases, bases)
        found.append(_target("seconds for the semantic bases", "at most", 60.0, bases.seconds, where, why))
    return found


def _of_model(model: ModelResult, device: str) -> Iterator[Target]:
    name = model.workload.model
    above = [point for point in model.points if point.boundary]
    worst = min(above, key=lambda point: point.of_ideal)
    goal, why = _IDEAL.get(device, _IDEAL["cpu"]), partial(_why_ideal, model, worst)
    yield _target(f"{name}: share of the ideal speed-up", "at least", goal, worst.of_ideal, _where(worst), why)
    worst = min(model.points, key=lambda point: point.trainer_frozen.median)
    as_fast, why = worst.trainer_frozen.median, partial(_why_trainer, model, worst)
    yield _target(f"{name}: times as fast as Trainer, same layers frozen", "at least", 1.0, as_fast, _where(worst), why)
    for point in above:
        if point.boundary == model.workload.layers // 2 and point.epochs == _LORA_EPOCHS:
            as_fast, why = point.trainer_lora.median, partial(_why_lora, model, point)
            where = _where(point)
            yield _target(f"{name}: times as fast as LoRA on all layers", "at least", _LORA, as_fast, where, why)
    for way in model.tracing:
        if way.what == WHOLE:
            share, why = way.of_plain_forward.median, partial(_why_tracing, way)
            yield _target(f"{name}: tracing, of a plain forward's rate", "at least", 0.95, share, WHOLE, why)


def _target(
    name: str, sense: Literal["at least", "at most"], goal: float, value: float, where: str, why: Callable[[], str]
) -> Target:
    met = value >= goal if sense == "at least" else value <= goal
    return Target(name=name, sense=sense, goal=goal, value=value, where=where, met=met, why="" if met else why())


def _where(point: Point) -> str:
    return f"boundary {point.boundary}, {point.epochs} epoch{'s' * (point.epochs > 1)}"


def _why_ideal(model: ModelResult, point: Point) -> str:
    def full(at: Point) -> Spread:
        return next(p.seconds for p in model.points if p.boundary == 0 and p.epochs == at.epochs)

    def allowed(at: Point) -> float:
        return full(at).median / at.ideal

    repeats = [f"{_seconds(took.low)} to {_seconds(took.high)}" for took in (point.seconds, full(point))]
    return (
        f"By its FLOPs it would take {_seconds(allowed(point))} of boundary 0's {_seconds(full(point).median)}; "
        f"by epochs: {_by_epochs(model, point, allowed)}. "
        f"Repeats of this run took {repeats[0]}, of boundary 0's {repeats[1]}."
    )


def _why_trainer(model: ModelResult, point: Point) -> str:
    epochs = _by_epochs(model, point, lambda at: at.seconds.median * at.trainer_frozen.median)
    return f"By epochs, compared with the Trainer's: {epochs}."


def _why_lora(model: ModelResult, point: Point) -> str:
    """Layer passes alone bound the ratio: two an epoch for LoRA, k/epochs + 3(L−k) for ours."""
    layers, boundary = model.workload.layers, point.boundary
    theirs, ours = 2 * layers, boundary / point.epochs + 3 * (layers - boundary)
    epochs = _by_epochs(model, point, lambda at: at.seconds.median * at.trainer_lora.median)
    return (
        f"In layer passes, an epoch of LoRA on all layers costs {theirs}, of ours {ours:.3g} "
        f"({boundary}/{point.epochs} for the states at the boundary, 3 x {layers - boundary} above it): "
        f"they allow {theirs / ours:.2f} times. "
        f"By epochs, compared with LoRA's: {epochs}."
    )


def _why_tracing(way: Tracing) -> str:
    took = 1 / way.examples_per_second.median
    forward = took * way.of_plain_forward.median
    return (
        f"An example takes {_seconds(took)}, of which a plain forward pass would take {_seconds(forward)}: the "
        f"other {_seconds(took - forward)} ({(took - forward) / took:.0%}) go to the deviations of all spaces and "
        "their shards."
    )


def _why_deciding(deciding: Deciding, share: float, startup: Mapping[str, Spread]) -> str:
    """Each stage's share, how much of it is start-up, and what would remain without."""
    total = sum(deciding.stages.values())
    starts = {stage: min(startup[stage].median, took) for stage, took in deciding.stages.items() if stage in startup}
    parts = []
    for stage, took in deciding.stages.items():
        start = f"{_seconds(starts[stage])} of it start-up" if stage in starts else "start-up not measured"
        parts.append(f"{stage} {_seconds(took)} ({took / total:.0%}; {start})")
    text = f"Of {_seconds(total)}: {', '.join(parts)}."
    if not starts:
        return text
    spent = sum(starts.values())
    return (
        f"{text} Start-up is {spent / total:.0%} of deciding; without it, deciding would cost "
        f"{share * (total - spent) / total:.1%} instead of {share:.1%}."
    )


def _why_bases(bases: Bases) -> str:
    gigaflops = bases.vocabulary * bases.hidden**2 / 1e9  # one half of a symmetric product, two per multiply-add
    return (
        f"Nearly all of it is the product of the head with itself, {gigaflops:,.0f} GFLOP at least: "
        f"{gigaflops / bases.seconds:,.0f} GFLOP/s."
    )


def _by_epochs(model: ModelResult, point: Point, other: Callable[[Point], float]) -> str:
    """Our seconds of the first epochs that were read and of the later ones, each against the other's."""
    first = min((p for p in model.points if p.boundary == point.boundary), key=lambda p: p.epochs)
    states = " with the states at the boundary" if point.boundary else ""
    parts = [f"{_span(1, first.epochs)}{states} {_seconds(first.seconds.median)} against {_seconds(other(first))}"]
    if point.epochs > first.epochs:
        took, others = point.seconds.median - first.seconds.median, other(point) - other(first)
        parts.append(f"{_span(first.epochs + 1, point.epochs)} {_seconds(took)} against {_seconds(others)}")
    return ", ".join(parts)


def _span(first: int, last: int) -> str:
    return f"epoch {first}" if first == last else f"epochs {first} to {last}"


def _seconds(value: float) -> str:
    return f"{1000 * value:.0f} ms" if value < 1 else f"{value:.1f} s"
