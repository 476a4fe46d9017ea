"""The training loop: the suffix above the boundary, answer tokens only. There is no other loop."""

import math
import time
from itertools import chain, islice
from typing import NamedTuple

import numpy as np
import torch

from salf.engine.answers import Reader
from salf.engine.batches import Split
from salf.engine.models.causal_model import in_eval_mode
from salf.engine.progress import progress
from salf.engine.training.checkpoint import Checkpoint, Copies, Training
from salf.engine.training.costs import epoch_batches
from salf.engine.training.processes import Processes
from salf.engine.training.step import Job, Stepper
from salf.errors import UserError
from salf.rate_choice import Tried, choose
from salf.records import CurvePoint, KeptWeights
from salf.settings import AVERAGES, Finetune, Keep

READ_TOKENS = 1024  # of a pass that reads the validation split


class DivergedError(UserError):
    """The loss of a training is no longer a number; ``training`` is what it had done."""

    def __init__(self, message: str, training: Training) -> None:
        super().__init__(message)
        self.training = training


def train(job: Job) -> Training:
    """Train, validate along the way, and at the end, or where the job says to stop for now.

    A training that has ended leaves the weights that ``finetune.keep`` names first.

    Raises:
        UserError: the method's weights cannot be kept as asked.
        DivergedError: the loss is no longer a number; says at which step and what to try.
        ProcessLostError: another process is gone.
    """
    trainable = job.trainable
    with job.runtime.rounded(trainable.model.layers[trainable.scope.boundary :], trainable.parameters):
        return _Run(job).to_the_end()


class _Run:
    """A job at work."""

    def __init__(self, job: Job) -> None:
        self.clock = time.perf_counter()  # when the step at hand began
        self.job, self.settings = job, job.settings
        self.stepper = Stepper(job)
        self.reader = Reader(job.trainable.model, job.runtime, job.rule, READ_TOKENS)
        self.total = job.steps
        self.reading = job.costs.reading(job.validation)  # FLOPs of reading the right answers
        self.copies = Copies(job.trainable.parameters, self.settings.keep, self.total)
        self.kept = Checkpoint(
            job.checkpoint,
            job.trainable.parameters,
            self.stepper.optimizer,
            self.copies.held,
            {**job.trainable.form.decided(), **self.stepper.objective.held},
            60 * self.settings.checkpoint_minutes,
            writes=job.processes.main,
        )
        before = job.costs.before(job.training)
        read = job.costs.frozen(job.validation) if self.settings.decided_by_looks else 0
        read += self.stepper.objective.look_flops  # of the base's outputs
        self.done = self.kept.resume(Training(flops=before, flops_before=before, flops_validation=read))
        if not self.done.steps:
            self.stepper.begin(self.done)
        self.end = self.total if job.until is None else min(job.until, self.total)
        points = self.settings.evaluations_per_epoch * self.settings.epochs
        self.marks = {round(self.total * n / points) for n in range(points + 1)} if points else set()

    def to_the_end(self) -> Training:
        """Take all steps that have not been taken, or as many as it takes to run out of patience."""
        job, done, begun = self.job, self.done, self.done.steps
        job.processes.agree(done.steps, "steps taken before")
        if done.kept:
            return done
        if 0 < done.steps < self.total:
            print(f"{job.name}: resumes at step {done.steps} of {self.total}", flush=True)
        if done.steps == 0 and 0 in self.marks:
            self._validate()
        with progress(job.name, self.total, "steps") as advance:
            if done.steps:
                advance(done.steps, "resumed")
            epochs = epoch_batches(job.training, self.settings, job.seed, job.processes.count)
            for parts in islice(chain.from_iterable(epochs), done.steps, self.end):
                if self._out_of_patience():
                    break
                rate = job.rate * rate_factor(done.steps, self.total, self.settings, job.steps_per_epoch)
                loss = self.stepper.take(parts, rate, done.steps)
                flops = self.stepper.objective.step_flops(parts, done.steps)
                done.flops, done.flops_backward = done.flops + flops.total, done.flops_backward + flops.backward
                done.steps += 1
                done.optimizer_bytes = self.stepper.optimizer_bytes
                self.copies.average(done.steps)
                done.step_seconds.append(time.perf_counter() - self.clock)
                self._check(loss, "loss")
                done.recent_losses.append(loss)
                done.recent_norms.append(self.stepper.norm)
                if done.steps in self.marks or done.steps == self.end:
                    self._validate()
                advance(1, f"loss {loss:.3f}{self._validated()}")
                self.kept.save_when_due(done)
                self.clock = time.perf_counter()
        if done.steps == self.total or self._out_of_patience():
            self._end()
        if job.until is not None and done.steps > begun:
            self.kept.save(done, resumes=not done.kept)
        return done

    def _end(self) -> None:
        """Score all weights that are asked for; the model's come last and stay in place."""
        done, keep = self.done, self.settings.keep
        if done.best and done.steps < self.total:
            early = f"ends at step {done.steps} of {self.total}; the best look was at step {done.best.step}"
            print(f"{self.job.name}: {early}", flush=True)
        if len(keep) > 1:
            self.copies.hold("last")
        for name in reversed(keep):
            if name in self.copies.held:
                self.copies.put(name)
            done.kept.insert(0, self._results(name))

    def _results(self, name: Keep) -> KeptWeights:
        """Results of the weights in place."""
        done, job = self.done, self.job
        point = (name == "best" and done.best) or done.curve[-1]
        results = {"validation_loss": point.validation_loss, "validation_accuracy": point.validation_accuracy}
        if name in AVERAGES:
            read = self._read()
            self._check(read.loss, f"validation loss of the weights' {name}")
            results = {"validation_loss": read.loss, "validation_accuracy": read.accuracy}
        if job.test:
            _, _, test_loss, test_accuracy = validate(self.reader, job.test, job.processes)
            results |= {"test_loss": test_loss, "test_accuracy": test_accuracy}
        return KeptWeights(keep=name, step=point.step, **results)

    def _out_of_patience(self) -> bool:
        """Whether as many looks as are allowed, one after another, were no better than the best one."""
        best, patience = self.done.best, self.settings.patience
        since = sum(point.step > best.step for point in self.done.curve) if best else 0
        return patience is not None and since >= patience

    def _check(self, loss: float, name: str) -> None:
        if not math.isfinite(loss):
            raise DivergedError(
                f"{self.job.name}: the {name} became {loss} at step {self.done.steps} of {self.total} with learning "
                f"rate {self.job.rate:g}; lower finetune.learning_rate (in a race: race.arms) for this method, or set "
                "device.dtype to float32",
                self.done,
            )

    def _validate(self) -> None:
        """Add a point to the curve, and compare it with the best one before."""
        done = self.done
        began, read = time.perf_counter(), self._read()
        if done.steps:  # the last update may be what breaks the weights
            self._check(read.loss, "validation loss")
        done.validation_losses, done.validation_hits = read.losses, read.hits
        train_loss = float(np.mean(done.recent_losses)) if done.recent_losses else None
        now = CurvePoint(
            step=done.steps,
            epoch=done.steps / self.job.steps_per_epoch,
            flops=done.flops,
            train_loss=train_loss,
            validation_loss=read.loss,
            validation_accuracy=read.accuracy,
            gradient_norm=float(np.mean(done.recent_norms)) if any(done.recent_norms) else None,
            gap=None if train_loss is None else read.loss - train_loss,
            **self.stepper.objective.look(),
        )
        done.curve.append(now)
        done.flops_validation += self.stepper.objective.look_flops
        done.recent_losses.clear()
        done.recent_norms.clear()
        tried = [Tried(self.job.rate, one.validation_loss, one.validation_accuracy) for one in (done.best or now, now)]
        if done.steps and (done.best is None or choose(tried, len(self.job.validation)) is tried[1]):
            done.best = now
            if "best" in self.settings.keep:
                self.copies.hold("best")
        self.clock += time.perf_counter() - began

    def _read(self) -> "Validated":
        """Read the validation split, and count what that took."""
        job = self.job
        read = validate(self.reader, job.validation, job.processes)
        compared = job.processes.total(sum(map(job.costs.comparing, self.reader.asked)))
        self.done.flops_validation += self.reading + compared
        return read

    def _validated(self) -> str:
        """The last validation, if there was one."""
        if not self.done.curve:
            return ""
        point = self.done.curve[-1]
        score = point.validation_accuracy
        found = f"accuracy {score:.3f}" if score is not None else f"loss {point.validation_loss:.3f}"
        return f", validation {found}"


def rate_factor(step: int, total: int, settings: Finetune, per_epoch: int) -> float:
    """Learning rate at a step as a share of its peak: linear warm-up, then the schedule's shape.

    Constant, or a half cosine to 0; ``warmup-stable-decay`` (Hu et al. 2024, arXiv 2404.06395) is constant up to the
    last epoch, in which it falls linearly to 0.
    """
    warmup = round(total * settings.warmup_share)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if settings.schedule == "constant":
        return 1.0
    if settings.schedule == "warmup-stable-decay":
        return min(1.0, (total - step) / (total - max(warmup, total - per_epoch)))
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


class Validated(NamedTuple):
    """A split's results: every example's loss, nats per answer token; their mean; accuracy, if answers have a rule."""

    losses: list[float]
    hits: list[bool]  # of every example, if answers have a rule
    loss: float
    accuracy: float | None


def validate(reader: Reader, split: Split, processes: Processes) -> Validated:
    """Read a split, by all processes together and without dropout."""
    chosen = list(processes.share(range(len(split))))
    with in_eval_mode(reader.model.network):
        answers = reader.read(split.subset(chosen))
    hits = [answer.correct or False for answer in answers]
    # In float64, to which losses convert exactly; each sum is over one process's value and zeros.
    table = torch.zeros(2, len(split), dtype=torch.float64)
    table[:, chosen] = torch.tensor([[answer.loss for answer in answers], hits], dtype=torch.float64)
    table = processes.add_up(table.to(reader.runtime.device))
    loss, accuracy = table.mean(1).tolist()
    right = table[1].bool().tolist() if reader.rule else []
    return Validated(table[0].tolist(), right, loss, accuracy if reader.rule else None)
