"""Predictions compared with measurements: what this chain's fine-tunes should have taken, and what they took."""

from dataclasses import dataclass
from pathlib import Path

from salf.cost import update_traffic
from salf.errors import UserError
from salf.files import significant
from salf.methods import SCOPES
from salf.records import BaseFacts, FineTuneClock, FineTuneRecord, PreparedSizes, read_base, read_sizes
from salf.scale.inputs import Machine
from salf.workload import BoundaryFlops, cost_model


@dataclass(frozen=True)
class Compared:
    """One fine-tune that was made here.

    Measured are the training steps and one pass of the frozen layers over the training split, even where an earlier
    run had left its states. Opening the model, the validation split, other rates and saving are not included.
    """

    run: str
    boundary: int
    predicted_seconds: float
    measured_seconds: float
    ratio: float


def compare(machine: Machine, reference: str, chain: Path) -> list[Compared]:
    """Compare every fine-tune of the chain's base and data that trained weights above one boundary on this machine.

    Words, and scopes without a boundary, are left out, because the prediction is not about them, and so are fine-tunes
    without measurements. ``reference`` is the run that the machine's rate was measured by.
    """
    folder, prepared = chain / "data/base", chain / "data/prepared"
    if not (folder / "base.json").is_file() or not (prepared / "meta.json").is_file():
        return []
    base, data = read_base(folder), read_sizes(prepared)
    here = _machine_of(FineTuneClock.load(chain / f"reports/runs/{reference}.json"))
    compared = []
    for model in sorted(path.parent for path in (chain / "data/models").glob("*/run.json")):
        measured = chain / f"reports/runs/{model.name}.json"
        if not measured.is_file():
            continue
        run, clock = FineTuneRecord.load(model), FineTuneClock.load(measured)
        of_base = run.base_sha256 == base.identity.weights_sha256
        ours = of_base and run.data_sha256.get("train") == data.splits["train"].sha256
        whole = run.steps_planned in (None, run.steps)  # it did not end early
        one_boundary = not run.race and not run.how.words and run.how.scope not in SCOPES
        if ours and whole and one_boundary and _machine_of(clock) == here:
            compared.append(_compared(model.name, run, clock, base, data, machine))
    return compared


def predicted_seconds(machine: Machine, run: FineTuneRecord) -> float:
    """Seconds of a run's cached passes, steps and updates, from its counted FLOPs, which must say what was cached."""
    before = run.flops_before or 0
    updates = run.steps * run.trained_parameters * update_traffic()
    steps = run.flops - before - run.flops_looks
    return machine.seconds(before, steps, updates, answers_alone=run.how.answer_side)


def _machine_of(clock: FineTuneClock) -> tuple[int, str, str, int, int]:
    machine = clock.machine
    return clock.processes, machine.device, machine.dtype, machine.cores, machine.threads


def _compared(
    name: str, run: FineTuneRecord, clock: FineTuneClock, base: BaseFacts, sizes: PreparedSizes, machine: Machine
) -> Compared:
    schedule = run.params.finetune
    work = cost_model(
        sizes,
        run.epochs,
        schedule.batch_size,
        parts=schedule.accumulate * clock.processes,
        packed=base.shape.packed,
        recompute=schedule.gradient_checkpointing,
    )
    flops = BoundaryFlops.of(base.shape, work, run.boundary)
    states = clock.boundary_states.get("training")
    if run.boundary and states is None:
        raise UserError(f"{name}: its measurements have no boundary states; run: dvc repro finetune")
    # Without a cache the frozen layers ran within the steps.
    total = flops.uncached(run.epochs) if states and states.origin == "off" else flops.cached(run.epochs)
    predicted = total / machine.flops_per_second
    measured = clock.seconds_training + (states.seconds_computing if states and run.boundary else 0.0)
    return Compared(
        name, run.boundary, significant(predicted), significant(measured), significant(predicted / measured)
    )
