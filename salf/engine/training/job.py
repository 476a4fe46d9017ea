"""What a training run is given, and what it leaves."""

from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel

from salf.engine.batches import Split
from salf.engine.rules import Rule
from salf.engine.runtime import Runtime
from salf.engine.training.costs import Costs
from salf.engine.training.forms import Trainable
from salf.engine.training.processes import ALONE, Processes
from salf.records import CurvePoint
from salf.settings import Finetune


@dataclass(frozen=True, kw_only=True)
class Job:
    """A training run.

    Attributes:
        name: for messages.
        trainable: what trains, and how.
        training: the examples to learn from.
        validation: the examples to judge by.
        rule: how validation answers are scored; ``None``: by their losses alone.
        costs: counts FLOPs, of all processes.
        settings: the schedule; with 0 ``evaluations_per_epoch``, validation is read at the end alone.
        rate: peak learning rate.
        seed: of the order of examples, and of dropout.
        epochs: instead of those of ``settings``, whose schedule and validations are stretched over them.
        checkpoint: where unfinished training is kept; a run that finds one there resumes it.
        processes: those that train together; each has the same job.
    """

    name: str
    trainable: Trainable
    runtime: Runtime
    training: Split
    validation: Split
    rule: Rule
    costs: Costs
    settings: Finetune
    rate: float
    seed: int
    epochs: int | None = None
    checkpoint: Path | None = None
    processes: Processes = ALONE


class Training(BaseModel):
    """What a training run left.

    Attributes:
        curve: one point per validation.
        steps: optimizer steps taken.
        step_seconds: wall-clock of each step with what prepares it, validation left out.
        recent_losses: of the steps since the last validation.
        validation_losses: of every validation example at the last validation, nats per answer token.
    """

    curve: list[CurvePoint] = []
    steps: int = 0
    flops: int = 0
    step_seconds: list[float] = []
    recent_losses: list[float] = []
    validation_losses: list[float] = []
