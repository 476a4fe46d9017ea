"""The evidence for choosing a boundary, typed: the artifacts of ``fit`` and ``signals``, and their readers.

Spaces count from 0 (embedding output) to L, layers from 1 to L.
"""

import csv
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from salf.errors import UserError, reading
from salf.files import read_json, require
from salf.plan_records import FrontierPoint
from salf.records import Artifact
from salf.selectors import GainName, Quantity

POWER: Final = "power"  # the paper's law, as the artifact names it
LEVELS: Final = 4  # fewest levels of a factor whose law is asked for

Numbers = list[float | None]  # null where a value is undefined
Cell = Annotated[float, BeforeValidator(lambda text: "nan" if text == "" else text)]
Row = TypeVar("Row", bound=BaseModel)


class Record(BaseModel):
    """A part of an artifact; keys of other versions are ignored."""

    model_config = ConfigDict(frozen=True)


class FittedLaw(Record):
    """A law, or a description without a law, fitted to the spaces 1..L of one quantity.

    ``holdout_rmse`` is the error on last layers that the fit did not see. Curves [L] are null before ``first_space``.
    ``faults`` say why a law does not fit.
    """

    name: str
    formula: str
    first_space: int
    parameters: dict[str, float | None]
    intervals: dict[str, Numbers]
    converged: bool
    r2: float | None
    rmse: float | None
    aicc: float | None
    holdout_rmse: float | None
    fits: bool
    curve: Numbers
    curve_low: Numbers
    curve_high: Numbers
    faults: list[str] = []


class DepthLaw(Record):
    """One quantity over the spaces 0..L: mean, its interval and percentiles of the examples, [L+1]; and its laws.

    ``falling`` is the power law from the mean's peak on, judged over these spaces alone; null with too few layers.
    """

    examples: int
    mean: list[float]
    low: list[float]
    high: list[float]
    p10: list[float]
    p50: list[float]
    p90: list[float]
    laws: list[FittedLaw]
    best: str | None
    fits: bool
    verdict: str
    embedding_step: float
    notes: list[str]
    falling: FittedLaw | None = None

    @property
    def power_fits(self) -> bool:
        """Whether the power law over the whole depth does; another may fit where it does not."""
        return any(law.fits for law in self.laws if law.name == POWER)

    def predicted(self, space: int) -> float:
        """The best law's value where a law fits and reaches, otherwise the observed mean."""
        curve = next((law.curve for law in self.laws if law.name == self.best), [])
        value = curve[space - 1] if self.fits and space and curve else None
        return self.mean[space] if value is None else value


class Traced(Record):
    """Facts about the traced data; null where the trace does not say."""

    model: str | None = None
    weights_sha256: str | None = None
    basis: str | None = None
    space: str | None = None
    target: str | None = None
    dtype: str | None = None


class TraceFacts(Traced):
    """The metadata of each part of ``data/traces``."""

    data_sha256: str
    layers: int
    hidden: int
    vocabulary: int
    examples: int
    versions: dict[str, str]
    version: Literal[1] = Field(1, alias="schema")


class ScalingLaw(Record, Artifact):
    """``reports/scaling_law.json``."""

    made_by, whole = "fit", True

    layers: int
    examples: int
    positions: int
    trace_sha256: str
    confidence: float
    trace: Traced = Traced()
    quantities: dict[Quantity, DepthLaw]
    version: Literal[1] = Field(1, alias="schema")


class LayerGain(Record):
    """A row of ``reports/gains.csv``: one layer's gain with its interval, NaN where undefined.

    ``win_share`` is the share of the bootstrap resamples in which the layer has the largest gain.
    """

    quantity: Quantity
    gain: GainName
    layer: int
    value: Cell
    low: Cell
    high: Cell
    win_share: Cell
    embedding_step: bool


class SignalValue(Record):
    """A row of ``reports/signals.csv``; ``layer`` is the number of a layer or a space, NaN is undefined."""

    signal: str
    layer: int
    value: Cell


class PilotRun(Record):
    """A small fine-tune: layers 1..boundary frozen, loss in nats per answer token; ``kept``: its rate won."""

    method: str = "weights"
    boundary: int
    rank: int | None = None  # of adapters
    examples: int
    draw: int = 0  # of the examples
    learning_rate: float
    validation_loss: float
    flops: int
    kept: bool


class LeftOut(Record):
    """Root mean square of log residuals at runs that the prediction did not see: by the law, and without a law.

    ``forms`` has those of each form that a law may take.
    """

    law: float
    without: float
    forms: dict[str, float] = {}


class MethodLaw(Record):
    """The joint law of a factor and the examples, for one method (:mod:`salf.fitting.joint`).

    ``left_out`` has the errors at the ``levels`` of the factor in turn and at the ``largest_size``, null with too few
    runs.
    """

    name: str
    formula: str
    parameters: dict[str, float]
    intervals: dict[str, list[float]] | None
    residual: float
    left_out: dict[str, LeftOut | None]
    holds: bool
    verdict: str


class Forecast(Record):
    """A method's loss at a level of the factor, with the interval of one fine-tune."""

    method: str
    level: float
    examples: float
    loss: float
    low: float
    high: float


class CriticalSize(Record):
    """The number of examples up to which ``below`` has the lower loss, and from which on ``above`` has it.

    Null: none, ``below`` has it at all sizes that were searched. ``low`` and ``high`` are null where the interval ends
    outside of these.
    """

    level: float
    below: str
    above: str
    examples: float | None
    low: float | None
    high: float | None
    warnings: list[str]


class PredictedLoss(Record):
    """A boundary's validation loss at full size, in nats per answer token, with the interval of one fine-tune.

    ``excess`` is the loss above that of the best boundary, ``excess_error`` its standard error.
    """

    boundary: int
    loss: float
    low: float
    high: float
    excess: float
    excess_error: float


class PilotFlops(Record):
    """FLOPs of all pilots by what they went to; ``share`` of one full fine-tune's."""

    frozen: int
    training: int
    reading: int
    total: int
    full_fine_tune: int
    share: float


class Pilots(Record, Artifact):
    """``reports/pilot.json`` of pilots that were run."""

    made_by, whole = "signals", True

    layers: int
    enabled: Literal[True] = True
    examples: int
    validation_examples: int
    epochs: int
    confidence: float
    base_sha256: str
    data_sha256: dict[str, str]
    untrained_loss: float
    pilots: list[PilotRun]
    law: MethodLaw
    predictions: list[PredictedLoss]
    laws: dict[str, MethodLaw] = {}
    forecasts: list[Forecast] = []
    critical_sizes: list[CriticalSize] = []
    flops: PilotFlops
    version: Literal[1] = Field(1, alias="schema")

    @property
    def deepest(self) -> int:
        """The deepest boundary that was fine-tuned. Predictions above it are extrapolated: no selector goes there."""
        return max(one.boundary for one in self.pilots)

    @property
    def fallback(self) -> str | None:
        """Why no joint law predicts; ``None`` where one does."""
        return None if self.law.holds else self.law.verdict.rstrip(".")


NO_PILOTS: Final[Mapping[str, Any]] = {"schema": 1, "enabled": False}

# Of the layers that may be chosen, 2..L-1: layer 1's gain is the embedding step, and above L no layer is left to train.
Gains = Mapping[tuple[Quantity, GainName], tuple[LayerGain, ...]]


@dataclass(frozen=True)
class Evidence:
    """The evidence that selectors read."""

    layers: int
    laws: Mapping[Quantity, DepthLaw]
    gains: Gains
    frontier: Sequence[FrontierPoint] = ()  # of the boundaries 0..L
    signals: Mapping[str, Sequence[float]] = field(default_factory=dict)  # by column, [L+1]; NaN where undefined
    pilot: Pilots | None = None
    confidence: float = 0.9  # of the laws' and gains' intervals


def read_law(path: Path, layers: int, weights: str) -> ScalingLaw:
    """Read the laws of a model with that many layers and weights of that hash."""
    law = ScalingLaw.load(path)
    lengths = {law.layers} | {len(q.mean) - 1 for q in law.quantities.values()}
    if lengths != {layers}:
        found = ", ".join(map(str, sorted(lengths)))
        raise UserError(f"{path}: traced {found} layers, the base model has {layers}; run again: dvc repro fit")
    _check_weights(path, law.trace.weights_sha256, weights, "dvc repro trace fit")
    if "deviation" not in law.quantities:
        raise UserError(f"{path}: no deviation, which is always traced; run again: dvc repro fit")
    return law


def read_pilot(path: Path, layers: int, weights: str) -> Pilots | None:
    """Read what pilots of a model with that many layers and weights of that hash predict; ``None``: none were run."""
    raw = read_json(require(path, made_by="signals"))
    if isinstance(raw, dict) and raw.get("enabled") is False:
        return None
    pilot = Pilots.load(path)
    if [row.boundary for row in pilot.predictions] != list(range(layers + 1)):
        raise UserError(f"{path}: pilots of {pilot.layers} layers, the base model has {layers}; dvc repro signals")
    _check_weights(path, pilot.base_sha256, weights, "dvc repro signals")
    return pilot


def read_gains(path: Path, layers: int) -> Gains:
    """Read the gains of the layers that may be chosen; undefined ones are left out."""
    table: dict[tuple[Quantity, GainName], list[LayerGain]] = defaultdict(list)
    for where, gain in read_rows(require(path, "fit"), LayerGain, "fit"):
        if not 1 <= gain.layer <= layers:
            raise UserError(f"{where}: layer {gain.layer}, the base model has {layers}; run again: dvc repro fit")
        if not gain.embedding_step and gain.layer < layers and math.isfinite(gain.value):
            table[gain.quantity, gain.gain].append(gain)
    return {key: tuple(sorted(gains, key=lambda gain: gain.layer)) for key, gains in table.items()}


def read_signals(path: Path, layers: int) -> dict[str, Sequence[float]]:
    """Read the signals of a model with that many layers, by column; each has a value per number 0..L."""
    values: dict[str, dict[int, float]] = defaultdict(dict)
    for _, row in read_rows(require(path, "signals"), SignalValue, "signals"):
        values[row.signal][row.layer] = row.value
    for name, of_layers in values.items():
        if set(of_layers) | {0} != set(range(layers + 1)):
            raise UserError(f"{path}: {name} is not about {layers} layers; run again: dvc repro signals")
    return {name: tuple(of.get(number, math.nan) for number in range(layers + 1)) for name, of in values.items()}


def read_rows(path: Path, kind: type[Row], made_by: str = "") -> Iterator[tuple[str, Row]]:
    """The rows of a table, each with its place in the file; a ``UserError`` says what is wrong with the first that is.

    Every required field has a column of its name, or alias.
    """
    again = f"; run again: dvc repro {made_by}" if made_by else ""
    with reading(path), path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        needed = {field.alias or name for name, field in kind.model_fields.items() if field.is_required()}
        if missing := needed - set(reader.fieldnames or ()):
            raise UserError(f"{path}: no column {', '.join(sorted(missing))}{again}")
        for row in reader:
            where = f"{path}: line {reader.line_num}"
            try:
                yield where, kind.model_validate(row)
            except ValidationError as error:
                fault = error.errors()[0]
                cell = f"{fault['loc'][0]} = {fault['input']!r}"
                raise UserError(f"{where}: {cell}: {fault['msg']}{again}") from None


def _check_weights(path: Path, found: str | None, weights: str, command: str) -> None:
    if found not in (None, weights):
        raise UserError(f"{path}: made of other weights than the base model's (a fine-tune of it?); run: {command}")
