"""Tracing beside a plain forward pass over the same batches, in turn, round by round."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from salf.engine.progress import progress
from stages.bench.contender import Contender, Measured
from stages.bench.kept import Kept
from stages.bench.others import Forward
from stages.bench.ours import TraceMaker
from stages.bench.workloads import Task
from stages.common.benchmark import Spread, Tracing
from stages.trace.collect import SHARD_EXAMPLES

PLAIN: Final = "plain forward"
WHOLE: Final = "deviations, whole prompts"
_FEWEST: Final = 16


@dataclass(frozen=True)
class _Way:
    """A way to trace: who does it, and how it is asked."""

    contender: str
    request: dict[str, Any]


def measure_tracing(task: Task, repeats: int, seconds: float, kept: Kept, logs: Path) -> list[Tracing]:
    """All ways, over those of a plain forward pass, which sees whole prompts.

    Args:
        task: the model and its examples.
        repeats: rounds.
        seconds: wanted for all of it.
        kept: what was measured before.
        logs: the folder of the contenders' output.
    """
    contenders = {
        "ours": Contender(TraceMaker, task, logs / f"{task.name}-trace.log"),
        "theirs": Contender(Forward, task, logs / f"{task.name}-forward.log"),
    }
    ways = _ways(task)
    try:
        examples = kept.once(
            f"{task.name}: traced examples",
            lambda: _examples(contenders["theirs"], task, seconds / (repeats * len(ways))),
        )
        laps: dict[str, list[float]] = {name: [] for name in ways}
        with progress(f"tracing {task.name}: {examples} examples", repeats * len(ways), "runs") as advance:
            for round_ in range(repeats):
                for name, way in list(ways.items())[:: -1 if round_ % 2 else 1]:
                    key = f"{task.name}: trace, {name}, round {round_}"
                    lap = kept.once(key, partial(_run, contenders[way.contender], way, examples))
                    laps[name].append(lap["seconds"][0])
                    advance(1, f"{name}: {lap['seconds'][0]:.2f} s")
    finally:
        for contender in contenders.values():
            contender.stop()
    return [
        Tracing(
            what=name,
            examples_per_second=Spread.of([examples / lap for lap in laps[name]]),
            of_plain_forward=Spread.of_ratios(laps[PLAIN], laps[name]),
        )
        for name in ways
    ]


def _ways(task: Task) -> dict[str, _Way]:
    ways = {
        PLAIN: _Way("theirs", {"hidden_states": False}),
        WHOLE: _Way("ours", {"losses": False, "shared": False}),
        "deviations and losses, whole prompts": _Way("ours", {"losses": True, "shared": False}),
        "output_hidden_states": _Way("theirs", {"hidden_states": True}),
    }
    if task.shared:
        ways["deviations, shared beginning once"] = _Way("ours", {"losses": False, "shared": True})
    return ways


def _run(contender: Contender, way: _Way, examples: int) -> Measured:
    if not contender.running:
        contender.ask(examples=_FEWEST, **way.request)
    return contender.ask(examples=examples, **way.request)


def _examples(theirs: Contender, task: Task, seconds: float) -> int:
    """As many as the time allows, at most a shard's: its batches are then those of the plain pass."""
    for _ in range(2):
        took = theirs.ask(examples=_FEWEST, hidden_states=True)["seconds"][0]
    return min(max(_FEWEST, int(_FEWEST * seconds / took)), SHARD_EXAMPLES, len(task.examples))
