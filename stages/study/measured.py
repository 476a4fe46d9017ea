"""What a study measured, case by case: quality of every test example under every fine-tune."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Budget = Literal["epochs", "compute"]
FULL: Final = "full"
PAPER: Final = "salf"  # the rule of this name is the paper's, and what the others are compared with
LOSS: Final = "loss"
BALANCED: Final = "balanced-accuracy"
PRICE_ONLY: Final = ("affordable",)  # selectors that see what boundaries cost, and neither data nor model
RANDOM: Final = "random"  # the selector that draws a boundary: judged by the mean over all boundaries, not by one draw
DIGITS: Final = 9  # of points or nats: below them, processors add up differently


@dataclass(frozen=True)
class Run:
    """One method's fine-tunes, a seed each.

    Attributes:
        seeds: the seeds.
        values: quality of every test example [seeds, examples], whose mean is the run's: 1 for a right answer, the
            same weighed so that all labels count alike, or minus its loss; between two boundaries a mixture of theirs.
        flops: counted, mean over seeds.
        validation_loss: mean over seeds.
        validation_accuracy: mean over seeds; NaN for free answers.
    """

    seeds: tuple[int, ...]
    values: Floats
    flops: float
    validation_loss: float
    validation_accuracy: float

    def only(self, seeds: Sequence[int]) -> "Run":
        """The fine-tunes of some of its seeds."""
        return replace(self, seeds=tuple(seeds), values=self.values[[self.seeds.index(seed) for seed in seeds]])


@dataclass(frozen=True)
class Choice:
    """What a rule chooses; no boundary where its evidence was absent.

    Attributes:
        scores: what it predicts for boundaries 0..L; empty where it predicts nothing.
        deciding_share: operations of the fine-tunes by which it decides, as a share of full fine-tuning's.
        plan: the same for choices that one plan made, from the same evidence.
    """

    rule: str
    selector: str
    boundary: int | None
    reason: str
    scores: tuple[float | None, ...]
    deciding_share: float = 0.0
    plan: str = ""


@dataclass(frozen=True)
class Case:
    """A data set with a model.

    Attributes:
        group: data sets of one group are left out together.
        measure: ``accuracy``, ``balanced-accuracy`` (mean over labels) or ``loss``.
        test_set: a number that cases share whose test examples are the same.
        labels: of every test example, as numbers, where all labels count alike [examples]; elsewhere ``None``.
        chance: quality of naming one label always, the most frequent; ``None``: there are no labels.
        natural: factors of the values [examples] that make their mean the accuracy under the label frequencies of the
            dataset's own test file (:mod:`stages.study.reading`); ``None``: these are not known.
        natural_chance: the most frequent label's share there.
        runs: by method and budget.
        boundaries: method → boundary, for those that freeze up to a layer.
        between: the same for boundaries that rules choose and nobody measured: their runs mix their neighbours'.
    """

    data_set: str
    group: str
    model: str
    measure: str
    test_set: int
    labels: NDArray[np.integer[Any]] | None
    chance: float | None
    natural: Floats | None
    natural_chance: float | None
    layers: int
    runs: dict[tuple[str, Budget], Run]
    boundaries: dict[str, int]
    between: dict[str, int]
    choices: tuple[Choice, ...]

    @property
    def unit(self) -> str:
        """Accuracies are reported in points of a hundred, losses in nats."""
        return "nats" if self.measure == LOSS else "points"

    @property
    def scale(self) -> float:
        """What quality is multiplied by for its unit."""
        return 1.0 if self.measure == LOSS else 100.0

    def curve(self) -> dict[int, str]:
        """Boundary → method, for those measured at equal epochs, ascending."""
        measured = {method: b for method, b in self.boundaries.items() if method not in self.between}
        found = {b: method for method, b in measured.items() if (method, "epochs") in self.runs}
        return dict(sorted(found.items()))

    def quality(self, method: str, budget: Budget = "epochs", seeds: Sequence[int] | None = None) -> float:
        """Mean of a method over examples and seeds (all of its own, unless said), in points or as minus nats."""
        run = self.runs[method, budget]
        return round(self.scale * float((run if seeds is None else run.only(seeds)).values.mean()), DIGITS)

    def natural_quality(self, method: str) -> float | None:
        """Accuracy at equal epochs under the natural label frequencies, in points; ``None``: these are not known."""
        if self.natural is None:
            return None
        return round(self.scale * float((self.runs[method, "epochs"].values * self.natural).mean()), DIGITS)

    def common_seeds(self, method: str, other: str, budget: Budget = "epochs") -> tuple[int, ...]:
        """Seeds of a method that another has at equal epochs; none where one of them was not measured."""
        own, theirs = self.runs.get((method, budget)), self.runs.get((other, "epochs"))
        return tuple(seed for seed in own.seeds if seed in theirs.seeds) if own and theirs else ()

    def over(self, method: str, other: str, budget: Budget = "epochs") -> float | None:
        """Quality of a method over another's at equal epochs, over their common seeds; ``None``: they have none."""
        seeds = self.common_seeds(method, other, budget)
        if not seeds:
            return None
        return round(self.quality(method, budget, seeds) - self.quality(other, "epochs", seeds), DIGITS)

    def cost_share(self, method: str) -> float:
        """Counted operations of a method's fine-tune at equal epochs as a share of full fine-tuning's."""
        return self.runs[method, "epochs"].flops / self.runs[FULL, "epochs"].flops


@dataclass(frozen=True)
class Study:
    """All cases whose full fine-tuning was measured, and what the numbers come from.

    Attributes:
        runs: the fine-tunes that are read.
        measured: how many there are; those that make no whole table of boundaries and seeds are not read.
        rates: outcomes of other learning rates than the kept ones (``rates.csv``).
    """

    cases: tuple[Case, ...]
    runs: pd.DataFrame
    measured: int
    intervals: pd.DataFrame
    rates: pd.DataFrame


def with_choices(case: Case, choices: Sequence[Choice]) -> Case:
    """The case with these selectors' choices; unmeasured boundaries are interpolated between their neighbours.

    A random draw becomes a run of its own: the mean over boundaries 1..L-1, as far as these are measured or lie
    between measured ones.
    """
    runs = {key: run for key, run in case.runs.items() if key[1] != "epochs" or key[0] not in {RANDOM, *case.between}}
    plain = replace(case, runs=runs, between={}, choices=tuple(map(_not_drawn, choices)))
    wanted = sorted({choice.boundary for choice in plain.choices if choice.boundary is not None})
    found = {b: run for b in wanted if (run := _between(plain, b))}
    mixed: dict[tuple[str, Budget], Run] = {(f"freeze-{b}", "epochs"): run for b, run in found.items()}
    if any(choice.selector == RANDOM for choice in choices):
        curve = plain.curve()
        every = [runs[curve[b], "epochs"] if b in curve else _between(plain, b) for b in range(1, case.layers)]
        there = [run for run in every if run is not None]
        mixed |= {(RANDOM, "epochs"): _mixed(there, [1 / len(there)] * len(there))} if there else {}
    return replace(plain, runs={**runs, **mixed}, between={f"freeze-{b}": b for b in found})


def _not_drawn(choice: Choice) -> Choice:
    if choice.selector != RANDOM:
        return choice
    return replace(
        choice, boundary=None, reason="mean over boundaries 1..L-1 that are measured or between measured ones"
    )


def _between(case: Case, boundary: int) -> Run | None:
    """An unmeasured boundary's run, interpolated linearly between its measured neighbours; ``None``: it has none.

    Not towards boundary L: no layer trains there, and quality falls off a cliff.
    """
    curve = case.curve()
    below = max((b for b in curve if b < boundary), default=None)
    above = min((b for b in curve if b > boundary), default=case.layers)
    if boundary in curve or below is None or above == case.layers:
        return None
    share = (boundary - below) / (above - below)
    return _mixed([case.runs[curve[b], "epochs"] for b in (below, above)], [1 - share, share])


def _mixed(runs: Sequence[Run], shares: Sequence[float]) -> Run:
    """A weighted mean of runs with the same seeds, example by example."""

    def mean(name: str) -> Any:
        return sum(share * getattr(run, name) for share, run in zip(shares, runs, strict=True))

    names = ("values", "flops", "validation_loss", "validation_accuracy")
    return Run(runs[0].seeds, **{name: mean(name) for name in names})
