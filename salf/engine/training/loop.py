"""The training loop: the suffix above the boundary, answer tokens only. There is no other loop."""

import math
import time
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path

import numpy as np

from salf.engine.answers import Reader
from salf.engine.batches import Batch, Example, training_batches
from salf.engine.progress import progress
from salf.engine.runtime import Runtime
from salf.engine.training.checkpoint import Checkpoint, Training
from salf.engine.training.costs import Costs
from salf.engine.training.processes import ALONE, Processes
from salf.engine.training.step import Stepper, cut
from salf.engine.training.trainable import Trainable
from salf.engine.training.validation import Split, validate
from salf.errors import UserError
from salf.records import CurvePoint
from salf.settings import Finetune


class DivergedError(UserError):
    """The loss of a training is no longer a number."""


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
    processes: Processes = ALONE,
    epochs: int | None = None,
) -> Training:
    """Train with AdamW at peak learning rate ``rate``; validate along the way, and at the end.

    Args:
        trainable: what trains.
        runtime: device and precision.
        training: what it learns from.
        validation: what it is held against.
        reader: scores the validation split.
        costs: counts operations, of all processes.
        params: the schedule; with 0 ``evaluations_per_epoch``, validation is read at the end alone.
        rate: peak learning rate.
        seed: of the order of examples.
        what: the run's name, for messages.
        checkpoint: where unfinished training is kept; a run that finds one there goes on from it.
        processes: those that train together; each calls this function with the same arguments.
        epochs: instead of those of ``params``, whose schedule and validations are stretched over them.

    Raises:
        DivergedError: the loss is no longer a number; says at which step and what to try.
        ProcessLostError: another process is gone.
    """
    done = Training(flops=costs.frozen(training.examples, training.start.shared) if costs.boundary else 0)
    per_epoch = math.ceil(len(training.examples) / params.batch_size)
    epochs = epochs or params.epochs
    total = per_epoch * epochs
    stepper = Stepper(trainable, runtime, training.start, params, seed, processes)
    points = params.evaluations_per_epoch * params.epochs
    marks = {round(total * n / points) for n in range(1, points + 1)}
    kept = Checkpoint(
        checkpoint, trainable.parameters, stepper.optimizer, 60 * params.checkpoint_minutes, writes=processes.main
    )
    done = kept.resume(done)
    processes.agree(done.steps, "steps taken before")
    if 0 < done.steps < total:
        print(f"{what}: goes on from step {done.steps} of {total}", flush=True)

    def check(loss: float, name: str) -> None:
        if not math.isfinite(loss):
            raise DivergedError(
                f"{what}: the {name} became {loss} at step {done.steps} of {total} with learning rate {rate:g}; "
                "lower finetune.learning_rate for this method, or set device.dtype to float32"
            )

    def add_point(epoch: float) -> None:
        loss, accuracy = validate(reader, validation, processes)
        if done.steps:  # the last update may be what breaks the weights
            check(loss, "validation loss")
        done.curve.append(
            CurvePoint(
                step=done.steps,
                epoch=epoch,
                flops=done.flops,
                train_loss=float(np.mean(done.losses)) if done.losses else None,
                validation_loss=loss,
                validation_accuracy=accuracy,
            )
        )
        done.losses.clear()

    if done.steps == 0 and points:
        add_point(0.0)
    with progress(what, total, "steps") as advance:
        if done.steps:
            advance(done.steps, "taken up where it was left")
        batches = epoch_batches(training.examples, training.start.shared, params, seed, processes.count)
        for parts in islice(chain.from_iterable(batches), done.steps, total):
            began = time.perf_counter()
            loss = stepper.take(parts, rate * rate_factor(done.steps, total, params), done.steps)
            done.step_seconds.append(time.perf_counter() - began)
            done.flops += costs.step(parts, training.start.shared, trainable.layers_at(done.steps))
            done.steps += 1
            check(loss, "loss")
            done.losses.append(loss)
            if done.steps in marks or done.steps == total:
                add_point(done.steps / per_epoch)
            advance(1, f"loss {loss:.3f}{_held(done)}")
            kept.save_when_due(done)
    return done


def _held(done: Training) -> str:
    """How the model stood on the validation split when it was last read, if it was."""
    if not done.curve:
        return ""
    point = done.curve[-1]
    score = point.validation_accuracy
    held = f"accuracy {score:.3f}" if score is not None else f"loss {point.validation_loss:.3f}"
    return f", validation {held}"


def rate_factor(step: int, total: int, params: Finetune) -> float:
    """Learning rate at a step as a share of its peak: linear warm-up, then constant or a half cosine to 0."""
    warmup = round(total * params.warmup_share)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if params.schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def epoch_batches(
    examples: Sequence[Example], shared: int, params: Finetune, seed: int, processes: int
) -> Iterator[Iterator[list[Batch]]]:
    """The parts of every batch of an epoch, epoch after epoch without end; take them in this order.

    Args:
        examples: the training split.
        shared: tokens of the beginning that all prompts share.
        params: batch size, and parts that a process cuts a batch in.
        seed: of the order.
        processes: how many train together.
    """
    rng = np.random.default_rng(seed)
    lengths = [len(example.inputs) - shared for example in examples]
    while True:
        indices = training_batches(lengths, params.batch_size, rng)
        yield (
            [Batch.of(examples, part, shared) for part in cut(index, processes * params.accumulate)]
            for index in indices
        )
