"""The training loop: the suffix above the boundary, answer tokens only. There is no other loop."""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import nn

from stages.common.answers import Reader, Start, training_logits
from stages.common.batches import Batch, Example, training_batches
from stages.common.command import UserError
from stages.common.cost import ModelShape, Technique, forward_flops, training_flops
from stages.common.params import Finetune
from stages.common.progress import progress
from stages.common.runtime import Runtime
from stages.finetune.checkpoint import Checkpoint, Training
from stages.finetune.methods import Trainable


@dataclass(frozen=True)
class Split:
    """Examples, and where their pass begins."""

    examples: Sequence[Example]
    start: Start

    @property
    def lengths(self) -> list[int]:
        """Tokens behind the shared beginning."""
        return [len(example.inputs) - self.start.shared for example in self.examples]


@dataclass(frozen=True)
class Costs:
    """Counts the operations of one pass over a batch.

    The frozen layers' pass counts as if this run had computed it, whoever did: what a method costs does
    not depend on which run came first.

    Attributes:
        frozen_anew: the frozen layers run for every batch instead of once for all epochs.
    """

    shape: ModelShape
    boundary: int
    technique: Technique
    rank: int
    frozen_anew: bool = False

    def step(self, batch: Batch, shared: int) -> int:
        """One optimizer step above the boundary; the shared beginning goes through once."""
        queries, attended = _sums(batch, shared)
        positions, seen = len(batch.targets), batch.seen(shared)
        suffix = training_flops(
            self.shape, self.boundary, queries, attended, positions, seen, method=self.technique, rank=self.rank
        )
        if not self.frozen_anew:
            return suffix
        return suffix + forward_flops(self.shape, self.boundary, batch.ids.numel(), batch.attended(shared))

    def frozen(self, examples: Sequence[Example], shared: int) -> int:
        """The frozen layers before the first step: over all examples, or over the shared beginning alone."""
        if self.frozen_anew:
            return forward_flops(self.shape, self.boundary, shared, shared * (shared + 1) // 2)
        queries, attended = _sums(Batch.of(examples, range(len(examples)), shared), shared)
        return forward_flops(self.shape, self.boundary, queries, attended)


def _sums(batch: Batch, shared: int) -> tuple[int, int]:
    return batch.ids.numel() + shared, batch.attended(shared) + shared * (shared + 1) // 2


def train(
    trainable: Trainable,
    runtime: Runtime,
    training: Split,
    validation: Split,
    reader: Reader,
    costs: Costs,
    params: Finetune,
    rate: float,
    seed: int,
    what: str,
    checkpoint: Path | None = None,
) -> Training:
    """Train with AdamW at peak learning rate ``rate``; validate along the way.

    Args:
        trainable: what trains.
        runtime: device and precision.
        training: what it learns from.
        validation: what it is held against.
        reader: scores the validation split.
        costs: counts operations.
        params: the schedule.
        rate: peak learning rate.
        seed: of the order of examples.
        what: the run's name, for messages.
        checkpoint: where unfinished training is kept; a run that finds one there goes on from it.

    Raises:
        UserError: the loss is no longer a number; says at which step and what to try.
    """
    done = Training(flops=costs.frozen(training.examples, training.start.shared) if costs.boundary else 0)
    per_epoch = math.ceil(len(training.examples) / params.batch_size)
    total = per_epoch * params.epochs
    optimizer = _optimizer(trainable.parameters, rate, params.weight_decay)
    marks = {round(per_epoch * n / params.evaluations_per_epoch) for n in range(1, total + 1)}
    kept = Checkpoint(checkpoint, trainable.parameters, optimizer, 60 * params.checkpoint_minutes)
    done = kept.resume(done)

    def validate(epoch: float) -> None:
        answers = reader.read(validation.examples, validation.start.shared, validation.start)
        hits = [answer.predicted == example.label for answer, example in zip(answers, validation.examples, strict=True)]
        done.curve.append(
            {
                "step": done.steps,
                "epoch": epoch,
                "flops": done.flops,
                "train_loss": float(np.mean(done.losses)) if done.losses else None,
                "validation_loss": float(np.mean([answer.loss for answer in answers])),
                "validation_accuracy": float(np.mean(hits)) if reader.tree else None,
            }
        )
        done.losses.clear()

    if done.steps == 0:
        validate(0.0)
    with progress(what, total, "steps") as advance:
        if done.steps:
            advance(done.steps, "taken up where it was left")
        for batch in islice(_epochs(training, params, seed), done.steps, None):
            began = time.perf_counter()
            for group in optimizer.param_groups:
                group["lr"] = rate * rate_factor(done.steps, total, params)
            loss = _step(trainable, runtime, training.start, batch.to(runtime.device), optimizer, params.clip_norm)
            done.step_seconds.append(time.perf_counter() - began)
            done.steps += 1
            done.flops += costs.step(batch, training.start.shared)
            if not math.isfinite(loss):
                raise UserError(
                    f"{what}: the loss became {loss} at step {done.steps} of {total} with learning rate {rate:g}; "
                    "lower finetune.learning_rate for this method, or set device.dtype to float32"
                )
            done.losses.append(loss)
            if done.steps in marks or done.steps == total:
                validate(done.steps / per_epoch)
            point = done.curve[-1]
            score = point["validation_accuracy"]
            held = f"accuracy {score:.3f}" if score is not None else f"loss {point['validation_loss']:.3f}"
            advance(1, f"loss {loss:.3f}, validation {held}")
            kept.save_when_due(done)
    return done


def rate_factor(step: int, total: int, params: Finetune) -> float:
    """Learning rate at a step as a share of its peak: linear warm-up, then constant or a half cosine to 0."""
    warmup = round(total * params.warmup_share)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if params.schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def _epochs(split: Split, params: Finetune, seed: int) -> Iterator[Batch]:
    rng = np.random.default_rng(seed)
    for _ in range(params.epochs):
        for index in training_batches(split.lengths, params.batch_size, rng):
            yield Batch.of(split.examples, index, split.start.shared)


def _optimizer(parameters: Sequence[nn.Parameter], rate: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW over the trained parameters alone; decay for matrices, none for norms and biases."""
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=rate, fused=True)


def _step(
    trainable: Trainable,
    runtime: Runtime,
    start: Start,
    batch: Batch,
    optimizer: torch.optim.Optimizer,
    clip_norm: float,
) -> float:
    with runtime.autocast():
        logits = training_logits(trainable.model, start, batch)
    loss = nn.functional.cross_entropy(logits.float(), batch.targets)
    loss.backward()
    nn.utils.clip_grad_norm_(trainable.parameters, clip_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return float(loss.detach())
