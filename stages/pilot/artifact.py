"""The content of ``pilot.json``."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from salf.files import significant
from salf.fitting.bootstrap import interval
from salf.laws import JOINT, Array
from stages.pilot.law import JointLaw, LeftOut, verdict
from stages.pilot.prediction import Prediction

SCHEMA: Final = 1
DISABLED: Final[Mapping[str, Any]] = {"schema": SCHEMA, "enabled": False}
_DIGITS: Final = 8
_COLUMNS: Final = ("loss", "low", "high", "excess", "excess_error")


def law_entry(law: JointLaw, resampled: Array | None, confidence: float) -> dict[str, Any]:
    """The law, its parameters with intervals where it holds, and how it predicted what it had not seen.

    Args:
        law: the fitted law.
        resampled: its natural parameters over the resamples, [B, 4].
        confidence: of the intervals.
    """
    values = _numbers(JOINT.natural(law.fit.theta)[0])
    bounds = None if resampled is None else [_numbers(each) for each in interval(resampled, confidence)]
    return {
        "name": JOINT.name,
        "formula": f"{JOINT.formula} (X: trained parameters of layers and final norm, D: training examples)",
        "parameters": dict(zip(JOINT.parameters, values, strict=True)),
        "intervals": None if bounds is None else _by_name(*bounds),
        "residual": significant(float(np.sqrt((law.residuals**2).mean())), _DIGITS),
        "left_out": {"boundaries": _left_out(law.boundaries), "largest_size": _left_out(law.sizes)},
        "holds": law.holds,
        "verdict": verdict(law),
    }


def prediction_rows(prediction: Prediction) -> list[dict[str, Any]]:
    """A row for every boundary."""
    columns = [_numbers(getattr(prediction, name)) for name in _COLUMNS]
    return [
        {"boundary": boundary, **dict(zip(_COLUMNS, row, strict=True))}
        for boundary, row in enumerate(zip(*columns, strict=True))
    ]


def _by_name(low: Sequence[float], high: Sequence[float]) -> dict[str, list[float]]:
    return {name: list(pair) for name, *pair in zip(JOINT.parameters, low, high, strict=True)}


def _left_out(errors: LeftOut | None) -> dict[str, float] | None:
    if errors is None:
        return None
    return {"law": significant(errors.law, _DIGITS), "without": significant(errors.without, _DIGITS)}


def _numbers(values: Array) -> list[float]:
    return [significant(float(value), _DIGITS) for value in values]
