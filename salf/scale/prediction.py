"""A configuration's cost at every boundary: operations, memory and time."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from salf.files import significant
from salf.plan import CostModel
from salf.scale.machine import Machine
from salf.scale.memory import Memory, Precision, memory
from salf.scale.published import Configuration
from salf.workload import COUNTED, BoundaryFlops, beginning


@dataclass(frozen=True)
class Boundary:
    """What training above one boundary takes.

    Attributes:
        flops: the whole fine-tune, the frozen layers' output cached.
        flops_share: of the same at boundary 0.
        seconds: on one device.
        cache_bytes: the boundary's states of the whole training split, in memory or on disk.
    """

    boundary: int
    trained_parameters: int
    flops: int
    flops_share: float
    seconds: float
    memory: Memory
    cache_bytes: int


@dataclass(frozen=True)
class Prediction:
    """A configuration at every boundary 0..L, and what was taken for granted."""

    model: Configuration
    work: CostModel
    machine: Machine
    assumptions: list[str]
    boundaries: Sequence[Boundary]

    def as_json(self) -> dict[str, Any]:
        """The same as JSON values."""
        return {
            "model": self.model.name,
            "origin": self.model.origin,
            "parameters": self.model.shape.parameters,
            "layers": self.model.shape.layers,
            "machine": asdict(self.machine),
            "workload": self.work.model_dump(mode="json"),
            "assumptions": self.assumptions,
            "boundaries": [asdict(boundary) for boundary in self.boundaries],
        }


def predict(model: Configuration, work: CostModel, machine: Machine, precision: Precision) -> Prediction:
    """Count every boundary.

    Args:
        model: the sizes.
        work: the sums over one epoch, and the epochs.
        machine: where it would run.
        precision: bytes of the values.
    """
    shape, whole = model.shape, BoundaryFlops.of(model.shape, work, 0).cached(work.epochs)

    def at(boundary: int) -> Boundary:
        flops = BoundaryFlops.of(shape, work, boundary).cached(work.epochs)
        return Boundary(
            boundary=boundary,
            trained_parameters=shape.trained_parameters(boundary),
            flops=flops,
            flops_share=significant(flops / whole),
            seconds=significant(flops / machine.flops_per_second),
            memory=memory(shape, work, boundary, precision),
            cache_bytes=work.frozen_queries * shape.hidden * precision.stream if boundary else 0,
        )

    assumptions = [
        f"{work.rows:,} examples, {work.epochs} epochs, the frozen layers' output computed once and kept",
        beginning(work.batch_rows, work.shared, work.parts, shape.packed),
        *COUNTED,
        f"{precision.words}; AdamW; attention by a kernel that keeps no matrix; no gradient checkpointing",
        "the frozen layers' weights stay in memory",
        f"{machine.name} computes at {machine.words}; the optimizer's update and the data's way are not timed",
        "several devices: weights, gradients, moments and activations divide evenly (FSDP), communication is free",
    ]
    return Prediction(model, work, machine, assumptions, [at(boundary) for boundary in range(shape.layers + 1)])
