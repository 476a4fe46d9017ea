"""Trains once per learning rate of a method's grid and keeps the best on the validation split."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from stages.common.answers import Embeddings, Reader, Start
from stages.common.batches import Example
from stages.common.boundary_cache import cache_boundary
from stages.common.cost import ModelShape, Technique
from stages.common.freeze_plan import FreezePlan
from stages.common.models.adapter import CausalModel, open_model
from stages.common.params import Finetune, MethodName
from stages.common.progress import progress
from stages.common.runtime import Runtime
from stages.finetune.checkpoint import Training
from stages.finetune.loop import Costs, Split, train
from stages.finetune.methods import METHODS, Trainable, make_trainable

_CACHE_BATCH_TOKENS = 1024


@dataclass(frozen=True)
class Bench:
    """All that the candidates of a grid have in common.

    Attributes:
        shared: tokens of the beginning that all prompts share.
        unfinished: where training that was stopped is kept, to go on from.
        make_reader: gives what scores a model on the validation split.
    """

    base: Path
    plan: FreezePlan
    method: MethodName
    runtime: Runtime
    params: Finetune
    shape: ModelShape
    training: Sequence[Example]
    validation: Sequence[Example]
    shared: int
    unfinished: Path
    make_reader: Callable[[CausalModel], Reader]


@dataclass(frozen=True)
class Candidate:
    """A finished training run at one learning rate."""

    rate: float
    trainable: Trainable
    training: Training
    seconds_cache: float


def best_of_grid(bench: Bench, seed: int) -> tuple[Candidate, list[dict[str, float]]]:
    """The candidate with the lowest final validation loss (ties go to the smaller rate), and all losses by rate."""
    rates = sorted(bench.params.learning_rate[bench.method])
    best: Candidate | None = None
    grid: list[dict[str, float]] = []
    for rate in rates:
        candidate = _train_one(bench, rate, seed)
        loss = candidate.training.curve[-1]["validation_loss"]
        grid.append({"rate": rate, "validation_loss": loss})
        if best is None or loss < best.training.curve[-1]["validation_loss"]:
            best = candidate
    assert best is not None, "a grid holds one rate at least"
    return best, grid


def _train_one(bench: Bench, rate: float, seed: int) -> Candidate:
    model = open_model(bench.base, bench.runtime.device)
    trainable = make_trainable(model, bench.plan, bench.method, bench.params, seed)
    began = time.perf_counter()
    starts = _starts(bench, trainable)
    seconds_cache = time.perf_counter() - began
    technique: Technique = "lora" if METHODS[bench.method].lora else "weights"
    costs = Costs(bench.shape, trainable.boundary, technique, bench.params.lora_rank)
    splits = [
        Split(examples, start) for examples, start in zip((bench.training, bench.validation), starts, strict=True)
    ]
    what = f"{bench.method} at rate {rate:g}"
    training = train(
        trainable,
        bench.runtime,
        splits[0],
        splits[1],
        bench.make_reader(model),
        costs,
        bench.params,
        rate,
        seed,
        what,
        bench.unfinished / f"rate-{rate:g}.safetensors",
    )
    return Candidate(rate, trainable, training, seconds_cache)


def _starts(bench: Bench, trainable: Trainable) -> list[Start]:
    """Where training and validation passes begin: behind the frozen layers, if there are any."""
    model, both = trainable.model, (bench.training, bench.validation)
    if trainable.boundary == 0:
        beginning = bench.training[0].prompt_ids[: bench.shared]
        return [Embeddings.behind(model, beginning) for _ in both]
    total = sum(map(len, both))
    starts: list[Start] = []
    with progress(f"layers 1–{trainable.boundary} once", total, "examples") as advance:
        for examples in both:
            cache = cache_boundary(
                model,
                bench.runtime,
                examples,
                bench.shared,
                trainable.boundary,
                _CACHE_BATCH_TOKENS,
                lambda n: advance(n, ""),
            )
            starts.append(cache)
    return starts
