"""What a plan rests on: the laws, the gains, the base model and the size of the training split."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from pydantic import BaseModel

from salf.errors import UserError
from salf.files import read_json, require
from salf.plan import FrontierPoint
from salf.records import checked
from salf.settings import GainName, Quantity

_POWER: Final = "power"  # as the artifact names it


class Curve(BaseModel):
    """A law fitted to spaces 1..L, and whether it describes them; null outside its reach."""

    name: str
    fits: bool
    curve: list[float | None]


class DepthLaw(BaseModel):
    """One quantity over the spaces 0..L, with its interval, and the laws fitted to it."""

    mean: list[float]
    low: list[float]
    high: list[float]
    laws: list[Curve]
    best: str | None
    fits: bool
    verdict: str

    @property
    def power_fits(self) -> bool:
        """Whether the paper's law does, the power law over the whole depth; another may fit where it does not."""
        return any(law.fits for law in self.laws if law.name == _POWER)

    def predicted(self, space: int) -> float:
        """The best law's value where a law fits and reaches, else the observed mean."""
        value = self.best_curve()[space - 1] if self.fits and space else None
        return self.mean[space] if value is None else value

    def best_curve(self) -> list[float | None]:
        """The best law's curve over spaces 1..L."""
        return next((law.curve for law in self.laws if law.name == self.best), [None] * (len(self.mean) - 1))


class Traced(BaseModel):
    """What was traced; ``None``: an older fit did not say."""

    weights_sha256: str | None = None


class ScalingLaw(BaseModel):
    """``reports/scaling_law.json``, as far as a plan reads it."""

    layers: int
    trace_sha256: str
    trace: Traced = Traced()
    quantities: dict[Quantity, DepthLaw]


@dataclass(frozen=True)
class LayerGain:
    """One layer's gain with its bootstrap interval; ``win_share`` of the resamples."""

    layer: int
    value: float
    low: float
    high: float
    win_share: float


# A value per space or layer, indexed by its number 0..L: NaN where the signal is not defined, as at 0 for a layer's.
Signal = tuple[float, ...]

# The layers that may be chosen, by what is gained and how it is counted: 2..L-1. Layer 1's gain is the embedding
# step, and behind layer L no layer is left to train: that choice is the selector ``none``.
Gains = Mapping[tuple[Quantity, GainName], tuple[LayerGain, ...]]


class PredictedLoss(BaseModel):
    """A boundary's validation loss as the pilots predict it.

    Attributes:
        low, high: interval of one fine-tune's loss.
        excess_error: standard error of what it is over the loss of the best boundary.
    """

    boundary: int
    loss: float
    low: float
    high: float
    excess_error: float


class PilotLaw(BaseModel):
    """Whether a law predicted, in words too."""

    holds: bool
    verdict: str


class Piloted(BaseModel):
    """A fine-tune that was made."""

    boundary: int


class PilotOperations(BaseModel):
    """What the pilots cost; ``share`` of one full fine-tune's operations."""

    share: float


class PilotPrediction(BaseModel):
    """``reports/pilot.json`` where pilots were run, as far as a plan reads it."""

    layers: int
    base_sha256: str | None = None
    pilots: list[Piloted]
    predictions: list[PredictedLoss]
    law: PilotLaw
    flops: PilotOperations

    @property
    def deepest(self) -> int:
        """The deepest boundary that was fine-tuned: behind it predictions are extrapolated, and no rule goes there."""
        return max(one.boundary for one in self.pilots)

    @property
    def fallback(self) -> str | None:
        """Why no joint law predicts; ``None`` where one does."""
        return None if self.law.holds else self.law.verdict.rstrip(".")


@dataclass(frozen=True)
class Evidence:
    """What the selectors see.

    Attributes:
        layers: L.
        laws: one per traced quantity.
        gains: what every layer contributes.
        frontier: cost and remaining reduction of the boundaries 0..L.
        signals: by name, a value per space or layer 0..L; NaN where the signal has none.
        pilot: what small fine-tunes predict, where there were any.
    """

    layers: int
    laws: Mapping[Quantity, DepthLaw]
    gains: Gains
    frontier: Sequence[FrontierPoint] = ()
    signals: Mapping[str, Signal] = field(default_factory=dict)
    pilot: PilotPrediction | None = None


def read_law(path: Path, layers: int, weights: str) -> ScalingLaw:
    """Read the laws of a trace of a model with so many layers and weights of this hash.

    Raises:
        UserError: the file is missing or damaged, or of another model.
    """
    law = checked(ScalingLaw, path, made_by="fit")
    lengths = {law.layers} | {len(q.mean) - 1 for q in law.quantities.values()}
    if lengths != {layers}:
        found = ", ".join(map(str, sorted(lengths)))
        raise UserError(f"{path}: traced {found} layers, the base model has {layers}; run again: dvc repro fit")
    _check_weights(path, law.trace.weights_sha256, weights, "dvc repro trace fit")
    if "deviation" not in law.quantities:
        raise UserError(f"{path}: no deviation, which is always traced; run again: dvc repro fit")
    return law


def read_pilot(path: Path, layers: int, weights: str) -> PilotPrediction | None:
    """Read what the pilots of a model of so many layers and these weights predict; ``None`` where none were run.

    Raises:
        UserError: the file is missing or damaged, or of another model.
    """
    raw = read_json(require(path, made_by="pilot"))
    if isinstance(raw, dict) and raw.get("enabled") is False:
        return None
    pilot = checked(PilotPrediction, path, made_by="pilot")
    if [row.boundary for row in pilot.predictions] != list(range(layers + 1)):
        raise UserError(f"{path}: pilots of {pilot.layers} layers, the base model has {layers}; dvc repro pilot")
    _check_weights(path, pilot.base_sha256, weights, "dvc repro pilot")
    return pilot


def _check_weights(path: Path, found: str | None, weights: str, command: str) -> None:
    if found not in (None, weights):
        raise UserError(f"{path}: made of other weights than the base model's (a fine-tune of it?); run: {command}")
