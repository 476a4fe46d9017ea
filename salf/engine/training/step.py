"""A training job and its optimizer steps.

A batch runs in parts, over processes and one after the other, as if it were in one piece. The loss is the mean over
the answer tokens of the whole batch: every part divides by the tokens of *all* parts. So nothing depends on how the
batch was cut but the order of the sums (float32: to about 1e-6 of the gradients' size).

A step asks the words in the method's slots (:mod:`salf.methods`). The plain ones are below. What a word has to keep
between steps, its implementation holds.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from salf.cost import Flops
from salf.engine.answers import OfRows, start_of, summed_over_rows
from salf.engine.batches import Batch, Split
from salf.engine.rules import Rule
from salf.engine.runtime import Runtime
from salf.engine.training.checkpoint import Training
from salf.engine.training.costs import Costs
from salf.engine.training.forms import Trainable
from salf.engine.training.processes import ALONE, Processes
from salf.settings import Finetune

# A part's sum of something over the logits of its M answer positions: no more of them exist at a time than memory
# holds, however many positions are learned.
Forward = Callable[[Batch, OfRows], Tensor]
Loss = Callable[[Batch], Tensor]  # a part's share of the batch's loss
Gradient = Callable[[Loss, Sequence[Batch]], Tensor]  # adds to ``.grad``; returns the sum of a step's losses


def cross_entropy(forward: Forward, part: Batch) -> Tensor:
    """Negative log probability of the answer tokens, summed over a part, in nats."""

    def of_rows(logits: Tensor, rows: slice) -> Tensor:
        return nn.functional.cross_entropy(logits.float(), part.targets[rows], reduction="sum")

    return forward(part, of_rows)


def back_propagation(_job: "Job") -> Gradient:
    """Gradient: back-propagation."""
    return backward


def backward(loss: Loss, parts: Sequence[Batch]) -> Tensor:
    """Back-propagate every part; return the sum of their losses."""
    total = torch.zeros(())
    for part in parts:
        value = loss(part)
        value.backward()
        total = total + value.detach()
    return total


def adamw(job: "Job") -> torch.optim.Optimizer:
    """Update: AdamW, whose ``step`` is given a function that computes loss and gradients, and calls it once."""
    return torch.optim.AdamW(decayed(job), fused=True)


def decayed(job: "Job") -> list[dict[str, Any]]:
    """An optimizer's groups of parameters: matrices decay, norms and biases do not.

    At every step each group holds the learning rate as ``lr``, and the step's number, from 0, as ``number``.
    """
    parameters = job.trainable.parameters
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": job.settings.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


@dataclass(frozen=True, kw_only=True)
class Job:
    """A training run."""

    name: str  # for messages
    trainable: Trainable  # what trains, and how
    runtime: Runtime
    training: Split  # the examples to learn from
    validation: Split  # the examples to judge by
    test: Split | None = None  # scored at the end, for the record; no choice depends on it
    taught: Tensor | None = None  # a teacher's logits at all training answers, [answer tokens, outputs]
    rule: Rule  # how validation answers are scored; ``None``: by their losses alone
    costs: Costs  # counts FLOPs, of all processes
    settings: Finetune  # the schedule; with 0 ``evaluations_per_epoch``, validation is read at the end alone
    rate: float  # peak learning rate
    seed: int  # of the order of examples, and of dropout
    epochs: int | None = None  # instead of those of ``settings``, whose schedule is stretched over them
    until: int | None = None  # the step after which to validate, write a checkpoint and stop; ``None``: the last one
    checkpoint: Path | None = None  # where unfinished training is kept; a run that finds one there resumes it
    processes: Processes = ALONE  # those that train together; each has the same job

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of an epoch."""
        return self.settings.steps_per_epoch(len(self.training))

    @property
    def steps(self) -> int:
        """Optimizer steps that the schedule spans."""
        return self.steps_per_epoch * (self.epochs or self.settings.epochs)


class Passes:
    """Passes of a job's model over parts of batches: a ``Forward``."""

    def __init__(self, job: Job) -> None:
        self.job, self.start = job, start_of(job.training, job.trainable.model)
        self._positions = job.trainable.method.word("positions").implementation()

    def states(self, part: Batch) -> Tensor:
        """The last space at a part's M answer positions, [M, hidden]."""
        recompute, model = self.job.settings.gradient_checkpointing, self.job.trainable.model
        with self.job.runtime.autocast():
            return self._positions(model, self.start, part, recompute=recompute)

    def summed(self, of: OfRows, *states: Tensor) -> Tensor:
        """The sum of something over the logits of one pass's states, or of several passes'."""
        with self.job.runtime.autocast():
            return summed_over_rows(self.job.trainable.model, of, *states)

    def __call__(self, part: Batch, of: OfRows) -> Tensor:
        """See :data:`Forward`."""
        return self.summed(of, self.states(part))


class CrossEntropy:
    """Objective: cross-entropy. Other objectives are subclasses.

    An objective is made once for a job, before training resumes. What it has to keep from step to step, it holds
    in ``held``, which checkpoints save; resuming fills these tensors in place.
    """

    look_flops: int = 0  # of what :meth:`look` computes, and of what it compares with

    def __init__(self, passes: Passes) -> None:
        self.passes, self.job = passes, passes.job
        self.held: dict[str, Tensor] = {}

    def begin(self, parts: Sequence[Batch], _number: int) -> Sequence[Batch]:
        """Take the parts of a step, all processes', and its number from 0; return those to learn from."""
        return parts

    def __call__(self, part: Batch) -> Tensor:
        """What is minimised, summed over the answer tokens of a part, in nats."""
        return cross_entropy(self.passes, part)

    def step_flops(self, parts: Sequence[Batch], number: int) -> Flops:
        """The FLOPs of a step that was given these parts."""
        return self.job.costs.step(parts, number, self.job.steps)

    def end(self, loss: float) -> float:
        """End a step; return the batch's cross-entropy, given what was minimised, nats per answer token."""
        return loss

    def look(self) -> dict[str, float]:
        """Further fields of a point of the curve: see :class:`salf.records.CurvePoint`."""
        return {}


class Stepper:
    """Takes the optimizer steps of a job, over the trained parameters alone."""

    def __init__(self, job: Job) -> None:
        self.job, self.passes = job, Passes(job)
        word = job.trainable.method.word
        objective, gradient, update = (word(slot).implementation(slot) for slot in ("objective", "gradient", "update"))
        self._gradient: Gradient = gradient(job)
        self.objective: CrossEntropy = objective(self.passes)
        self.optimizer: torch.optim.Optimizer = update(job)
        self.norm = 0.0  # of the last step's gradient, before clipping
        self._interval = -1  # of the layers drawn
        self._gradients = self._joined_gradients()

    @property
    def optimizer_bytes(self) -> int:
        """Bytes of the optimizer's state."""
        states = self.optimizer.state.values()
        return sum(value.nbytes for state in states for value in state.values() if isinstance(value, Tensor))

    def begin(self, done: Training) -> None:
        """Let the form look at the training data before the first step: :meth:`Form.begin`."""
        torch.manual_seed(seed_of(self.job.seed, 0, self.job.processes.rank))
        self.job.trainable.form.begin(self.job, self.objective, done)

    def take(self, parts: Sequence[Batch], rate: float, number: int) -> float:
        """Take step ``number``, from 0, and return the batch's cross-entropy, nats per answer token.

        Seed and number decide what dropout drops: a resumed run drops the same.
        """
        job = self.job
        self._draw(number)
        parts = self.objective.begin(parts, number)
        tokens = sum(len(part.targets) for part in parts)
        mine = [part.to(job.runtime.device) for part in job.processes.share(parts)]

        def loss(part: Batch) -> Tensor:
            return self.objective(part) / tokens

        def closure() -> float:
            torch.manual_seed(seed_of(job.seed, number, job.processes.rank))
            total: Tensor = self._gradient(loss, mine).to(job.runtime.device)
            if self._gradients is not None:
                job.processes.add_up(self._gradients)
            self.norm = float(nn.utils.clip_grad_norm_(job.trainable.parameters, job.settings.clip_norm))
            return float(job.processes.add_up(total))

        for group in self.optimizer.param_groups:
            group |= {"lr": rate, "number": number}
        batch_loss = self.optimizer.step(closure)
        self.optimizer.zero_grad(set_to_none=self._gradients is None)
        return self.objective.end(batch_loss)

    def _draw(self, number: int) -> None:
        """Let the layers of this step's interval train; one that begins, begins without AdamW's moments for them."""
        trainable, draws = self.job.trainable, self.job.trainable.scope.draws
        if draws is None or draws.interval(number) == self._interval:
            return
        self._interval = draws.interval(number)
        if number % draws.steps == 0:
            for parameter in trainable.model.layers.parameters():
                self.optimizer.state.pop(parameter, None)
        trainable.let_train(draws.at(number))
        self._gradients = self._joined_gradients()

    def _joined_gradients(self) -> Tensor | None:
        """The gradients of what trains now in one vector, where several processes add them up."""
        if self.job.processes.count == 1 or not self.job.costs.technique.inputs:
            return None
        parameters = [parameter for parameter in self.job.trainable.parameters if parameter.requires_grad]
        sizes = [parameter.numel() for parameter in parameters]
        whole = torch.zeros(sum(sizes), device=parameters[0].device, dtype=parameters[0].dtype)
        for parameter, part in zip(parameters, whole.split(sizes), strict=True):
            parameter.grad = part.view_as(parameter)
        return whole


def seed_of(*numbers: int) -> int:
    """A seed for torch that all of these numbers decide."""
    return int(np.random.SeedSequence([abs(n) for n in numbers]).generate_state(1, np.uint64)[0] >> 1)
