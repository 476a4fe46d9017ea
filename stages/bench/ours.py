"""Our side: the stages' own functions, as their command lines call them, without evaluation and saving."""

import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn

from salf.cost import update_traffic
from salf.engine.batches import Split
from salf.engine.boundary_cache.prompts import answer_side, cache_prompts
from salf.engine.boundary_cache.states import cache_boundary
from salf.engine.models.adapter import open_model
from salf.engine.runtime import choose_runtime
from salf.engine.training.checkpoint import Training
from salf.engine.training.costs import Costs
from salf.engine.training.forms import Trainable
from salf.engine.training.loop import train
from salf.engine.training.scope import Scope
from salf.engine.training.step import Job
from salf.engine.training.workbench import CACHE_BATCH_TOKENS
from salf.files import read_json
from salf.methods import Method
from salf.shape import ModelShape
from stages.bench.contender import Lap, now
from stages.bench.workloads import RATE, Task
from stages.common.params import load_params
from stages.trace.collect import SPLIT, Tracer, collect, draw_sample


def memory_rate(device: torch.device, passes: int = 9) -> float:
    """Bytes per second of memory that is read and written in place, as most of an optimizer step is."""
    numbers = torch.ones(1 << 25, device=device)  # more than a processor's cache holds
    began = now(device)
    for _ in range(passes):
        numbers.mul_(1.0)
    return 2 * passes * numbers.nbytes / (now(device) - began)


def product_rate(weights: Sequence[Tensor], rows: int, gradients: int, laps: int = 4) -> float:
    """FLOP/s of matrix products alone: of ``rows`` rows with each of the weights, [out, in], in turn.

    ``gradients``: 0 forwards alone; 1 also of the inputs; 2 also of the weights.
    """
    device, seconds = weights[0].device, []
    sides = {size: weights[0].new_ones(rows, size) for weight in weights for size in weight.shape}
    for _ in range(laps):
        began = now(device)
        for weight in weights:
            outputs, inputs = (sides[size] for size in weight.shape)
            products = [inputs @ weight.T]
            products += [outputs @ weight] if gradients else []
            products += [outputs.T @ inputs] if gradients > 1 else []
        seconds.append(now(device) - began)
    flops = 2 * (1 + gradients) * rows * sum(weight.numel() for weight in weights)
    return flops / statistics.median(seconds[1:])  # the first finds out how


class FineTuner:
    """Suffix training, states at the boundary included."""

    method: ClassVar[Method] = Method("full")

    def __init__(self, task: Task) -> None:
        self.task, self.runtime = task, choose_runtime(task.device)
        self.device = self.runtime.device
        self.model = open_model(task.folder, self.device)
        self.shape = ModelShape.from_config(read_json(task.folder / "config.json"))
        fixed = {
            "batch_size": task.batch_size,
            "evaluations_per_epoch": 1,
            "checkpoint_minutes": 1e6,
            "accumulate": 1,
            "gradient_checkpointing": False,
            "keep": ["last"],
            "patience": None,
        }
        self.params = load_params().finetune.model_copy(update=fixed)

    def run(self, *, boundary: int, epochs: int, examples: int) -> Lap:
        """Fine-tune layers boundary+1..L; seconds and FLOPs up to the end of each epoch, validations left out."""
        began = now(self.device)
        chosen, model = self.task.examples[:examples], self.model
        settings, scope = self.params.model_copy(update={"epochs": epochs}), Scope.above(boundary, model.depth)
        scope = replace(scope, embeddings=not self.method.answer_side)
        split = self._split(boundary, Split(chosen, self.task.shared))
        made = Trainable.of(model, self.method, scope, settings, seed=1, steps=0)
        job = Job(
            name="benchmark",
            trainable=made,
            runtime=self.runtime,
            training=split,
            validation=split.subset([0]),
            rule=None,
            costs=Costs(self.shape, scope, self.method.technique(settings)),
            settings=settings,
            rate=RATE,
            seed=1,
        )
        prepared = now(self.device) - began
        training = train(job)
        made.form.fold()  # adapters off
        model.network.requires_grad_(False).zero_grad(set_to_none=True)
        seconds = prepared + np.cumsum(training.step_seconds)
        ends = training.curve[1:]  # the first point is that before training
        ended = [float(seconds[point.step - 1]) for point in ends]
        return Lap(ended, [point.flops for point in ends], self._least(job, training))

    def _least(self, job: Job, training: Training) -> list[float]:
        """Seconds to the end of each epoch at the rates of matrix products of a run's own sizes, and of memory."""
        layers, split, before = self.model.layers[job.trainable.scope.boundary :], job.training, training.flops_before
        maps = [part.weight.detach().to(self.runtime.dtype) for part in layers.modules() if isinstance(part, nn.Linear)]
        whole = split.batch(range(len(split)))
        rows = round(whole.ids.numel() / job.steps_per_epoch) + (0 if whole.prompts else split.shared)
        step = product_rate(maps, rows, gradients=1 + (self.method.form.name == "weights"))
        cached = before / product_rate(maps, CACHE_BATCH_TOKENS, gradients=0) if before else 0.0
        update = job.trainable.count * update_traffic() / memory_rate(self.device)
        return [cached + (point.flops - before) / step + point.step * update for point in training.curve[1:]]

    def _split(self, boundary: int, split: Split) -> Split:
        """What is trained on, with what the layers up to the boundary compute once."""
        if boundary == 0:
            return split
        states = cache_boundary(self.model, self.runtime, split.examples, split.shared, boundary, CACHE_BATCH_TOKENS)
        return replace(split, start=states)


class AnswerTuner(FineTuner):
    """Answers alone train above boundary 0, prompts' keys and values included."""

    method = Method("full", ("answer",))

    def _split(self, boundary: int, split: Split) -> Split:
        split = split.after_prompts(self.params.answer_side)
        source = cache_prompts(self.model, self.runtime, split, CACHE_BATCH_TOKENS)
        return replace(split, start=answer_side(self.model, self.runtime, split, source, None, boundary))


class AnswerLoraTuner(AnswerTuner):
    """The same with adapters."""

    method = Method("full", ("answer", "lora"))


class PromptReader(FineTuner):
    """Keys and values of whole examples, as of prompts."""

    def run(self, *, examples: int) -> Lap:  # type: ignore[override]
        """Compute and keep them; no prefix is shared, so that a plain forward pass does the same work."""
        chosen = [replace(example, prompt_ids=example.inputs) for example in self.task.examples[:examples]]
        began = now(self.device)
        split = Split(chosen, 0, base_rows=[len(example.prompt_ids) for example in chosen])
        cache_prompts(self.model, self.runtime, split, CACHE_BATCH_TOKENS)
        return Lap([now(self.device) - began])


class TraceMaker:
    """Tracing into Parquet shards, bases solved beforehand."""

    def __init__(self, task: Task) -> None:
        self.task, self.runtime = task, choose_runtime(task.device)
        self.device = self.runtime.device
        self.model = open_model(task.folder, self.device, self.runtime.dtype)
        self.params = load_params().trace

    def run(self, *, examples: int) -> Lap:
        """Trace deviations; no prefix is shared, so that a plain forward pass does the same work."""
        chosen = self.task.examples[:examples]
        params = self.params.model_copy(update={"sample": None, "losses": 0})
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            # As the prepared training split.
            pq.write_table(pa.Table.from_pylist([asdict(example) for example in chosen]), folder / f"{SPLIT}.parquet")
            sample = draw_sample(folder, params)
            tracer = Tracer.prepare(self.model, self.runtime, params, sample.tokens, ())
            began = now(self.device)
            collect(tracer, folder, sample, {}, folder)
            return Lap([now(self.device) - began])
