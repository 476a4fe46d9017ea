"""Trains once per learning rate of a method's grid and keeps the best on the validation split."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from stages.common.answers import Embeddings, Reader, Start
from stages.common.artifacts import read_json
from stages.common.batches import Example
from stages.common.boundary_cache.cache import BoundaryCache, CacheSettings
from stages.common.boundary_cache.key import frozen_units
from stages.common.boundary_cache.opened import Opened, print_opened
from stages.common.cost import ModelShape, Technique
from stages.common.freeze_plan import FreezePlan
from stages.common.models.adapter import CausalModel, open_model
from stages.common.params import Finetune, MethodName
from stages.common.runtime import Runtime
from stages.common.training.checkpoint import Training
from stages.common.training.costs import Costs
from stages.common.training.loop import train
from stages.common.training.processes import ALONE, Processes
from stages.common.training.trainable import Trainable
from stages.common.training.validation import Split
from stages.finetune.methods import METHODS, make_trainable

CACHE_BATCH_TOKENS: Final = 1024  # of a pass through the frozen layers


@dataclass(frozen=True)
class Bench:
    """All that the candidates of a grid have in common.

    Attributes:
        shared: tokens of the beginning that all prompts share.
        unfinished: where training that was stopped is kept, to go on from.
        make_reader: gives what scores a model on the validation split.
        processes: those that train together.
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
    processes: Processes = ALONE


@dataclass(frozen=True)
class Candidate:
    """A finished training run at one learning rate."""

    rate: float
    trainable: Trainable
    training: Training


@dataclass(frozen=True)
class Search:
    """What a grid came to.

    Attributes:
        best: lowest final validation loss.
        grid: every rate and its final validation loss.
        states: where the passes of training and validation began, by split; empty where nothing is frozen.
    """

    best: Candidate
    grid: list[dict[str, float]]
    states: dict[str, Opened]

    @property
    def seconds_cache(self) -> float:
        """What the frozen layers' pass over both splits took, when it was done: for this run or for another.

        As with FLOPs, a method pays for its frozen pass even where a run before it left the states.
        """
        return sum(opened.seconds_computing for opened in self.states.values())


def best_of_grid(bench: Bench, seed: int) -> Search:
    """Train at every rate of the grid; the lowest final validation loss wins (ties go to the smaller rate)."""
    rates = sorted(bench.params.learning_rate[bench.method])
    best: Candidate | None = None
    grid: list[dict[str, float]] = []
    states: dict[str, Opened] = {}
    for rate in rates:
        candidate, states = _train_one(bench, rate, seed, states)
        loss = candidate.training.curve[-1]["validation_loss"]
        grid.append({"rate": rate, "validation_loss": loss})
        if best is None or loss < best.training.curve[-1]["validation_loss"]:
            best = candidate
    assert best is not None, "a grid holds one rate at least"
    return Search(best, grid, states)


def _train_one(bench: Bench, rate: float, seed: int, states: dict[str, Opened]) -> tuple[Candidate, dict[str, Opened]]:
    """Train at one rate; ``states``: those of an earlier rate, where there was one."""
    model = open_model(bench.base, bench.runtime.device)
    trainable = make_trainable(model, bench.plan, bench.method, bench.params, seed)
    if trainable.boundary and not states:
        states = _open_states(bench, trainable)
    starts = _starts(bench, trainable, states)
    technique: Technique = "lora" if METHODS[bench.method].lora else "weights"
    params, anew = bench.params, bool(states) and states["training"].origin == "off"
    costs = Costs(
        bench.shape,
        trainable.boundary,
        technique,
        params.lora_rank,
        frozen_anew=anew,
        recompute=params.gradient_checkpointing,
    )
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
        bench.processes,
    )
    return Candidate(rate, trainable, training), states


def _open_states(bench: Bench, trainable: Trainable) -> dict[str, Opened]:
    """The frozen layers' states of both splits, for all rates of the grid."""
    params, boundary = bench.params, trainable.boundary
    cache = BoundaryCache(
        CacheSettings.of(params.cache, params.cache_folder, params.cache_gib),
        trainable.model,
        bench.runtime,
        frozen_units(read_json(bench.base / "base.json")["shards"], boundary),
        bench.shared,
        CACHE_BATCH_TOKENS,
        bench.processes if bench.processes.count > 1 else None,
    )
    passes = params.epochs * len(params.learning_rate[bench.method])
    opened = {
        "training": cache.open(bench.training, passes),
        "validation": cache.open(bench.validation, passes * params.evaluations_per_epoch),
    }
    print_opened(boundary, opened)
    return opened


def _starts(bench: Bench, trainable: Trainable, states: dict[str, Opened]) -> list[Start]:
    """Where training and validation passes begin: behind the frozen layers, if there are any."""
    if states:
        return [states[split].start_for(trainable.model) for split in ("training", "validation")]
    beginning = bench.training[0].prompt_ids[: bench.shared]
    return [Embeddings.behind(trainable.model, beginning) for _ in range(2)]
