"""Our side: the stages' own functions, as their command lines call them, without evaluation and saving."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from salf.cost import ModelShape
from salf.engine.answers import Answer, Embeddings, Reader, Start
from salf.engine.batches import Example
from salf.engine.boundary_cache.states import cache_boundary
from salf.engine.models.adapter import CausalModel, open_model
from salf.engine.runtime import Runtime, choose_runtime, find_runtime
from salf.engine.training.costs import Costs
from salf.engine.training.loop import train
from salf.engine.training.starts import CACHE_BATCH_TOKENS
from salf.engine.training.validation import Split
from salf.files import read_json
from salf.plan import FreezePlan, ParameterCounts, PlannedModel
from salf.settings import Device, Finetune
from stages.bench.contender import Lap, now
from stages.bench.workloads import RATE, Task
from stages.common.params import load_params
from stages.finetune.methods import make_trainable
from stages.finetune.scope import Scope
from stages.trace.basis import semantic_bases
from stages.trace.collect import SPLIT, Tracer, collect, draw_sample


class FineTuner:
    """Suffix training, states at the boundary included.

    Attributes:
        device: where it runs.
    """

    def __init__(self, task: Task, choose: Callable[[Device], Runtime] = choose_runtime) -> None:
        """Open the model."""
        self.task, self.runtime = task, choose(task.device)
        self.device = self.runtime.device
        self.model = open_model(task.folder, self.device)
        self.shape = ModelShape.from_config(read_json(task.folder / "config.json"))
        self.params = load_params().finetune

    def run(self, *, boundary: int, epochs: int, examples: int) -> Lap:
        """Fine-tune layers boundary+1..L; seconds and operations up to the end of each epoch."""
        began = now(self.device)
        chosen, model = self.task.examples[:examples], self.model
        params = self._params(epochs)
        scope = Scope(model.depth, boundary, tuple(range(boundary + 1, model.depth + 1)))
        trainable = make_trainable(model, _plan(model), scope, params, seed=1, steps=epochs)
        start = self._start(boundary, chosen)
        costs = Costs(self.shape, boundary, "weights", params.lora_rank)
        reader = _Clock(model, self.runtime)
        both = Split(chosen, start), Split(chosen[:1], start)
        training = train(trainable, self.runtime, *both, reader, costs, params, RATE, 1, "benchmark")
        model.network.requires_grad_(False).zero_grad(set_to_none=True)
        # The first reading is that before training.
        return Lap([at - began for at in reader.times[1:]], [point.flops for point in training.curve[1:]])

    def _params(self, epochs: int) -> Finetune:
        changes = {
            "epochs": epochs,
            "batch_size": self.task.batch_size,
            "evaluations_per_epoch": 1,
            "checkpoint_minutes": 1e6,
            "accumulate": 1,
            "gradient_checkpointing": False,
        }
        return self.params.model_copy(update=changes)

    def _start(self, boundary: int, examples: Sequence[Example]) -> Start:
        if boundary == 0:
            return Embeddings.behind(self.model, examples[0].prompt_ids[: self.task.shared])
        shared = self.task.shared
        return cache_boundary(self.model, self.runtime, examples, shared, boundary, CACHE_BATCH_TOKENS)


class PlainAllocator(FineTuner):
    """The same, with the C library's allocator left as it is."""

    def __init__(self, task: Task) -> None:
        super().__init__(task, find_runtime)


class _Clock(Reader):
    """In the place of what scores the validation split: notes the time. The Trainer does not evaluate either."""

    def __init__(self, model: CausalModel, runtime: Runtime) -> None:
        super().__init__(model, runtime, None, batch_tokens=1)
        self.times: list[float] = []

    def read(
        self,
        examples: Sequence[Example],
        _shared: int,
        _start: Start | None = None,
        _advance: Callable[[int], None] = lambda _: None,
    ) -> list[Answer]:
        """See :class:`Reader`."""
        self.times.append(now(self.runtime.device))
        return [Answer(0.0, (0.0,), None, None)] * len(examples)


class TraceMaker:
    """Tracing into Parquet shards, bases solved beforehand."""

    def __init__(self, task: Task) -> None:
        self.task, self.runtime = task, choose_runtime(task.device)
        self.device = self.runtime.device
        self.model = open_model(task.folder, self.device, self.runtime.dtype)
        self.params = load_params().trace

    def run(self, *, examples: int, losses: bool, shared: bool) -> Lap:
        """Trace; ``shared``: the beginning is walked once, else every prompt is walked as a whole."""
        chosen = self.task.examples[:examples]
        beginning = chosen[0].prompt_ids[: self.task.shared] if shared else ()
        params = self.params.model_copy(update={"sample": None, "losses": None if losses else 0})
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            _write_split(chosen, folder)
            sample = draw_sample(folder, params)
            tracer = Tracer.prepare(self.model, self.runtime, params, sample.tokens, beginning)
            began = now(self.device)
            collect(tracer, folder, sample, {}, folder)
            return Lap([now(self.device) - began], [])


class BasisSolver:
    """Semantic bases of a random head."""

    def __init__(self, device: Device) -> None:
        self.device = choose_runtime(device).device

    def run(self, *, vocabulary: int, hidden: int, tokens: int) -> Lap:
        """Solve the bases of ``tokens`` tokens."""
        torch.manual_seed(0)
        head = torch.randn(vocabulary, hidden, device=self.device).mul_(0.02)
        began = now(self.device)
        semantic_bases(head, None, range(tokens))
        return Lap([now(self.device) - began], [])


def _write_split(examples: Sequence[Example], folder: Path) -> None:
    """Examples as the prepared training split."""
    pq.write_table(pa.Table.from_pylist([asdict(example) for example in examples]), folder / f"{SPLIT}.parquet")


def _plan(model: CausalModel) -> FreezePlan:
    """As much of a plan as applying it reads."""
    config, total = model.network.config, sum(p.numel() for p in model.network.parameters())
    planned = PlannedModel(
        name="benchmark",
        weights_sha256="",
        family=config.model_type,
        layers=model.depth,
        hidden=config.hidden_size,
        vocabulary=config.vocab_size,
        tied_head=model.tied_head,
    )
    counts = ParameterCounts(frozen=0, trained=total, total=total)
    parts: dict[str, Any] = {"model": planned, "parameters": counts, "boundaries": {}}
    return FreezePlan.model_construct(**parts)
