"""Fine-tunes and traces of all contenders in turn, round by round, and the ratios that follow."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Self, TypeVar

from salf.engine.progress import progress
from salf.engine.runtime import find_runtime, machine_facts
from salf.ledger import Machine
from salf.settings import Device
from stages.bench.contender import Ask, Measured, contender
from stages.bench.others import Forward, HuggingFaceLora, HuggingFaceTrainer, PrefixTrainer, PromptTrainer
from stages.bench.ours import AnswerLoraTuner, AnswerTuner, FineTuner, PromptReader, TraceMaker
from stages.bench.workloads import OWN, Task, task_of
from stages.trace.collect import SHARD_EXAMPLES

OURS: Final = "ours"
TRAINER: Final = "trainer"
LORA: Final = "lora"
PREFIX: Final = "trainer, cached prefix"
_WHOLE: Final = {  # of all layers, whatever the boundary
    LORA: HuggingFaceLora,
    **{f"ours, {kind.method.name}": kind for kind in (AnswerTuner, AnswerLoraTuner)},
    "trainer, cached prompts": PromptTrainer,
}
CONTENDERS: Final = {OURS: FineTuner, TRAINER: HuggingFaceTrainer, PREFIX: PrefixTrainer, **_WHOLE}
_FEWEST_BATCHES: Final = 2
_MOST_BATCHES: Final = 48
_MEAN_RUN: Final = 0.7  # of a full fine-tune by the Trainer, at most: half of the layers are frozen on average

_PLAIN: Final = "plain forward"
_FEWEST_TRACED: Final = 16

FineTune = tuple[str, int]  # a contender, and its boundary
Request = tuple[Ask, Mapping[str, Any]]
Run = TypeVar("Run")


@dataclass(frozen=True)
class Plan:
    """The measurements of a benchmark; as it stands the full form."""

    models: Sequence[str] = (OWN, "12x1024")  # names of workloads: ``own`` or a shape's
    contenders: Sequence[str] = tuple(CONTENDERS)  # the Trainer always takes part
    batch_size: int = 8
    quarters: Sequence[int] = (0, 1, 2, 3)  # boundaries, in quarters of the depth; the first is 0
    epochs: Sequence[int] = (1, 3, 5)  # ascending; one run of the most epochs is read at the end of each of these
    repeats: int = 3  # rounds
    training_seconds: float = 900  # wanted for each model: two take most of 40 minutes
    tracing_seconds: float = 60  # likewise
    quick: bool = False

    def runs(self, layers: int) -> list[FineTune]:
        """The contender and boundary of each run of a round, of a model of ``layers`` layers; boundaries ascend."""
        boundaries = sorted({layers * quarter // 4 for quarter in self.quarters})
        each = [(name, boundary) for name in (OURS, TRAINER, PREFIX) for boundary in boundaries]
        runs = [*each, *((name, 0) for name in _WHOLE)]
        return [run for run in runs if run[0] in (TRAINER, *self.contenders) and run != (PREFIX, 0)]


@dataclass(frozen=True)
class Spread:
    """Median, lowest and highest of several rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """Summarise at least one value."""
        return cls(statistics.median(values), min(values), max(values))

    @classmethod
    def of_ratios(cls, numerators: Sequence[float], denominators: Sequence[float]) -> Self:
        """Summarise the ratios of measurements of the same round."""
        return cls.of([above / below for above, below in zip(numerators, denominators, strict=True)])


@dataclass(frozen=True)
class Speed:
    """A fine-tune of one contender above one boundary, up to the end of an epoch.

    Attributes:
        peak_bytes: the largest resident set on a CPU, torch's allocations on a GPU; ``None`` where it was not measured.
        times_as_fast_as: ratios over other contenders, and over our own full and half fine-tuning.
        of_ideal: share of the seconds that matrix products of its sizes and the optimizer's memory traffic would take;
            ours only.
    """

    contender: str
    boundary: int
    epochs: int
    seconds: Spread  # what is cached included
    peak_bytes: int | None
    times_as_fast_as: dict[str, Spread] = field(default_factory=dict)
    of_ideal: Spread | None = None


def measure(plan: Plan, device: Device, folder: Path) -> dict[str, Any]:
    """Measure everything; models and logs go into ``folder``. Returns the artifact."""
    models = []
    for name in plan.models:
        task = task_of(name, folder, plan.batch_size, device)
        examples, measured = measure_fine_tunes(task, plan, folder)
        found = {"workload": task.described(examples), "speeds": list(speeds(measured, plan.epochs))}
        models.append({**found, "tracing": measure_tracing(task, plan, folder)})
    return {
        "schema_version": 2,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {**Machine.here().model_dump(), **machine_facts(find_runtime(device))},
        "quick": plan.quick,
        "repeats": plan.repeats,
        "models": models,
    }


def measure_fine_tunes(task: Task, plan: Plan, logs: Path) -> tuple[int, dict[FineTune, list[Measured]]]:
    """Fine-tune above all boundaries with all contenders; returned with the number of examples of an epoch."""
    runs, epochs = plan.runs(task.layers), plan.epochs[-1]
    with ExitStack() as stack:
        contenders = started(stack, {name: CONTENDERS[name] for name, _ in runs}, task, logs)
        examples = _examples(contenders[TRAINER], task, plan, len(runs))
        amount = {"epochs": epochs, "examples": examples}
        measured = in_turn(
            f"fine-tuning {task.name}: {examples} examples, {epochs} epochs",
            {(name, boundary): (contenders[name], {"boundary": boundary, **amount}) for name, boundary in runs},
            {"epochs": 1, "examples": task.batch_size},
            plan.repeats,
        )
    return examples, measured


def speeds(measured: Mapping[FineTune, list[Measured]], epochs: Sequence[int]) -> Iterator[Speed]:
    """Every fine-tune at the end of each of these epochs, compared with others in the same rounds."""
    boundaries = [boundary for name, boundary in measured if name == TRAINER]
    half = boundaries[len(boundaries) // 2]
    for (name, boundary), rounds in measured.items():
        peaks = [lap["peak_bytes"] for lap in rounds]
        others = {
            "our full": (OURS, 0),
            f"ours above {half}": (OURS, half),
            "Trainer": (TRAINER, 0),
            "Trainer, same layers frozen": (TRAINER, boundary),
            "Trainer, LoRA": (LORA, 0),
        }
        compared = {} if name in (TRAINER, LORA) else {key: run for key, run in others.items() if run in measured}
        for count in epochs:
            laps = _seconds(rounds, count)
            yield Speed(
                contender=name,
                boundary=boundary,
                epochs=count,
                seconds=Spread.of(laps),
                peak_bytes=None if None in peaks else max(peaks),
                times_as_fast_as={
                    key: Spread.of_ratios(_seconds(measured[run], count), laps) for key, run in compared.items()
                },
                of_ideal=Spread.of_ratios(_seconds(rounds, count, "least"), laps) if rounds[0]["least"] else None,
            )


def _seconds(rounds: Sequence[Measured], epochs: int, what: str = "seconds") -> list[float]:
    """Seconds up to the end of that many epochs, by round."""
    return [lap[what][epochs - 1] for lap in rounds]


def measure_tracing(task: Task, plan: Plan, logs: Path) -> list[dict[str, Any]]:
    """Trace, and cache prompts, relative to a plain forward pass over the same whole examples."""
    kinds = {_PLAIN: Forward, "deviations": TraceMaker, "prompts' keys and values": PromptReader}
    with ExitStack() as stack:
        contenders = started(stack, kinds, task, logs)
        examples = _traced_examples(contenders[_PLAIN], task, plan.tracing_seconds / (len(kinds) * plan.repeats))
        ways: dict[str, Request] = {name: (ask, {"examples": examples}) for name, ask in contenders.items()}
        title = f"tracing {task.name}: {examples} examples"
        measured = in_turn(title, ways, {"examples": _FEWEST_TRACED}, plan.repeats)
    laps = {name: [lap["seconds"][0] for lap in rounds] for name, rounds in measured.items()}
    return [
        {
            "what": name,
            "device": rounds[0]["device"],
            "examples_per_second": Spread.of([examples / lap for lap in laps[name]]),
            "of_plain_forward": Spread.of_ratios(laps[_PLAIN], laps[name]),
        }
        for name, rounds in measured.items()
    ]


def started(stack: ExitStack, kinds: Mapping[str, Any], task: Task, logs: Path) -> dict[str, Ask]:
    """Contenders by name, which end with the stack."""
    return {
        name: stack.enter_context(contender(kind, task, logs / f"{task.name}-{name}.log"))
        for name, kind in kinds.items()
    }


def in_turn(
    title: str, runs: Mapping[Run, Request], short: Mapping[str, int], repeats: int
) -> dict[Run, list[Measured]]:
    """Measure every run once a round; every other round is in reverse order, so that no run always follows the same.

    Each runs in a ``short`` form before, since what happens once in a process is not compared.
    """
    measured: dict[Run, list[Measured]] = {run: [] for run in runs}
    with progress(title, (1 + repeats) * len(runs), "runs") as advance:
        for run, (ask, request) in runs.items():
            ask(**{**request, **short})
            advance(1, f"{run}: warm-up")
        for round_ in range(repeats):
            for run in list(runs)[:: -1 if round_ % 2 else 1]:
                ask, request = runs[run]
                measured[run].append(ask(**request))
                advance(1, f"{run}: {measured[run][-1]['seconds'][-1]:.2f} s")
    return measured


def _examples(trainer: Ask, task: Task, plan: Plan, runs: int) -> int:
    """The number that the time allows, by the Trainer's full fine-tuning, which takes longest."""
    first, second = trainer(boundary=0, epochs=2, examples=task.batch_size)["seconds"]
    step = second - first  # the first epoch is the warm-up
    batches = int(plan.training_seconds / (plan.repeats * runs * plan.epochs[-1] * _MEAN_RUN * step))
    batches = min(max(batches, _FEWEST_BATCHES), _MOST_BATCHES, len(task.examples) // task.batch_size)
    return batches * task.batch_size


def _traced_examples(forward: Ask, task: Task, seconds: float) -> int:
    """The number that the time allows, at most a shard's: its batches are then those of the plain pass."""
    for _ in range(2):
        took = forward(examples=_FEWEST_TRACED)["seconds"][0]
    return min(max(_FEWEST_TRACED, int(_FEWEST_TRACED * seconds / took)), SHARD_EXAMPLES, len(task.examples))
