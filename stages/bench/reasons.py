"""Where the time goes where a target is missed: sentences from the run's own numbers."""

from collections.abc import Callable, Mapping

from stages.common.benchmark import Bases, Deciding, ModelResult, Point, Spread, Tracing


def beside_ideal(model: ModelResult, point: Point) -> str:
    """Which epochs took longer than their operations allow, and how far repeats of one run lie apart."""

    def allowed(at: Point) -> float:
        return _full_seconds(model, at.epochs) / at.ideal

    return (
        f"By its operations it would take {_seconds(allowed(point))} of boundary 0's "
        f"{_seconds(_full_seconds(model, point.epochs))}; by epochs: {_epochs(model, point, allowed)}. "
        f"Repeats of this run took {_range(point.seconds)}, of boundary 0's {_range(_full(model, point.epochs))}."
    )


def beside_trainer(model: ModelResult, point: Point) -> str:
    """Which epochs took longer than the Trainer's."""
    return f"By epochs, compared with the Trainer's: {_epochs(model, point, _trainer_seconds)}."


def beside_lora(model: ModelResult, point: Point, goal: float) -> str:
    """What layer passes alone allow, and from which boundary on they allow the goal.

    LoRA on all L layers goes forward and backward through each, two passes an epoch; its adapters' own
    products are left out. Ours is the fine-tune's k/epochs + 3(L−k).
    """
    layers, boundary, epochs = model.workload.layers, point.boundary, point.epochs
    theirs, trained = 2 * layers, layers - boundary

    def ours(k: int) -> float:
        return k / epochs + 3 * (layers - k)

    allowed, reached = theirs / ours(boundary), point.trainer_lora.median
    words = (
        f"In layer passes, an epoch of LoRA on all layers costs {theirs} (forward and backward through {layers} "
        f"layers), of ours {ours(boundary):.3g} ({boundary}/{epochs} for the states at the boundary, 3 x {trained} "
        f"above it, {trained} of them for gradients of whole weights): they allow {allowed:.2f} times; "
        f"{reached:.2f} are {reached / allowed:.0%} of that."
    )
    enough = [k for k in range(layers + 1) if theirs >= goal * ours(k)]
    if allowed < goal and enough:
        words += f" Layer passes allow {goal:g} times from boundary {enough[0]} on."
    if reached < allowed:
        words += f" By epochs, compared with LoRA's: {_epochs(model, point, _lora_seconds)}."
    return words


def beside_forward(way: Tracing) -> str:
    """How much of an example's time is not the forward pass's."""
    took = 1 / way.examples_per_second.median
    forward = took * way.of_plain_forward.median
    return (
        f"An example takes {_seconds(took)}, of which a plain forward pass would take {_seconds(forward)}: the "
        f"other {_seconds(took - forward)} ({(took - forward) / took:.0%}) go to the deviations of all spaces and "
        "their shards."
    )


def of_deciding(deciding: Deciding, share: float, startup: Mapping[str, Spread]) -> str:
    """Each stage's share, how much of it is start-up, and what would remain without.

    Args:
        deciding: its seconds by stage.
        share: what it costs, of what it is held against.
        startup: seconds of a process until it could begin, by stage; not all need be there.
    """
    total = sum(deciding.stages.values())
    starts = {stage: min(startup[stage].median, took) for stage, took in deciding.stages.items() if stage in startup}
    parts = []
    for stage, took in deciding.stages.items():
        start = f"{_seconds(starts[stage])} of it start-up" if stage in starts else "start-up not measured"
        parts.append(f"{stage} {_seconds(took)} ({took / total:.0%}; {start})")
    words = f"Of {_seconds(total)}: {', '.join(parts)}."
    if not starts:
        return words
    spent = sum(starts.values())
    return (
        f"{words} Start-up is {spent / total:.0%} of deciding; without it, deciding would cost "
        f"{share * (total - spent) / total:.1%} instead of {share:.1%}."
    )


def of_bases(bases: Bases) -> str:
    """The rate of the product that takes nearly all of the time."""
    operations = bases.vocabulary * bases.hidden**2  # one half of a symmetric product, two for each multiply-add
    return (
        f"Nearly all of it is the product of the head with itself, {operations / 1e9:,.0f} GFLOP at least: "
        f"{operations / 1e9 / bases.seconds:,.0f} GFLOP/s."
    )


def _epochs(model: ModelResult, point: Point, other: Callable[[Point], float]) -> str:
    """Our seconds of the first epochs that were read and of those behind them, each beside the other's."""
    same = sorted((p for p in model.points if p.boundary == point.boundary), key=lambda p: p.epochs)
    first = same[0]
    states = " with the states at the boundary" if point.boundary else ""
    parts = [f"{_span(1, first.epochs)}{states} {_beside(first.seconds.median, other(first))}"]
    if point.epochs > first.epochs:
        took, others = point.seconds.median - first.seconds.median, other(point) - other(first)
        parts.append(f"{_span(first.epochs + 1, point.epochs)} {_beside(took, others)}")
    return ", ".join(parts)


def _full(model: ModelResult, epochs: int) -> Spread:
    (full,) = (p.seconds for p in model.points if p.boundary == 0 and p.epochs == epochs)
    return full


def _full_seconds(model: ModelResult, epochs: int) -> float:
    return _full(model, epochs).median


def _trainer_seconds(point: Point) -> float:
    return point.seconds.median * point.trainer_frozen.median


def _lora_seconds(point: Point) -> float:
    return point.seconds.median * point.trainer_lora.median


def _beside(took: float, other: float) -> str:
    return f"{_seconds(took)} against {_seconds(other)}"


def _span(first: int, last: int) -> str:
    return f"epoch {first}" if first == last else f"epochs {first} to {last}"


def _seconds(value: float) -> str:
    return f"{1000 * value:.0f} ms" if value < 1 else f"{value:.1f} s"


def _range(seconds: Spread) -> str:
    return f"{_seconds(seconds.low)} to {_seconds(seconds.high)}"
