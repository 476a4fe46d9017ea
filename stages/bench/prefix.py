"""The public cached prefix (``salf.prefix_states``, ``salf.suffix``) in a Trainer, and the same Trainer without it."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import torch

from salf.engine.prefix import collate_states, prefix_states
from salf.engine.suffix import suffix
from stages.bench.contender import Lap, facts, now
from stages.bench.others import HuggingFaceTrainer
from stages.bench.rounds import in_turn, started
from stages.bench.workloads import Task
from stages.common.benchmark import CachedPoint, PrefixBenchmark, Spread

EPOCHS: Final = (1, 3, 5)
Run = tuple[int, bool]  # boundary, or tokens of a prompt; whether something is cached


class CachedTrainer(HuggingFaceTrainer):
    """The Trainer over something cached."""

    sampling = "random"  # grouping by length reads the lengths off tokens

    @property
    def bf16(self) -> bool:
        """Whether the Trainer multiplies in bfloat16."""
        return self.runtime.dtype == torch.bfloat16

    def train_cached(self, prepared: Callable[[], tuple[Any, Any, Any]], epochs: int) -> Lap:
        """Train the model, dataset and collator that are ``prepared``, which the clock includes; its share is first."""
        began = now(self.device)
        trained = prepared()
        before = now(self.device) - began
        return Lap([before, *(before + lap for lap in self.train(*trained, epochs))])


class PrefixTrainer(CachedTrainer):
    """The Trainer over boundary states, or over tokens with the same layers frozen."""

    def run(self, *, boundary: int, epochs: int, examples: int, cached: bool = False) -> Lap:
        """Fine-tune; the clock of a cached run includes the pass of the frozen layers."""
        if not cached:
            return super().run(boundary=boundary, epochs=epochs, examples=examples)

        def prepared() -> tuple[Any, Any, Any]:
            states = prefix_states(self.network, self.rows(examples), boundary, bf16=self.bf16)
            return suffix(self.network, boundary), states, collate_states

        return self.train_cached(prepared, epochs)


def measure_prefix(task: Task, examples: int, repeats: int, logs: Path) -> PrefixBenchmark:
    """Fine-tune above half and three quarters of the depth, with and without the cache, in turn, round by round."""
    examples = min(examples, len(task.examples))
    boundaries = [task.layers // 2, task.layers * 3 // 4]
    runs: list[Run] = [(0, False), *((boundary, cached) for boundary in boundaries for cached in (False, True))]
    requests = {run: {"boundary": run[0], "cached": run[1], "examples": examples} for run in runs}
    laps = both_ways(task, PrefixTrainer, requests, max(EPOCHS), repeats, logs)
    points = [_point(laps, boundary, epochs) for boundary in boundaries for epochs in EPOCHS]
    return PrefixBenchmark(**described(task, examples, repeats), points=points)


def both_ways(
    task: Task,
    trainer: type[CachedTrainer],
    requests: Mapping[Run, Mapping[str, int]],
    epochs: int,
    repeats: int,
    logs: Path,
) -> dict[Run, list[list[float]]]:
    """Seconds at the end of every epoch, by run and round: one process with the cache and one without, in turn."""
    with ExitStack() as stack:
        contenders = started(stack, {"plain": trainer, "cached": trainer}, task, logs)
        runs = {
            (what, cached): (contenders["cached" if cached else "plain"], {**request, "epochs": epochs})
            for (what, cached), request in requests.items()
        }
        short = {"epochs": 1, "examples": 2 * task.batch_size}
        measured = in_turn(f"{trainer.__name__}, {task.name}", runs, short, repeats)
    return {run: [lap["seconds"] for lap in rounds] for run, rounds in measured.items()}


def described(task: Task, examples: int, repeats: int) -> dict[str, Any]:
    """The facts of every benchmark of one part: time, machine and workload."""
    return {**facts(task.device), "repeats": repeats, "workload": task.described(examples)}


def _point(laps: dict[Run, list[list[float]]], boundary: int, epochs: int) -> CachedPoint:
    ours, prefix = ([lap[at] for lap in laps[boundary, True]] for at in (epochs, 0))
    frozen, full = ([lap[epochs - 1] for lap in laps[of, False]] for of in (boundary, 0))
    return CachedPoint(
        boundary=boundary,
        epochs=epochs,
        seconds=Spread.of(ours),
        prefix_share=Spread.of_ratios(prefix, ours),
        trainer_frozen=Spread.of_ratios(frozen, ours),
        trainer_full=Spread.of_ratios(full, ours),
    )
