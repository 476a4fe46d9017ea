"""The whole benchmark, from tasks to the artifact."""

from pathlib import Path
from typing import Any

from salf.settings import Device
from stages.bench.contender import facts
from stages.bench.rounds import Plan, measure_fine_tunes, measure_tracing, speeds
from stages.bench.workloads import EMBEDDED, SHAPES, Task, embedded_task, random_task


def measure(plan: Plan, device: Device, folder: Path) -> dict[str, Any]:
    """Measure everything; models and logs go into ``folder``. Returns the artifact."""
    models = []
    for name in plan.models:
        task = task_of(name, folder, plan.batch_size, device)
        examples, measured = measure_fine_tunes(task, plan, folder)
        models.append(
            {
                "workload": task.described(examples),
                "speeds": list(speeds(measured, plan.epochs)),
                "tracing": measure_tracing(task, plan, folder),
            }
        )
    return {**facts(device), "quick": plan.quick, "repeats": plan.repeats, "models": models}


def task_of(name: str, folder: Path, batch_size: int, device: Device) -> Task:
    """A workload by its name, made in ``folder``."""
    if name == EMBEDDED:
        return embedded_task(folder / name, batch_size, device)
    return random_task(name, SHAPES[name], folder / name, batch_size, device)
