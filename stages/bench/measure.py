"""The whole benchmark, from tasks to the artifact."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from salf.engine.runtime import find_runtime
from salf.settings import Device
from stages.bench import processes
from stages.bench.contender import Kept, facts
from stages.bench.rounds import OURS, TRAINER, FineTunes, Plan, measure_fine_tunes, measure_tracing
from stages.bench.targets import targets
from stages.bench.workloads import EMBEDDED, SHAPES, Task, embedded_task, random_task, real_task
from stages.common.benchmark import Benchmark, Deciding, ModelResult, Spread

DECIDING_EPOCHS: Final = 3  # of the full fine-tune that deciding is held against
_NOISY: Final = 1.25  # slowest over fastest repeat of the same run, from which on a note says so


def measure(plan: Plan, device: Device, folder: Path) -> Benchmark:
    """Measure everything; what is in ``folder`` from a run that was stopped is not measured again."""
    kept = Kept(folder / "measured.json")
    startup = processes.startup(plan.stages, plan.starts, kept)
    models, deciding = [], None
    for name in plan.models:
        task, prepared = task_of(name, folder, plan.batch_size, device)
        tunes = measure_fine_tunes(task, plan, kept, folder)
        models.append(
            ModelResult(
                workload=task.described(tunes.examples),
                points=tunes.points(),
                memory=tunes.memory(),
                allocator=None,
                tracing=measure_tracing(task, plan, kept, folder),
                answer_side=tunes.answers(),
                bytes_per_second=tunes.bytes_per_second(),
            )
        )
        if prepared is not None and DECIDING_EPOCHS in plan.epochs:
            deciding = _deciding(processes.deciding(prepared, plan.repeats, kept), len(task.examples), tunes)
    return Benchmark(
        **facts(device),
        quick=plan.quick,
        repeats=plan.repeats,
        models=models,
        startup=startup,
        no_op_repro=None,
        deciding=deciding,
        bases=None,
        notes=noise(models),
        targets=targets(models, deciding, startup, find_runtime(device).device.type),
    )


def task_of(name: str, folder: Path, batch_size: int, device: Device) -> tuple[Task, Path | None]:
    """A workload by its name, made in ``folder``; the embedded one with its project folder."""
    if name != EMBEDDED:
        return random_task(name, SHAPES[name], folder / name, batch_size, device), None
    prepared = embedded_task(folder / EMBEDDED)
    return real_task(prepared, batch_size, device), prepared


def _deciding(laps: Mapping[str, list[float]], rows: int, tunes: FineTunes) -> Deciding:
    """Seconds of the stages that decide by round, as shares of full fine-tunes of all rows."""
    together = Spread.of([sum(stages) for stages in zip(*laps.values(), strict=True)])

    def share(contender: str) -> float:
        seconds = statistics.median(tunes.seconds(contender, 0, DECIDING_EPOCHS))
        return together.median / (seconds * rows / tunes.examples)

    return Deciding(
        rows=rows,
        epochs=DECIDING_EPOCHS,
        seconds=together,
        stages={stage: statistics.median(seconds) for stage, seconds in laps.items()},
        of_trainer_full=share(TRAINER),
        of_our_full=share(OURS),
    )


def noise(models: Sequence[ModelResult]) -> list[str]:
    """A line for every model whose own repeats differ much."""
    lines = []
    for model in models:
        point = max(model.points, key=lambda one: one.seconds.high / one.seconds.low)
        low, high = point.seconds.low, point.seconds.high
        if high / low >= _NOISY:
            lines.append(
                f"{model.workload.model}: the machine's speed changed between repeats: the same run of ours "
                f"(boundary {point.boundary}, epochs: {point.epochs}) took {low:.3g} to {high:.3g} s"
            )
    return lines
