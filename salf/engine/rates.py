"""The rates of this machine in training: steps on a few layers of random weights, timed within seconds."""

import math
import time
from pathlib import Path
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


def measure_rates(base: Path, device: Device, work: CostModel, known: Rates | None) -> Rates:
    """Time training on this machine; ``known`` if it is about the same model, work and machine.

    The base's configuration is read and not its weights, whose values do not change how long they take. A ``UserError``
    says that it cannot be opened, or that the layers cannot be run one by one.
    """
    runtime = choose_runtime(device)
    network = _shallow(base, runtime)
    shape, machine = ModelShape.from_config(network.config.to_dict()), machine_facts(runtime)
    splits = [_examples(work, work.queries, work.shared if shape.packed else 0, shape.vocabulary)]
    if work.answer:
        splits.append(_examples(work, work.answer.queries, 0, shape.vocabulary))
    rows = [[split.shared, *(example.inputs for example in split.examples)] for split in splits]
    about = digest_of([network.config.to_dict(), rows, work.recompute])
    if known and (known.about, known.machine) == (about, machine):
        return known
    model = take_apart(network)
    (frozen, training, update), *answers = (_time(model, shape, runtime, one, work.recompute) for one in splits)
    return Rates(
        frozen_flops_per_second=frozen,
        flops_per_second=training,
        answer_flops_per_second=answers[0][1] if answers else None,
        bytes_per_second=update,
        machine=machine,
        about=about,
    )


def _examples(work: CostModel, queries: int, shared: int, vocabulary: int) -> Split:
    """A part of a batch: random tokens, in rows of the mean length; ``queries``: tokens of an epoch that train."""
    length = max(2, round((queries - work.parts_per_epoch * shared) / work.rows))
    answer = min(length, max(1, round(work.positions / work.rows)))
    rows = min(math.ceil(work.batch_rows / work.parts), max(1, (_TOKENS - shared) // length))
    tokens = np.random.default_rng(0).integers(vocabulary, size=(rows, shared + length + 1))
    tokens[:, :shared] = tokens[0, :shared]
    prompts, answers = tokens[:, :-answer].tolist(), tokens[:, -answer:].tolist()
    pairs = zip(prompts, answers, strict=True)
    return Split([Example("", None, "", "", tuple(prompt), tuple(said)) for prompt, said in pairs], shared)


def _shallow(base: Path, runtime: Runtime) -> Any:
    """The base's network with few layers and random weights."""
    trusted = code_trusted(base)
    with reading(base, "cannot be opened as a causal language model"):
        config = AutoConfig.from_pretrained(base, trust_remote_code=trusted)
        shape = ModelShape.from_config(config.to_dict())
        config.num_hidden_layers = min(shape.layers, max(2, math.ceil(_PARAMETERS / shape.layer_parameters)))
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[: config.num_hidden_layers]
        torch.manual_seed(0)
        network = AutoModelForCausalLM.from_config(config, trust_remote_code=trusted)
    return network.to(runtime.device).requires_grad_(False).eval()


def _time(model: CausalModel, shape: ModelShape, runtime: Runtime, split: Split, recompute: bool) -> tuple[float, ...]:
    """FLOP/s of forward passes without gradients and of training, and bytes/s of updates."""
    trained = [*model.layers.requires_grad_(True).parameters()]
    optimizer = torch.optim.AdamW(trained, lr=0.0, fused=True)
    batch, start = split.batch(range(len(split))).to(runtime.device), start_of(split, model)
    scope = Scope(shape.layers, 0, tuple(range(1, shape.layers + 1)), final=False, embeddings=False)
    flops = Costs(shape, scope, recompute=recompute).step([batch])

    def forward(each: Batch, of: OfRows) -> Tensor:
        with runtime.autocast():
            return summed_over_rows(model, of, training_states(model, start, each, recompute=recompute))

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
        laps.append(np.diff([*ends, _now(runtime)]))
    frozen, training, update = np.median(laps[1:], axis=0).tolist()
    moved = update_traffic() * sum(parameter.numel() for parameter in trained)
    return tuple(
        significant(amount / took, _DIGITS)
        for amount, took in ((flops.forward, frozen), (flops.total, training), (moved, update))
    )


def _now(runtime: Runtime) -> float:
    if runtime.device.type != "cpu":
        torch.accelerator.synchronize(runtime.device)
    return time.perf_counter()
