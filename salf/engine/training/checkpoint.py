"""What a training run leaves; unfinished, it is kept on disk, so that a killed run resumes where it last stood."""

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import torch
from pydantic import BaseModel
from safetensors import safe_open
from torch import Tensor, nn

from salf.engine.models.shards import write_tensors
from salf.files import replacing_file, sealed_file
from salf.records import CurvePoint

_ADAM: Final = ("exp_avg", "exp_avg_sq", "step")


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


class Checkpoint:
    """Trained parameters, AdamW's moments and the record so far, in one safetensors file with a checksum.

    A run that goes on from it takes the same steps as one that was never stopped: the order of
    examples follows from the seed, the learning rate from the step, what dropout drops from both.
    """

    def __init__(
        self,
        path: Path | None,
        parameters: Sequence[nn.Parameter],
        optimizer: torch.optim.Optimizer | None = None,
        seconds: float = math.inf,
        *,
        writes: bool = True,
    ) -> None:
        """Keep ``parameters`` and ``optimizer`` at ``path``, when due every so many seconds; ``None``: keep nothing.

        Training that has ended needs no optimizer any more. ``writes``: of several processes, which all read it, one
        does.
        """
        self.path, self.parameters, self.optimizer, self.seconds = path, parameters, optimizer, seconds
        self.writes = writes
        self._saved = time.monotonic()

    def save_when_due(self, done: Training) -> None:
        """Save, if the last time is long enough ago: see :meth:`save`."""
        if time.monotonic() - self._saved >= self.seconds:
            self.save(done)
            self._saved = time.monotonic()

    def save(self, done: Training) -> None:
        """Save in place of an earlier checkpoint.

        Raises:
            OSError: the disk is full; an earlier checkpoint is kept.
        """
        if self.path is None or not self.writes:
            return
        tensors: dict[str, Tensor] = {}
        for number, parameter in enumerate(self.parameters):
            tensors[str(number)] = parameter
            if self.optimizer and (state := self.optimizer.state.get(parameter)):  # none: it has not trained (lately)
                tensors |= {f"{number}.{name}": state[name] for name in _ADAM}
        with replacing_file(self.path, sealed=True) as aside:
            write_tensors(aside, tensors, {"training": done.model_dump_json()})

    def resume(self, fresh: Training) -> Training:
        """What was done so far, with parameters and optimizer as they were.

        ``fresh`` where nothing was kept, or where what was kept is damaged: then nothing is lost but time.
        """
        kept = sealed_file(self.path) if self.path else None
        if kept is None:
            return fresh
        with safe_open(kept, framework="pt") as file:
            done = Training.model_validate_json(file.metadata()["training"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        with torch.no_grad():
            for number, parameter in enumerate(self.parameters):
                parameter.copy_(tensors[str(number)])
                if self.optimizer and f"{number}.{_ADAM[0]}" in tensors:
                    state = {name: tensors[f"{number}.{name}"].to(parameter.device) for name in _ADAM}
                    self.optimizer.state[parameter] = state
        return done
