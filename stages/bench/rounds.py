"""Fine-tunes and traces of all contenders in turn, round by round, and the ratios that follow."""

import statistics
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from salf.engine.progress import progress
from stages.bench.contender import Contender, Measured
from stages.bench.others import Forward, HuggingFaceLora, HuggingFaceTrainer
from stages.bench.ours import AnswerLoraTuner, AnswerTuner, FineTuner, TraceMaker
from stages.bench.workloads import EMBEDDED, Task
from stages.common.benchmark import AnswerSpeed, Memory, Point, Spread, Tracing
from stages.trace.collect import SHARD_EXAMPLES

OURS: Final = "ours"
TRAINER: Final = "trainer"
LORA: Final = "lora"
_ANSWERS: Final = {f"ours, {kind.method.name}": kind for kind in (AnswerTuner, AnswerLoraTuner)}
_KINDS: Final = {OURS: FineTuner, TRAINER: HuggingFaceTrainer, LORA: HuggingFaceLora, **_ANSWERS}
_FEWEST_BATCHES: Final = 2
_MOST_BATCHES: Final = 48
_MEAN_RUN: Final = 0.7  # of a full fine-tune by the Trainer, at most: half of the layers are frozen on average

_PLAIN: Final = "plain forward"
_FEWEST_TRACED: Final = 16

Request = tuple[Contender, Mapping[str, Any]]
Run = TypeVar("Run")


@dataclass(frozen=True)
class Plan:
    """The measurements of a benchmark; as it stands the full form."""

    models: Sequence[str] = (EMBEDDED, "12x1024")  # names of workloads: ``embedded`` or a shape's
    batch_size: int = 8
    quarters: Sequence[int] = (0, 1, 2, 3)  # boundaries, in quarters of the depth; the first is 0
    epochs: Sequence[int] = (1, 3, 5)  # ascending; one run of the most epochs is read at the end of each of these
    repeats: int = 3  # rounds
    training_seconds: float = 900  # wanted for each model: two take most of 40 minutes
    tracing_seconds: float = 60  # likewise
    quick: bool = False

    def boundaries(self, layers: int) -> list[int]:
        """Ascending, in a model of ``layers`` layers."""
        return sorted({layers * quarter // 4 for quarter in self.quarters})

    def runs(self, layers: int) -> list[tuple[str, int]]:
        """The contender and boundary of each run of a round; LoRA adapts all layers, whatever the boundary."""
        each = [(name, boundary) for name in (OURS, TRAINER) for boundary in self.boundaries(layers)]
        return [*each, *((name, 0) for name in (LORA, *_ANSWERS))]


@dataclass(frozen=True)
class FineTunes:
    """All rounds of a model: (contender, boundary) → the measurement of each round."""

    plan: Plan
    layers: int
    examples: int
    measured: dict[tuple[str, int], list[Measured]]

    @property
    def boundaries(self) -> list[int]:
        """Ascending; the first is 0."""
        return self.plan.boundaries(self.layers)

    def seconds(self, contender: str, boundary: int, epochs: int) -> list[float]:
        """Seconds up to the end of that many epochs, by round."""
        return [round_["seconds"][epochs - 1] for round_ in self.measured[contender, boundary]]

    def memory(self) -> list[Memory]:
        """The peaks of every boundary; none where the system does not report them."""
        peaks = {run: [lap["peak_bytes"] for lap in laps] for run, laps in self.measured.items()}
        if any(peak is None for laps in peaks.values() for peak in laps):
            return []
        most = {run: max(laps) for run, laps in peaks.items()}
        return [
            Memory(
                boundary=boundary,
                ours=most[OURS, boundary],
                trainer_full=most[TRAINER, 0],
                trainer_frozen=most[TRAINER, boundary],
                trainer_lora=most[LORA, 0],
            )
            for boundary in self.boundaries
        ]

    def bytes_per_second(self) -> Spread:
        """Of memory."""
        return Spread.of([lap["bytes_per_second"] for lap in self.measured[OURS, 0]])

    def answers(self) -> list[AnswerSpeed]:
        """Answers alone, with weights and with adapters, compared with other ways in the same rounds."""
        half = min(self.boundaries, key=lambda boundary: abs(2 * boundary - self.layers))
        return [
            AnswerSpeed(
                method=name.removeprefix("ours, "),
                over_full=self._times(name, 0, OURS, 0, epochs),
                over_half=self._times(name, 0, OURS, half, epochs),
                over_trainer_lora=self._times(name, 0, LORA, 0, epochs),
                **self._common(name, 0, epochs, self._ideal_answers(name, epochs)),
            )
            for name in _ANSWERS
            for epochs in self.plan.epochs
        ]

    def _ideal_answers(self, name: str, epochs: int) -> float:
        """The speed-up over our full fine-tuning that FLOPs and the optimizer's memory traffic allow."""
        (whole, flops), (moved, traffic) = (
            [self.measured[each, 0][0][what][epochs - 1] for each in (OURS, name)] for what in ("flops", "traffic")
        )
        memory, full = self.bytes_per_second().median, statistics.median(self.seconds(OURS, 0, epochs))
        return full / ((full - moved / memory) * flops / whole + traffic / memory)

    def points(self) -> list[Point]:
        """Every boundary with every number of epochs."""
        return [
            Point(
                boundary=boundary,
                trainer_full=self._times(OURS, boundary, TRAINER, 0, epochs),
                trainer_frozen=self._times(OURS, boundary, TRAINER, boundary, epochs),
                trainer_lora=self._times(OURS, boundary, LORA, 0, epochs),
                speed_up=self._times(OURS, boundary, OURS, 0, epochs),
                **self._common(OURS, boundary, epochs, self._ideal(boundary, epochs)),
            )
            for boundary in self.boundaries
            for epochs in self.plan.epochs
        ]

    def _ideal(self, boundary: int, epochs: int) -> float:
        """The speed-up over our full fine-tuning that FLOPs promise."""
        full, above = (self.measured[OURS, each][0]["flops"][epochs - 1] for each in (0, boundary))
        return float(full / above)

    def _times(self, name: str, boundary: int, other: str, others: int, epochs: int) -> Spread:
        """How many times as fast a run is as another one, whose boundary is ``others``."""
        return Spread.of_ratios(self.seconds(other, others, epochs), self.seconds(name, boundary, epochs))

    def _common(self, name: str, boundary: int, epochs: int, ideal: float) -> dict[str, Any]:
        """Seconds, and the share that is reached of an ideal speed-up over our full fine-tuning."""
        reached = self._times(name, boundary, OURS, 0, epochs).median / ideal
        seconds = Spread.of(self.seconds(name, boundary, epochs))
        return {"epochs": epochs, "seconds": seconds, "ideal": ideal, "of_ideal": reached}


def measure_fine_tunes(task: Task, plan: Plan, logs: Path) -> FineTunes:
    """Fine-tune above all boundaries with all contenders."""
    runs, epochs = plan.runs(task.layers), plan.epochs[-1]
    with ExitStack() as stack:
        contenders = started(stack, _KINDS, task, logs)
        examples = _examples(contenders[TRAINER], task, plan, len(runs))
        amount = {"epochs": epochs, "examples": examples}
        measured = in_turn(
            f"fine-tuning {task.name}: {examples} examples, {epochs} epochs",
            {(name, boundary): (contenders[name], {"boundary": boundary, **amount}) for name, boundary in runs},
            {"epochs": 1, "examples": task.batch_size},
            plan.repeats,
        )
    return FineTunes(plan, task.layers, examples, measured)


def measure_tracing(task: Task, plan: Plan, logs: Path) -> list[Tracing]:
    """Trace in all ways, relative to a plain forward pass over the same batches of whole prompts."""
    with ExitStack() as stack:
        contenders = started(stack, {"trace": TraceMaker, "forward": Forward}, task, logs)
        trace, forward = contenders["trace"], contenders["forward"]
        examples = _traced_examples(forward, task, plan.tracing_seconds / (3 * plan.repeats))
        ways: dict[str, Request] = {
            _PLAIN: (forward, {"examples": examples}),
            "deviations, whole prompts": (trace, {"examples": examples, "shared": False}),
        }
        if task.shared:
            ways["deviations, shared prefix once"] = (trace, {"examples": examples, "shared": True})
        title = f"tracing {task.name}: {examples} examples"
        measured = in_turn(title, ways, {"examples": _FEWEST_TRACED}, plan.repeats)
    laps = {name: [lap["seconds"][0] for lap in rounds] for name, rounds in measured.items()}
    return [
        Tracing(
            what=name,
            device=rounds[0]["device"],
            examples_per_second=Spread.of([examples / lap for lap in laps[name]]),
            of_plain_forward=Spread.of_ratios(laps[_PLAIN], laps[name]),
        )
        for name, rounds in measured.items()
    ]


def started(stack: ExitStack, kinds: Mapping[str, Any], task: Task, logs: Path) -> dict[str, Contender]:
    """Contenders by name, which end with the stack."""
    return {
        name: stack.enter_context(Contender(kind, task, logs / f"{task.name}-{name}.log"))
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
        for run, (contender, request) in runs.items():
            contender.ask(**{**request, **short})
            advance(1, f"{run}: warm-up")
        for round_ in range(repeats):
            for run in list(runs)[:: -1 if round_ % 2 else 1]:
                contender, request = runs[run]
                measured[run].append(contender.ask(**request))
                advance(1, f"{run}: {measured[run][-1]['seconds'][-1]:.2f} s")
    return measured


def _examples(trainer: Contender, task: Task, plan: Plan, runs: int) -> int:
    """The number that the time allows, by the Trainer's full fine-tuning, which takes longest."""
    first, second = trainer.ask(boundary=0, epochs=2, examples=task.batch_size)["seconds"]
    step = second - first  # the first epoch is the warm-up
    batches = int(plan.training_seconds / (plan.repeats * runs * plan.epochs[-1] * _MEAN_RUN * step))
    batches = min(max(batches, _FEWEST_BATCHES), _MOST_BATCHES, len(task.examples) // task.batch_size)
    return batches * task.batch_size


def _traced_examples(forward: Contender, task: Task, seconds: float) -> int:
    """The number that the time allows, at most a shard's: its batches are then those of the plain pass."""
    for _ in range(2):
        took = forward.ask(examples=_FEWEST_TRACED)["seconds"][0]
    return min(max(_FEWEST_TRACED, int(_FEWEST_TRACED * seconds / took)), SHARD_EXAMPLES, len(task.examples))
