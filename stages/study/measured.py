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


@dataclass(frozen=True)
class Run:
    """One method's fine-tunes, a seed each.

    Attributes:
        seeds: the seeds.
        values: quality of every test example [seeds, examples], whose mean is the run's: 1 for a right answer, the
            same weighed so that all labels count alike, or minus its loss; between two boundaries a mixture of theirs.
        flops: counted, mean over seeds.
        validation_loss: mean over seeds.
    """

    seeds: tuple[int, ...]
    values: Floats
    flops: float
    validation_loss: float

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
        return self.scale * float((run if seeds is None else run.only(seeds)).values.mean())

    def common_seeds(self, method: str, other: str, budget: Budget = "epochs") -> tuple[int, ...]:
        """Seeds of a method that another has at equal epochs; none where one of them was not measured."""
        own, theirs = self.runs.get((method, budget)), self.runs.get((other, "epochs"))
        return tuple(seed for seed in own.seeds if seed in theirs.seeds) if own and theirs else ()

    def over(self, method: str, other: str, budget: Budget = "epochs") -> float | None:
        """Quality of a method over another's at equal epochs, over their common seeds; ``None``: they have none."""
        seeds = self.common_seeds(method, other, budget)
        return self.quality(method, budget, seeds) - self.quality(other, "epochs", seeds) if seeds else None

    def cost_share(self, method: str) -> float:
        """Counted operations of a method's fine-tune at equal epochs as a share of full fine-tuning's."""
        return self.runs[method, "epochs"].flops / self.runs[FULL, "epochs"].flops


@dataclass(frozen=True)
class Study:
    """All cases whose full fine-tuning was measured, and what the numbers come from.

    Attributes:
        runs: the fine-tunes that are read.
        measured: how many there are; those that make no whole table of boundaries and seeds are not read.
    """

    cases: tuple[Case, ...]
    runs: pd.DataFrame
    measured: int
    intervals: pd.DataFrame


def with_choices(case: Case, choices: Sequence[Choice]) -> Case:
    """The case with what these rules choose; boundaries that nobody measured are read between their neighbours."""
    runs = {key: run for key, run in case.runs.items() if key[1] != "epochs" or key[0] not in case.between}
    plain = replace(case, runs=runs, between={}, choices=tuple(choices))
    wanted = sorted({choice.boundary for choice in choices if choice.boundary is not None})
    found = {b: run for b in wanted if (run := _between(plain, b))}
    mixed: dict[tuple[str, Budget], Run] = {(f"freeze-{b}", "epochs"): run for b, run in found.items()}
    return replace(plain, runs={**runs, **mixed}, between={f"freeze-{b}": b for b in found})


def _between(case: Case, boundary: int) -> Run | None:
    """What a boundary that was not measured comes to, by its measured neighbours; ``None`` where that says nothing.

    Of every example the chance of a right answer is taken to change evenly from the one to the other. Not towards
    boundary L: there no layer trains, and quality falls off a cliff.
    """
    curve = case.curve()
    below = max((b for b in curve if b < boundary), default=None)
    above = min((b for b in curve if b > boundary), default=case.layers)
    if boundary in curve or below is None or above == case.layers:
        return None
    low, high = case.runs[curve[below], "epochs"], case.runs[curve[above], "epochs"]
    share = (boundary - below) / (above - below)

    def mixed(one: Any, other: Any) -> Any:
        return (1 - share) * one + share * other

    return Run(
        seeds=low.seeds,
        values=mixed(low.values, high.values),
        flops=mixed(low.flops, high.flops),
        validation_loss=mixed(low.validation_loss, high.validation_loss),
    )
