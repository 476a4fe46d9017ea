"""Everything that is fitted to one quantity (the deviation, or the loss): laws, intervals, verdict, gains."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from salf.files import significant
from salf.fitting.bootstrap import interval, resampled_means
from salf.gains import local, next_reduction
from salf.laws import Array
from stages.common.params import Fit
from stages.fit.compare import SMOOTH, Assessment, assess, choose, faults, holdout_excess, verdict
from stages.fit.gains import Gain, all_gains
from stages.fit.rules import BASELINES, LAWS, POWER_RULE, Rule
from stages.fit.stability import Stability, stabilities
from stages.fit.stability import artifact as stability_artifact

DIGITS: Final = 8
# Laws are fitted to logarithms. A mean of exactly zero (a model that is certain everywhere) is lifted to what
# float32 could just tell from it.
_FLOOR: Final = 1e-9

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Interval:
    """An assessed rule's bootstrap: parameters [B, p] and curves [B, L]."""

    parameters: Array
    curves: Array
    thetas: Array


@dataclass(frozen=True)
class Analysis:
    """One quantity's results.

    Attributes:
        name: deviation or loss.
        examples: curves [n, L+1] of the examples.
        mean: their mean [L+1], floored where it is zero.
        resamples: bootstrap means [B, L+1], floored alike.
        assessments: every rule that the layers suffice for.
        intervals: their bootstraps, in the same order.
        gains: every gain.
        stabilities: by gain, which layer samples of growing size name.
        notes: what was left out or changed, in words.
    """

    name: str
    examples: Array
    mean: Array
    resamples: Array
    assessments: list[Assessment]
    intervals: list[Interval]
    gains: list[Gain]
    stabilities: dict[str, Stability]
    notes: list[str]


def analyse(name: str, examples: Array, params: Fit, progress: Progress = lambda _: None) -> Analysis:
    """Fit every rule to the mean of curves [n, L+1], with bootstrap intervals, and compute the gains."""
    mean = np.maximum(examples.mean(axis=0), _FLOOR)
    resamples = np.maximum(resampled_means(examples, params.bootstrap, params.seed), _FLOOR)
    layers = len(mean) - 1
    fitted: list[tuple[Assessment, Interval]] = []
    for rule in (*LAWS, *BASELINES):
        if layers >= rule.points:
            progress(f"{name}: {rule.name}")
            fitted.append(_fit(rule, mean[1:], resamples[:, 1:], params.holdout_layers))
    assessments, intervals = [a for a, _ in fitted], [i for _, i in fitted]
    power = next((i for i, a in enumerate(assessments) if a.rule is POWER_RULE), None)
    theta = None if power is None else assessments[power].fitted.theta[0]
    thetas = None if power is None else intervals[power].thetas
    gains = all_gains(mean, resamples, theta, thetas, params.confidence)
    sizes = stabilities(examples, _FLOOR, params.bootstrap, params.seed)
    notes = _notes(examples, mean) + [SMOOTH] * choose(assessments)[1]
    return Analysis(name, examples, mean, resamples, assessments, intervals, gains, sizes, notes)


def artifact(analysis: Analysis, confidence: float) -> dict[str, Any]:
    """The quantity's entry in ``scaling_law.json``."""
    best, fits = choose(analysis.assessments)
    low, high = interval(analysis.resamples, confidence)
    spread = np.percentile(analysis.examples, [10, 50, 90], axis=0)
    bounds = zip(analysis.assessments, analysis.intervals, strict=True)
    return {
        "examples": len(analysis.examples),
        "mean": _numbers(analysis.mean),
        "low": _numbers(low),
        "high": _numbers(high),
        **{name: _numbers(row) for name, row in zip(("p10", "p50", "p90"), spread, strict=True)},
        "laws": [_law(a, i, analysis.assessments, confidence) for a, i in bounds],
        "best": best.rule.name,
        "fits": fits,
        "verdict": verdict(analysis.name, analysis.assessments, analysis.mean[1:]),
        "embedding_step": _number(analysis.mean[0] - analysis.mean[1]),
        "local_law": {
            "exponents": _numbers(local(analysis.mean[None])[0]),
            "next_reduction": _numbers(next_reduction(analysis.mean[None])[0]),
        },
        "stability": {name: stability_artifact(each, confidence) for name, each in analysis.stabilities.items()},
        "notes": analysis.notes,
    }


def _fit(rule: Rule, curve: Array, resamples: Array, holdout: int) -> tuple[Assessment, Interval]:
    assessment = assess(rule, curve, resamples, holdout)
    again = rule.fit(resamples, assessment.fitted.warm)
    spaces = np.arange(1, len(curve) + 1, dtype=float)
    return assessment, Interval(rule.natural(again.theta), rule.curve(again.theta, spaces), again.theta)


def _law(assessment: Assessment, bootstrap: Interval, rivals: list[Assessment], confidence: float) -> dict[str, Any]:
    rule = assessment.rule
    values = rule.natural(assessment.fitted.theta)[0]
    low, high = interval(bootstrap.parameters, confidence)
    curve_low, curve_high = interval(bootstrap.curves, confidence)
    first = assessment.first_space
    excess = None if assessment.is_baseline else holdout_excess(assessment, rivals)
    return {
        "name": rule.name,
        "formula": rule.formula,
        "first_space": first,
        "parameters": dict(zip(rule.parameters, _numbers(values), strict=True)),
        "intervals": {n: list(pair) for n, *pair in zip(rule.parameters, _numbers(low), _numbers(high), strict=True)},
        "converged": bool(assessment.fitted.converged[0]),
        "r2": _number(assessment.r2),
        "rmse": _number(assessment.rmse),
        "aicc": _number(assessment.aicc),
        "holdout_rmse": _number(assessment.holdout_rmse),
        "holdout_excess_se": _number(excess[1]) if excess else None,
        "fits": not assessment.is_baseline and not faults(assessment, rivals),
        "curve": _from(first, assessment.curve),
        "curve_low": _from(first, curve_low),
        "curve_high": _from(first, curve_high),
    }


def _notes(examples: Array, mean: Array) -> list[str]:
    layers = len(mean) - 1
    notes = [
        f"{rule.name} needs {rule.points} layers, the model has {layers}: left out"
        for rule in (*LAWS, *BASELINES)
        if layers < rule.points
    ]
    if len(examples) == 1:
        notes.append("one example only: its intervals have no width and mean nothing")
    if (mean <= _FLOOR).any():
        notes.append(f"means of zero were lifted to {_FLOOR:g}, since laws are fitted to logarithms")
    return notes


def _from(first: int, curve: Array) -> list[float | None]:
    return [None] * (first - 1) + _numbers(curve[first - 1 :])


def _numbers(values: Array) -> list[float | None]:
    return [_number(value) for value in values]


def _number(value: float | None) -> float | None:
    return None if value is None or not np.isfinite(value) else significant(float(value), DIGITS)
