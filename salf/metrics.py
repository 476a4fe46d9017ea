"""``metrics.json`` and ``comparison.csv``, typed: scores and costs on the test split, written by ``evaluate``.

In the files every score is flat, ``accuracy``, ``accuracy_low``, ``accuracy_high``; here it is one
:class:`Interval` in ``scores``.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from salf.errors import reading
from salf.files import write_text
from salf.records import Artifact, GridRate, KeptWeights
from salf.settings import Quality

SCORES: Final = {
    "accuracy": "accuracy",
    "exact_match": "exact match",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro-F1",
    "perplexity": "perplexity",
    "loss": "loss",
}
"""Every score by its name in the files, with its name in prose; ``loss`` is in nats per answer token."""

LOWER_IS_BETTER: Final = frozenset({"perplexity", "loss"})

BASELINES: Final = {
    "untrained": "the untrained model",
    "majority": "the majority class",
    "tfidf": "TF-IDF + logistic regression",
}

_ENDS: Final = {"value": "", "low": "_low", "high": "_high"}
_GROUPS: Final = {"scores": ("", _ENDS), "differences": ("_minus_full", {**_ENDS, "detectable": "_detectable"})}


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class Interval(_Record):
    """A value and the ends of its bootstrap interval."""

    value: float
    low: float
    high: float

    def overlaps(self, other: "Interval") -> bool:
        """Whether the two intervals share a point."""
        return self.low <= other.high and other.low <= self.high


class Difference(Interval):
    """A paired difference from full fine-tuning; ``detectable`` is the one that the test finds with 80 % power."""

    detectable: float


class Scored(_Record):
    """Scores on the test split by name, see ``SCORES``; only those that the task has."""

    scores: dict[str, Interval]

    @model_validator(mode="before")
    @classmethod
    def _gather(cls, flat: Mapping[str, Any]) -> dict[str, Any]:
        if "scores" in flat:
            return dict(flat)
        rest = dict(flat)
        for group, (suffix, ends) in _GROUPS.items():
            if group in cls.model_fields:
                rest[group] = {
                    score: {part: rest.pop(f"{score}{suffix}{end}", None) for part, end in ends.items()}
                    for score in SCORES
                    if f"{score}{suffix}" in flat
                }
        return rest

    @model_serializer(mode="wrap")
    def _flatten(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        data = handler(self)
        for group, (suffix, ends) in _GROUPS.items():
            for score, parts in data.pop(group, {}).items():
                data |= {f"{score}{suffix}{ends[part]}": value for part, value in parts.items()}
        return data


class Baseline(Scored):
    """A model without fine-tuning, or a simple predictor; ``n`` is the number of test examples."""

    n: int


class Costs(_Record):
    """Counted costs, and shares of full fine-tuning's; means over seeds may be broken numbers."""

    flops: int | float
    flops_share: float | None = None
    flops_winner: int | float | None = None  # of a race, whose ``flops`` are those of all arms
    flops_backward: int | float | None = None
    flops_backward_share: float | None = None
    epochs: int | float
    steps: int | float
    trained_parameters: int | float
    trained_share: float | None = None
    boundary: int | float
    boundary_before_budget: int | float | None = None


class RunMetrics(Baseline, Costs):
    """A fine-tuned model: its scores, its counted cost, and shares of full fine-tuning with the same seed."""

    method: str
    seed: int
    learning_rate: float
    grid: list[GridRate]
    validation_loss: float | None
    validation_accuracy: float | None
    kept: list[KeptWeights] = []
    looks: int | None = None
    steps_planned: int | None = None


class EqualCompute(_Record):
    """Own final validation scores, and full fine-tuning's when it had spent as much (its schedule unfinished)."""

    validation_accuracy: float | None = None
    validation_loss: float | None = None
    full_validation_accuracy: float | None = None
    full_validation_loss: float | None = None


class MethodMetrics(Scored, Costs):
    """A method: means over its seeds (whole where all agree), and, where full fine-tuning was run, what it shares."""

    seeds: list[int]
    differences: dict[str, Difference] = {}
    at_equal_compute: EqualCompute | None = None


class Intervals(_Record):
    """Settings of the intervals: bootstrap resamples of the test examples, and the confidence.

    ``over`` is documents where blocks of plain text are resampled by document.
    """

    resamples: int
    confidence: float
    over: Literal["examples", "documents"] = "examples"


class Paired(_Record):
    """Measures of a model by name, and their paired differences from full fine-tuning and from the untrained model.

    ``share_of_full``: the share of full fine-tuning's change from the untrained model that was made here, where that
    change is significant.
    """

    scores: dict[str, Interval]
    minus_full: dict[str, Difference]
    minus_base: dict[str, Difference]
    share_of_full: dict[str, Interval]


class Panel(_Record):
    """Measures on some examples by model: baselines, and methods as means over their seeds."""

    examples: int
    models: dict[str, Paired]


class GroupPanels(_Record):
    """A test split by subgroup; ``gaps``: of every measure the highest group minus the lowest.

    Rates of answering ``positive`` are among all examples, those that have this label (true), and the others (false).
    """

    column: str
    positive: str | None
    pooled: list[str]  # groups of too few examples, which are one group
    groups: dict[str, Panel]
    gaps: Panel


class PairsPanel(Panel):
    """Pairs of continuations of a file.

    ``unwanted_rate`` is the share whose unwanted continuation is more probable per character than the wanted one,
    ``unwanted_margin`` the mean difference of their log probabilities per character.
    """

    file: str
    sha256: str


class ShiftPanel(Panel):
    """Divergence of predictions from the untrained model's, in nats per token: see :mod:`salf.engine.shift`."""

    layers: dict[str, list[float]]  # by method, at spaces 0..L


class KeptContext(_Record):
    """Share of earlier tokens that the trained layers of a pruned model still see, mean over test texts; and one text.

    ``kept`` says by layer which of ``tokens`` is still seen at their end: 1, or 0 if it was dropped.
    """

    share: float
    layers: dict[int, float]
    tokens: list[str]
    kept: dict[int, str]


class Metrics(_Record, Artifact):
    """The content of ``metrics.json``; ``quality`` is the score that models are compared by.

    Scores are those on the test split; the panels hold what was asked for in addition.
    """

    made_by = "evaluate"

    layout: Literal[1] = Field(alias="schema")
    task: str
    quality: Quality
    intervals: Intervals
    baselines: dict[str, Baseline]
    runs: dict[str, RunMetrics]
    methods: dict[str, MethodMetrics]
    shifted: dict[str, Panel] = {}  # by the name of the shifted split
    groups: dict[str, GroupPanels] = {}  # by test split
    pairs: PairsPanel | None = None
    shift: dict[str, ShiftPanel] = {}  # by the text that was read
    kept: dict[str, KeptContext] = {}  # by run


class Measured(BaseModel):
    """A method's cost on the machine that trained it, mean over its seeds; shares are of full fine-tuning."""

    model_config = ConfigDict(frozen=True)  # comparison.csv has more columns

    seconds_per_step: float
    seconds_training: float
    seconds_cache: float
    peak_memory_bytes: float
    seconds_share: float | None = None
    seconds_per_step_share: float | None = None
    peak_memory_share: float | None = None

    @property
    def seconds(self) -> float:
        """Training, the cache of boundary states included."""
        return self.seconds_training + self.seconds_cache

    def relative_to(self, full: Self) -> Self:
        """The same with its shares of full fine-tuning."""
        shares = {
            "seconds_share": self.seconds / full.seconds,
            "seconds_per_step_share": self.seconds_per_step / full.seconds_per_step,
            "peak_memory_share": self.peak_memory_bytes / full.peak_memory_bytes,
        }
        return self.model_copy(update=shares)


def write_comparison(path: Path, metrics: Metrics, measured: Mapping[str, Measured]) -> None:
    """Write ``comparison.csv``: a row per baseline and method, with what was measured of each method.

    Columns of scores on a shifted split begin with its name.
    """
    rows: list[dict[str, Any]] = [
        {"kind": "baseline", "name": name, **scored.model_dump()} for name, scored in metrics.baselines.items()
    ]
    for name, method in metrics.methods.items():
        known = method.model_dump(exclude_unset=True, exclude={"at_equal_compute", "seeds"})
        costs = measured[name].model_dump(exclude_none=True)
        rows.append({"kind": "method", "name": name, "seeds": len(method.seeds), **known, **costs})
    for split, panel in metrics.shifted.items():
        for row in rows:
            scores = panel.models[row["name"]].scores
            row |= {f"{split}_{score}{_ENDS[part]}": end for score, one in scores.items() for part, end in one}
    write_csv(path, rows)


def panel_rows(metrics: Metrics) -> list[dict[str, Any]]:
    """A row for every measure of every model on test and shifted splits, of gaps, pairs and shift, with its panel."""
    panels: dict[str, Mapping[str, Scored | Paired]] = {"test": {**metrics.baselines, **metrics.methods}}
    panels |= {split: panel.models for split, panel in metrics.shifted.items()}
    panels |= {f"gaps on {split}": found.gaps.models for split, found in metrics.groups.items()}
    panels |= {"unwanted answers": metrics.pairs.models} if metrics.pairs else {}
    panels |= {f"shift on {text}": panel.models for text, panel in metrics.shift.items()}
    rows = []
    for panel, models in panels.items():
        for model, found in models.items():
            shares = found.share_of_full if isinstance(found, Paired) else {}
            for measure, one in found.scores.items():
                share = {"share_of_full": shares[measure].value} if measure in shares else {}
                rows.append({"panel": panel, "model": model, "measure": measure, **one.model_dump(), **share})
    return rows


def read_comparison(path: Path) -> dict[str, Measured]:
    """Read what was measured of each method."""
    with reading(path, "damaged CSV (run again: dvc repro evaluate)"), path.open(encoding="utf-8", newline="") as file:
        rows = [{key: value for key, value in row.items() if value} for row in csv.DictReader(file)]
        return {row["name"]: Measured.model_validate(row) for row in rows if row["kind"] == "method"}


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows with a column for every key that occurs, in order of first occurrence; null is an empty field."""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, out.getvalue())
