"""The whole benchmark, from tasks to the artifact."""

import statistics
from pathlib import Path
from typing import Final

from salf.settings import Device
from stages.bench.contender import facts
from stages.bench.rounds import OURS, TRAINER, FineTunes, Plan, measure_fine_tunes, measure_tracing
from stages.bench.workloads import EMBEDDED, SHAPES, Task, embedded_task, random_task, real_task, stage_command, timed
from stages.common.benchmark import Benchmark, Deciding, ModelResult, Spread

DECIDING_EPOCHS: Final = 3  # of the full fine-tune that deciding is compared with


def measure(plan: Plan, device: Device, folder: Path) -> Benchmark:
    """Measure everything; models and logs go into ``folder``."""
    models, deciding = [], None
    for name in plan.models:
        task, prepared = task_of(name, folder, plan.batch_size, device)
        tunes = measure_fine_tunes(task, plan, folder)
        models.append(
            ModelResult(
                workload=task.described(tunes.examples),
                points=tunes.points(),
                memory=tunes.memory(),
                tracing=measure_tracing(task, plan, folder),
                answer_side=tunes.answers(),
                bytes_per_second=tunes.bytes_per_second(),
            )
        )
        if prepared is not None and DECIDING_EPOCHS in plan.epochs:
            deciding = _deciding(prepared, plan.repeats, len(task.examples), tunes)
    return Benchmark(**facts(device), quick=plan.quick, repeats=plan.repeats, models=models, deciding=deciding)


def task_of(name: str, folder: Path, batch_size: int, device: Device) -> tuple[Task, Path | None]:
    """A workload by its name, made in ``folder``; the embedded one with its project folder."""
    if name != EMBEDDED:
        return random_task(name, SHAPES[name], folder / name, batch_size, device), None
    prepared = embedded_task(folder / EMBEDDED)
    return real_task(prepared, batch_size, device), prepared


def _deciding(prepared: Path, repeats: int, rows: int, tunes: FineTunes) -> Deciding:
    """Time trace, fit and plan in the folder of the embedded task, as shares of full fine-tunes of all rows."""
    read, fitted = ["--base", "base", "--prepared", "prepared"], ["--law", "law.json", "--gains", "gains.csv"]
    commands = {
        "trace": stage_command("trace", *read, "--out", "traces"),
        "fit": stage_command("fit", "--traces", "traces", *fitted),
        "plan": stage_command("plan", *read, *fitted, "--out", "plan"),
    }
    rounds = [{stage: timed(command, prepared) for stage, command in commands.items()} for _ in range(repeats)]
    together = Spread.of([sum(laps.values()) for laps in rounds])

    def share(contender: str) -> float:
        seconds = statistics.median(tunes.seconds(contender, 0, DECIDING_EPOCHS))
        return together.median / (seconds * rows / tunes.examples)

    return Deciding(
        rows=rows,
        epochs=DECIDING_EPOCHS,
        seconds=together,
        stages={stage: statistics.median(laps[stage] for laps in rounds) for stage in commands},
        of_trainer_full=share(TRAINER),
        of_our_full=share(OURS),
    )
