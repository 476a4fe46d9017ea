"""The result of a training run, its checkpoints, from which a killed run resumes, and copies of its weights."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from pydantic import BaseModel
from safetensors import safe_open
from torch import Tensor, nn

from salf.engine.models.shards import write_tensors
from salf.files import replacing_file, sealed_file
from salf.records import CurvePoint, KeptWeights
from salf.settings import AVERAGES, Keep


class Training(BaseModel):
    """The result of a training run."""

    curve: list[CurvePoint] = []  # one point per validation
    steps: int = 0  # optimizer steps taken
    flops: int = 0
    flops_before: int = 0  # of these, before the first step: the frozen layers' pass, and that over prompts
    flops_backward: int = 0  # of these, back-propagation's
    flops_validation: int = 0  # in addition: reading the validation split
    optimizer_bytes: int = 0  # of the optimizer's state after the last step
    observed: dict[str, float] = {}  # what a technique measured, by name
    step_seconds: list[float] = []  # wall-clock of each step with what prepares it, validation left out
    recent_losses: list[float] = []  # of the steps since the last validation
    recent_norms: list[float] = []  # of the gradients of these steps, before clipping; 0 where none was computed
    validation_losses: list[float] = []  # of every validation example at the last validation, nats per answer token
    validation_hits: list[bool] = []  # whether each was answered right then; empty where answers have no rule
    best: CurvePoint | None = None  # of the curve after step 0, by the rule of the learning rates
    kept: list[KeptWeights] = []  # what the run ended with, the model's weights first; empty before its end


@dataclass
class Checkpoint:
    """Trained parameters, the optimizer's state and the result so far, in one safetensors file with a checksum.

    A run that resumes from it takes the same steps as one that was never stopped: the order of examples follows from
    the seed, the learning rate from the step, what dropout drops from both.
    """

    path: Path | None  # ``None``: nothing is kept
    parameters: Sequence[nn.Parameter]
    optimizer: torch.optim.Optimizer
    copies: dict[str, list[Tensor]] = field(default_factory=dict)  # of the parameters, by name
    held: dict[str, Tensor] = field(default_factory=dict)  # what form and objective hold in addition, by name
    seconds: float = math.inf  # between saves
    writes: bool = True  # of several processes, which all read the file, one writes it
    saved: float = field(default_factory=time.monotonic)

    def save_when_due(self, done: Training) -> None:
        """Save, if the last time is long enough ago."""
        if time.monotonic() - self.saved >= self.seconds:
            self.save(done)
            self.saved = time.monotonic()

    def save(self, done: Training, *, resumes: bool = True) -> None:
        """Save in place of an earlier checkpoint, which is kept if the disk is full (``OSError``).

        ``resumes``: training goes on from here, and needs the optimizer's state and the copies.
        """
        if self.path is None or not self.writes:
            return
        tensors = {f"held.{name}": tensor for name, tensor in self.held.items()}
        for number, parameter in enumerate(self.parameters):
            tensors[str(number)] = parameter
            # Without state: a parameter that has not trained (lately).
            state = self.optimizer.state.get(parameter, {}) if resumes else {}
            tensors |= {f"{number}.{name}": value for name, value in state.items()}
        for name, copy in self.copies.items() if resumes else ():
            tensors |= {f"{number}.copy.{name}": value for number, value in enumerate(copy)}
        with replacing_file(self.path, sealed=True) as aside:
            write_tensors(aside, tensors, {"training": done.model_dump_json()})

    def resume(self, fresh: Training) -> Training:
        """Restore all of them, and return the results so far; ``fresh`` without a whole checkpoint."""
        kept = sealed_file(self.path) if self.path else None
        if kept is None:
            return fresh
        with safe_open(kept, framework="pt") as file:
            done = Training.model_validate_json(file.metadata()["training"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        with torch.no_grad():
            for name, value in tensors.items():
                number, _, state = name.partition(".")
                if number == "held":
                    self.held[state].copy_(value)
                    continue
                parameter = self.parameters[int(number)]
                if not state:
                    parameter.copy_(value)
                elif state.startswith("copy."):
                    copy = self.copies.setdefault(state.removeprefix("copy."), [parameter] * len(self.parameters))
                    copy[int(number)] = value.to(parameter.device)
                else:
                    self.optimizer.state[parameter][state] = value.to(parameter.device)
        return done


class Copies:
    """Weights that a run may end with (``finetune.keep``): the best look's, and averages over the last third of steps.

    ``mean`` weighs all steps alike. ``ema`` of n steps is an exponential average with the factor 2/(n+1) for the newest
    step, whose weights' centre is that of the mean; weights sum to 1 from the first step on (pandas calls this
    ``ewm(span=n, adjust=True)``). Averages are float32 and take no forward pass.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], keep: Sequence[Keep], steps: int) -> None:
        self.parameters, self.keep = parameters, keep
        self.window = max(1, round(steps / 3))  # steps that are averaged
        self.before = steps - self.window
        self.held: dict[str, list[Tensor]] = {}  # float32 for averages, otherwise as trained

    def hold(self, name: Keep) -> None:
        """Copy the weights as they are now."""
        self.held[name] = [parameter.detach().clone() for parameter in self.parameters]

    @torch.no_grad()
    def average(self, step: int) -> None:
        """Take the weights after ``step``, from 1, into the averages."""
        number = step - self.before
        if number < 1:
            return
        newest = 2 / (self.window + 1)
        shares = {"mean": 1 / number, "ema": newest / (1 - (1 - newest) ** number)}
        for name in [name for name in self.keep if name in AVERAGES]:
            held = self.held.setdefault(name, [torch.zeros_like(p, dtype=torch.float32) for p in self.parameters])
            for average, parameter in zip(held, self.parameters, strict=True):
                average.lerp_(parameter.float(), shares[name])

    @torch.no_grad()
    def put(self, name: Keep) -> None:
        """Put what is held under ``name`` in the place of the weights."""
        for parameter, held in zip(self.parameters, self.held[name], strict=True):
            parameter.copy_(held)
