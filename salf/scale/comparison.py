"""Predictions held to measurements: what this chain's fine-tunes should have taken, and what they took."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from salf.errors import UserError
from salf.files import read_json, significant
from salf.methods import FIRST_N, LISA
from salf.records import BaseFacts, PreparedSizes, read_base, read_sizes
from salf.scale.machine import Machine
from salf.workload import BoundaryFlops, cost_model


@dataclass(frozen=True)
class Compared:
    """One fine-tune that was made here.

    Attributes:
        run: as in ``data/models/<run>``.
        boundary: layers 1..boundary were frozen.
        predicted_seconds: operations by the base's configuration, the prepared data's size and the run's epochs
            and batch size, over the machine's rate.
        measured_seconds: the training steps, the optimizer's updates among them, and the frozen layers' pass over
            the training split, once, even where an earlier run had left its states. Not held: opening the model,
            the validation split (its states and every reading of it), other rates of a grid, saving.
        ratio: predicted over measured.
    """

    run: str
    boundary: int
    predicted_seconds: float
    measured_seconds: float
    ratio: float


def compare(machine: Machine, reference: str, chain: Path) -> list[Compared]:
    """Every fine-tune of the chain's base and data that trained weights above one boundary, on the same machine.

    Adapters, ``first-n`` and ``lisa`` are left out, because the prediction is not about them, and so are fine-tunes
    without a record of what was measured.

    Args:
        machine: whose rate is taken.
        reference: the run that the rate was measured by.
        chain: the project's folder; nothing is compared where it holds no base or no prepared data.

    Raises:
        UserError: an artifact is damaged, or a record lacks an entry.
    """
    folder, prepared = chain / "data/base", chain / "data/prepared"
    if not (folder / "base.json").is_file() or not (prepared / "meta.json").is_file():
        return []
    base, sizes = read_base(folder), read_sizes(prepared)
    data = read_json(prepared / "meta.json")["splits"]["train"].get("sha256")
    where = read_json(chain / f"reports/runs/{reference}.json")
    compared = []
    for path in sorted((chain / "data/models").glob("*/run.json")):
        name = path.parent.name
        measured = chain / f"reports/runs/{name}.json"
        if not measured.is_file():
            continue
        run, clock = read_json(path), read_json(measured)
        try:
            ours = run["base_sha256"] == base.identity.weights_sha256 and run["data_sha256"]["train"] == data
            if ours and _trains_above_one_boundary(run) and _machine_of(clock) == _machine_of(where):
                compared.append(_compared(name, run, clock, base, sizes, machine))
        except (KeyError, TypeError, ZeroDivisionError) as error:
            raise UserError(f"{path}: no fine-tune's record ({error!r}); run: dvc repro finetune") from None
    return compared


def _trains_above_one_boundary(run: Mapping[str, Any]) -> bool:
    return not run["lora"] and run["selector"] not in (FIRST_N, LISA)


def _machine_of(clock: Mapping[str, Any]) -> list[Any]:
    """What decides the rate."""
    return [clock["processes"], *(clock["machine"][fact] for fact in ("device", "dtype", "cores", "threads"))]


def _compared(
    name: str, run: Mapping[str, Any], clock: Mapping[str, Any], base: BaseFacts, sizes: PreparedSizes, machine: Machine
) -> Compared:
    boundary, epochs = run["boundary"], run["epochs"]
    schedule = run["params"]["finetune"]
    parts = schedule["accumulate"] * clock["processes"]
    work = cost_model(
        sizes,
        epochs,
        schedule["batch_size"],
        parts=parts,
        packed=base.shape.packed,
        recompute=schedule["gradient_checkpointing"],
    )
    flops = BoundaryFlops.of(base.shape, work, boundary)
    states = clock["boundary_states"]["training"] if boundary else {"origin": "computed", "seconds_computing": 0.0}
    # Without a cache the frozen layers ran within the steps.
    total = flops.uncached(epochs) if states["origin"] == "off" else flops.cached(epochs)
    predicted = total / machine.flops_per_second
    measured = clock["seconds_training"] + states["seconds_computing"]
    return Compared(name, boundary, significant(predicted), significant(measured), significant(predicted / measured))
