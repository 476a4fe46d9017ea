"""How often predicted intervals cover what was measured later.

Laws are fitted to the trace of few examples and held against the means of a larger trace of another draw, where they
fit at all: a law fits when it also predicts the last layers, left out of it, better than no law. Pilots are small
fine-tunes and held against the validation loss of whole ones at the boundaries that were measured.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from stages.study.measured import Case

_PILOT = "pilot"
_PLAIN, _REFERENCE = "plain", "reference"


@dataclass(frozen=True)
class Coverage:
    """One source of intervals on one case.

    Attributes:
        source: ``deviation``, ``loss`` (laws) or ``pilot``.
        places: spaces or boundaries with an interval and a measurement.
        covered: how many of them the interval covers.
        error: mean absolute difference between prediction and measurement.
        nominal: the intervals' confidence, where it is known.
    """

    data_set: str
    model: str
    source: str
    places: int
    covered: int
    error: float
    nominal: float | None

    @property
    def share(self) -> float:
        """Of the places."""
        return self.covered / self.places


def coverage(intervals: pd.DataFrame, cases: Sequence[Case]) -> list[Coverage]:
    """Of every source on every case that has both predictions and measurements."""
    found = []
    for case in cases:
        mine = intervals[(intervals["data_set"] == case.data_set) & (intervals["model"] == case.model)]
        measured = {_PILOT: _validation_losses(case)}
        for source, rows in mine[mine["source"].str.startswith(f"{_REFERENCE}:")].groupby("source"):
            measured[str(source).partition(":")[2]] = dict(zip(rows["place"], rows["observed"], strict=True))
        for name, truth in measured.items():
            rows = mine[mine["source"] == (name if name == _PILOT else f"{_PLAIN}:{name}")]
            entry = _covered(case, name, rows.dropna(subset=["low", "high"]), truth)
            found += [entry] if entry else []
    return found


@dataclass(frozen=True)
class Fits:
    """How often a source's laws fit.

    Attributes:
        asked: on so many cases.
        laws: law → on how many of them it is the one that fits.
    """

    asked: int
    laws: Mapping[str, int]

    @property
    def fitted(self) -> int:
        """On how many cases any does."""
        return sum(self.laws.values())


def fits(intervals: pd.DataFrame, cases: Sequence[Case]) -> dict[str, Fits]:
    """Which law fits how often, of every source."""
    here = {(case.data_set, case.model) for case in cases}
    named: dict[str, list[str]] = {}
    for (data_set, model, source), rows in intervals.groupby(["data_set", "model", "source"]):
        kind, _, quantity = str(source).partition(":")
        if (data_set, model) in here and kind in (_PILOT, _PLAIN):
            named.setdefault(quantity or kind, []).append(max(rows["law"]))
    return {source: Fits(len(laws), Counter(sorted(filter(None, laws)))) for source, laws in named.items()}


def _validation_losses(case: Case) -> dict[int, float]:
    return {b: case.runs[method, "epochs"].validation_loss for b, method in case.curve().items()}


def _covered(case: Case, source: str, rows: pd.DataFrame, truth: dict[int, float]) -> Coverage | None:
    rows = rows[rows["place"].isin(list(truth))]
    if rows.empty:
        return None
    values = rows["place"].map(truth)
    nominal = rows["confidence"].iloc[0]
    return Coverage(
        data_set=case.data_set,
        model=case.model,
        source=source,
        places=len(rows),
        covered=int(((rows["low"] <= values) & (values <= rows["high"])).sum()),
        error=float((rows["predicted"] - values).abs().mean()),
        nominal=None if pd.isna(nominal) else float(nominal),
    )
