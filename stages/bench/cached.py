"""A Trainer over something cached, and the same Trainer without it: the public cached prefix, and what is like it."""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from salf.engine.prefix import collate_states, prefix_states
from salf.engine.suffix import suffix
from stages.bench.contender import Lap, Measured, facts, now
from stages.bench.others import HuggingFaceTrainer
from stages.bench.rounds import Request, in_turn, started
from stages.bench.spread import Spread
from stages.bench.workloads import Task


class CachedTrainer(HuggingFaceTrainer):
    """The Trainer over something cached, or without the cache, as ``cached`` in its requests says."""

    sampling = "random"  # grouping by length reads the lengths off tokens
    of: ClassVar[str]  # the argument of ``run`` that the cache depends on
    epochs: ClassVar[tuple[int, ...]]
    examples: ClassVar[int]  # of an epoch, unless asked otherwise

    @staticmethod
    @abstractmethod
    def compared(layers: int) -> Mapping[int, Mapping[str, int]]:
        """The values of ``of`` that run cached → those of the uncached runs to compare each with, by name."""

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
    """The Trainer over boundary states (``salf.prefix_states``, ``salf.suffix``), or over tokens with frozen layers."""

    of, epochs, examples = "boundary", (1, 3, 5), 240

    @staticmethod
    def compared(layers: int) -> Mapping[int, Mapping[str, int]]:
        """Half and three quarters of the depth, with the same layers frozen and with none."""
        return {at: {"same layers frozen": at, "no layer frozen": 0} for at in (layers // 2, layers * 3 // 4)}

    def run(self, *, boundary: int, epochs: int, examples: int, cached: bool = False) -> Lap:
        """Fine-tune; the clock of a cached run includes the pass of the frozen layers."""
        if not cached:
            return super().run(boundary=boundary, epochs=epochs, examples=examples)

        def prepared() -> tuple[Any, Any, Any]:
            states = prefix_states(self.network, self.rows(examples), boundary, bf16=self.bf16)
            return suffix(self.network, boundary), states, collate_states

        return self.train_cached(prepared, epochs)


@dataclass(frozen=True)
class CachedSpeed:
    """A cached run up to the end of an epoch; ``at`` is its boundary, or the tokens of its prompts."""

    at: int
    epochs: int
    seconds: Spread  # what fills the cache included
    cache_share: Spread
    times_as_fast_as: dict[str, Spread]


def measure_cached(
    trainer: type[CachedTrainer], task: Task, examples: int | None, repeats: int, logs: Path
) -> dict[str, Any]:
    """Fine-tune with and without the cache, in a process each, in turn, round by round; returns the artifact."""
    examples = min(examples or trainer.examples, len(task.examples))
    compared = trainer.compared(task.layers)
    plain = dict.fromkeys(at for others in compared.values() for at in others.values())
    amount = {"epochs": max(trainer.epochs), "examples": examples}
    with ExitStack() as stack:
        contenders = started(stack, {"plain": trainer, "cached": trainer}, task, logs)
        runs: dict[tuple[int, bool], Request] = {
            (at, cached): (contenders["cached" if cached else "plain"], {trainer.of: at, "cached": cached, **amount})
            for ats, cached in ((plain, False), (compared, True))
            for at in ats
        }
        short = {"epochs": 1, "examples": 2 * task.batch_size}
        measured = in_turn(f"{trainer.__name__}, {task.name}", runs, short, repeats)
    speeds = [_speed(measured, at, others, count) for at, others in compared.items() for count in trainer.epochs]
    return {**facts(task.device), "repeats": repeats, "workload": task.described(examples), "speeds": speeds}


def _speed(
    measured: Mapping[tuple[int, bool], list[Measured]], at: int, others: Mapping[str, int], epochs: int
) -> CachedSpeed:
    seconds, before = ([lap["seconds"][place] for lap in measured[at, True]] for place in (epochs, 0))
    whole = {name: [lap["seconds"][epochs - 1] for lap in measured[other, False]] for name, other in others.items()}
    return CachedSpeed(
        at=at,
        epochs=epochs,
        seconds=Spread.of(seconds),
        cache_share=Spread.of_ratios(before, seconds),
        times_as_fast_as={name: Spread.of_ratios(laps, seconds) for name, laps in whole.items()},
    )
