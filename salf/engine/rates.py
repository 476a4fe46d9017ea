"""The rates of this machine in training: steps on a few layers of random weights, timed within seconds."""

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from salf.cost import update_traffic
from salf.engine.answers import OfRows, start_of, summed_over_rows, training_states
from salf.engine.batches import Batch, Example, Split
from salf.engine.models.adapter import CausalModel, code_trusted, take_apart
from salf.engine.runtime import Runtime, choose_runtime, machine_facts
from salf.engine.training.costs import Costs
from salf.engine.training.scope import Scope
from salf.engine.training.step import backward, cross_entropy
from salf.errors import reading
from salf.files import digest_of, significant
from salf.plan_records import CostModel, Rates
from salf.settings import Device
from salf.shape import ModelShape

_PARAMETERS: Final = 1 << 25  # of the timed layers: more than a processor's caches hold
_TOKENS: Final = 1024  # of a timed pass; longer ones reach the same rate
_LAPS: Final = 3  # after one that is not timed
_DIGITS: Final = 4


@dataclass(frozen=True)
class _Part:
    """A part of a batch with the workload's mean lengths."""

    rows: int
    shared: int
    tokens: int  # of a row, after the shared prefix
    answers: int  # of these

    @classmethod
    def of(cls, work: CostModel, queries: int, shared: int) -> "_Part":
        """``queries``: tokens of an epoch that train, with the shared prefix of every part."""
        tokens = max(2, round((queries - work.parts_per_epoch * shared) / work.rows))
        rows = min(math.ceil(work.batch_rows / work.parts), max(1, (_TOKENS - shared) // tokens))
        return cls(rows, shared, tokens, min(tokens, max(1, round(work.positions / work.rows))))

    def split(self, vocabulary: int) -> Split:
        """Random tokens."""
        rng = np.random.default_rng(0)
        prompt, shared = self.tokens - self.answers + 1, tuple(map(int, rng.integers(vocabulary, size=self.shared)))
        ids = rng.integers(vocabulary, size=(self.rows, prompt + self.answers)).tolist()
        return Split(
            [Example("", None, "", "", (*shared, *row[:prompt]), tuple(row[prompt:])) for row in ids], self.shared
        )


def measure_rates(base: Path, device: Device, work: CostModel, known: Rates | None) -> Rates:
    """Time training on this machine; ``known`` if it is about the same model, work and machine.

    The base's configuration is read and not its weights, whose values do not change how long they take.

    Raises:
        UserError: the configuration cannot be opened, or its layers cannot be run one by one.
    """
    runtime = choose_runtime(device)
    network = _shallow(base, runtime)
    shape = ModelShape.from_config(network.config.to_dict())
    parts = {"all": _Part.of(work, work.queries, work.shared if shape.packed else 0)}
    if work.answer:
        parts["answer"] = _Part.of(work, work.answer.queries, 0)
    machine, timed = machine_facts(runtime), {name: asdict(part) for name, part in parts.items()}
    about = digest_of([network.config.to_dict(), timed, work.recompute])
    if known and (known.about, known.machine) == (about, machine):
        return known
    model = take_apart(network)
    rates = {name: _time(model, shape, runtime, part, recompute=work.recompute) for name, part in parts.items()}
    return Rates(
        frozen_flops_per_second=rates["all"]["frozen"],
        flops_per_second=rates["all"]["training"],
        answer_flops_per_second=rates["answer"]["training"] if work.answer else None,
        bytes_per_second=rates["all"]["update"],
        machine=machine,
        about=about,
    )


def _shallow(base: Path, runtime: Runtime) -> Any:
    """The base's network with few layers and random weights."""
    trusted = code_trusted(base)
    with reading(base, "cannot be opened as a causal language model"):
        config = AutoConfig.from_pretrained(base, trust_remote_code=trusted)
        shape = ModelShape.from_config(config.to_dict())
        layers = min(shape.layers, max(2, math.ceil(_PARAMETERS / shape.layer_parameters)))
        config.num_hidden_layers = layers
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[:layers]
        torch.manual_seed(0)
        network = AutoModelForCausalLM.from_config(config, trust_remote_code=trusted)
    return network.to(runtime.device).requires_grad_(False).eval()


def _time(
    model: CausalModel, shape: ModelShape, runtime: Runtime, part: _Part, *, recompute: bool
) -> Mapping[str, float]:
    """FLOP/s of forward passes without gradients and of training, and bytes/s of updates."""
    model.layers.requires_grad_(True)
    trained = [*model.layers.parameters()]
    split = part.split(shape.vocabulary)
    batch, start = split.batch(range(part.rows)).to(runtime.device), start_of(split, model)
    optimizer = torch.optim.AdamW(trained, lr=0.0, fused=True)
    scope = Scope(shape.layers, 0, tuple(range(1, shape.layers + 1)), final=False, embeddings=False)
    flops = Costs(shape, scope, recompute=recompute).step([batch])

    def forward(each: Batch, of: OfRows) -> Tensor:
        with runtime.autocast():
            return summed_over_rows(model, training_states(model, start, each, recompute=recompute), of)

    laps = []
    for _ in range(1 + _LAPS):
        ends = [_now(runtime)]
        with torch.no_grad():
            cross_entropy(forward, batch)
        ends.append(_now(runtime))
        backward(lambda each: cross_entropy(forward, each), [batch])
        ends.append(_now(runtime))
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ends.append(_now(runtime))
        laps.append(np.diff(ends))
    work = (flops.forward, flops.total, update_traffic() * sum(parameter.numel() for parameter in trained))
    seconds = map(median, zip(*laps[1:], strict=True))
    names = ("frozen", "training", "update")
    return {
        name: significant(amount / float(took), _DIGITS)
        for name, amount, took in zip(names, work, seconds, strict=True)
    }


def _now(runtime: Runtime) -> float:
    if runtime.device.type != "cpu":
        torch.accelerator.synchronize(runtime.device)
    return time.perf_counter()
