"""A study's measurements, case by case: quality of every test example under every fine-tune."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stages.study.description import FULL, Budget, Measure
from stages.study.description import Case as Key

Floats = NDArray[np.floating[Any]]
DIGITS: Final = 9  # of points or nats; beyond them processors add up differently


@dataclass(frozen=True)
class Run:
    """One method's fine-tunes, one per seed; FLOPs and validation results are means over seeds.

    ``values`` is the quality of every test example [seeds, examples]: 1 for a right answer (weighted so that all
    labels count alike, for balanced accuracy), or minus the loss. Their mean is the run's quality. ``rates`` is the
    number of learning rates that its grid tried, ``validation`` that of validation examples per training example.
    """

    seeds: tuple[int, ...]
    values: Floats
    flops: float
    validation_loss: float
    validation_accuracy: float
    epochs: float = 1.0
    rates: float = 1.0
    validation: float = 0.0


@dataclass(frozen=True)
class Line:
    """A case's measured boundaries by the shares of the layers that they freeze; linear between them."""

    shares: Floats  # [B]
    costs: Floats  # FLOPs as a share of full fine-tuning's [B]

    @property
    def deepest(self) -> float:
        """The largest share above which a layer trains."""
        return float(self.shares[self.shares < 1].max())

    def weights(self, shares: Floats) -> Floats:
        """Return the weights of the measured boundaries at other shares [B, S]."""
        return np.array([np.interp(shares, self.shares, unit) for unit in np.eye(len(self.shares))])


@dataclass(frozen=True)
class Case:
    """A dataset with a model."""

    data_set: str
    group: str  # datasets of one group are left out together
    model: str
    measure: Measure
    test_set: int  # a number that cases with the same test examples share
    labels: NDArray[np.integer[Any]] | None  # of test examples, as numbers [examples]; only where all count alike
    natural: Floats | None  # weights of values [examples] for the label frequencies of the dataset's own test file
    layers: int
    runs: dict[tuple[str, Budget], Run]
    boundaries: dict[str, int]  # by method, for methods that freeze up to a layer

    @property
    def key(self) -> Key:
        """The names of dataset and model."""
        return Key(self.data_set, self.model)

    @property
    def unit(self) -> str:
        """Accuracies are in points of a hundred, losses in nats."""
        return "nats" if self.measure == "loss" else "points"

    @property
    def scale(self) -> float:
        """The factor from values to the unit."""
        return 1.0 if self.measure == "loss" else 100.0

    def curve(self) -> dict[int, str]:
        """Return boundary → method for measured boundaries at equal epochs, ascending."""
        found = {b: method for method, b in self.boundaries.items() if (method, "epochs") in self.runs}
        return dict(sorted(found.items()))

    @cached_property
    def line(self) -> Line:
        """Cost over depth."""
        curve = self.curve()
        return Line(
            np.array([boundary / self.layers for boundary in curve]),
            np.array([self.cost_share(method) for method in curve.values()]),
        )

    def quality(self, method: str) -> float:
        """Return the mean of a method at equal epochs over examples and seeds, in points or minus nats."""
        return round(self.scale * float(self.runs[method, "epochs"].values.mean()), DIGITS)

    def natural_quality(self, method: str) -> float | None:
        """Return the accuracy at equal epochs under the natural label frequencies, in points; ``None``: unknown."""
        if self.natural is None:
            return None
        return round(self.scale * float((self.runs[method, "epochs"].values * self.natural).mean()), DIGITS)

    def common_seeds(self, method: str, other: str, budget: Budget = "epochs") -> tuple[int, ...]:
        """Return the seeds of a method that another has at equal epochs; none where one of them was not measured."""
        own, theirs = self.runs.get((method, budget)), self.runs.get((other, "epochs"))
        return tuple(seed for seed in own.seeds if seed in theirs.seeds) if own and theirs else ()

    def cost_share(self, method: str) -> float:
        """Return a method's FLOPs at equal epochs as a share of full fine-tuning's."""
        return self.runs[method, "epochs"].flops / self.runs[FULL, "epochs"].flops


@dataclass(frozen=True)
class Study:
    """All cases with full fine-tuning, and the tables they come from.

    ``runs`` are the fine-tunes that are read, of ``measured``: the others make no complete table of seeds.
    """

    cases: tuple[Case, ...]
    runs: pd.DataFrame
    measured: int
    rates: pd.DataFrame
