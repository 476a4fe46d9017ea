"""The benchmark's artifact: how fast this project is compared with what people use, on one machine.

Every comparison is a ratio of times that were measured in turn in one run, round by round.
"""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

SCHEMA_VERSION: Final = 1
PATTERN: Final = "benchmark*.json"  # in the folder of reports: the last one here, and any kept of other machines

Natural = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]


class Record(BaseModel):
    """A frozen part of the artifact; keys that earlier benchmarks held in addition are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)


class Spread(Record):
    """Median, lowest and highest of several repeats."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """Summarise at least one value."""
        return cls(median=statistics.median(values), low=min(values), high=max(values))

    @classmethod
    def of_ratios(cls, numerators: Sequence[float], denominators: Sequence[float]) -> Self:
        """Summarise the ratios of measurements of the same round."""
        return cls.of([above / below for above, below in zip(numerators, denominators, strict=True)])


class Workload(Record):
    """The trained and traced workload; ``examples`` of one epoch, ``shared_tokens`` of the shared prefix."""

    model: str
    origin: str
    layers: Positive
    hidden: Positive
    vocabulary: Positive
    parameters: Positive
    examples: Positive
    batch_size: Positive
    mean_tokens: float
    shared_tokens: Natural


class Point(Record):
    """A fine-tune above one boundary, with its number of epochs.

    Attributes:
        trainer_full, trainer_frozen, trainer_lora: how many times as fast ours is as transformers' Trainer.
    """

    boundary: Natural
    epochs: Positive
    seconds: Spread  # ours, states at the boundary included
    trainer_full: Spread
    trainer_frozen: Spread
    trainer_lora: Spread
    speed_up: Spread  # over our own boundary 0; ``ideal`` if time were proportional to FLOPs
    ideal: float
    of_ideal: float


class AnswerSpeed(Record):
    """A fine-tune of answers alone; the ratios say how many times as fast it is as another way.

    Attributes:
        over_full, over_half: ours with all positions, no layer frozen and half of them.
        over_trainer_lora: transformers' Trainer with adapters on all layers.
    """

    method: str
    epochs: Positive
    seconds: Spread  # prompts' keys and values included
    over_full: Spread
    over_half: Spread
    over_trainer_lora: Spread
    ideal: float  # over_full at full's rate of FLOPs and memory's of the optimizer's bytes (where that was measured)
    of_ideal: float


class Memory(Record):
    """Peak bytes of fine-tuning above a boundary: the largest resident set on a CPU, torch's allocations on a GPU."""

    boundary: Natural
    ours: Positive
    trainer_full: Positive
    trainer_frozen: Positive
    trainer_lora: Positive


class Tracing(Record):
    """Examples per second of one way to trace, over those of a plain forward pass over the same examples.

    ``device`` is the GPU's name, or ``cpu``; null in benchmarks that did not record it.
    """

    what: str
    device: str | None = None
    examples_per_second: Spread
    of_plain_forward: Spread


class ModelResult(Record):
    """All measurements with one model."""

    workload: Workload
    points: list[Point]
    memory: list[Memory]
    tracing: list[Tracing]
    answer_side: list[AnswerSpeed] = []
    bytes_per_second: Spread | None = None  # of memory, read and written in place


class Deciding(Record):
    """Trace, fit and plan as processes, compared with full fine-tunes of the whole training split."""

    rows: Positive
    epochs: Positive
    seconds: Spread
    stages: dict[str, float]
    of_trainer_full: float
    of_our_full: float


class Benchmark(Record):
    """The content of ``reports/benchmark.json``; ``quick``: a small model and fewer points."""

    schema_version: Literal[1]
    quick: bool
    at: str
    machine: dict[str, Any]
    repeats: Positive
    models: list[ModelResult]
    deciding: Deciding | None


class CachedPoint(Record):
    """A Trainer over the public cached prefix, and how many times as fast it is as the same without the cache."""

    boundary: Positive
    epochs: Positive
    seconds: Spread
    prefix_share: Spread
    trainer_frozen: Spread
    trainer_full: Spread


class AnswerSidePoint(Record):
    """A Trainer over what follows cached prompts, and how many times as fast it is as one over whole rows."""

    prompt_tokens: Positive
    epochs: Positive
    seconds: Spread
    cache_share: Spread
    trainer_full: Spread


class _Part(Record):
    schema_version: Literal[1]
    at: str
    machine: dict[str, Any]
    repeats: Positive
    workload: Workload


class PrefixBenchmark(_Part):
    """The content of ``reports/prefix-benchmark.json``."""

    points: list[CachedPoint]


class AnswerSideBenchmark(_Part):
    """The content of ``reports/answer-side-benchmark.json``."""

    points: list[AnswerSidePoint]


def read_benchmark(path: Path) -> Benchmark | None:
    """Read a benchmark; ``None`` for a file that is none of this version."""
    try:
        return Benchmark.model_validate_json(json.dumps(json.loads(path.read_text(encoding="utf-8"))))
    except (OSError, ValueError, ValidationError):
        return None
