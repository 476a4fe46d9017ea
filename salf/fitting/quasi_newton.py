"""BFGS for many small problems at once.

A scalar optimiser spends its time in the interpreter. Here every round evaluates one trial point of every running
problem, and problems that are done leave the batch. A problem's path does not depend on the others.

The whole inverse Hessian is kept (Nocedal & Wright 2006, algorithm 6.1). The step length is found by Lewis & Overton's
bracketing (2013, Math. Program. 141, algorithm 2.6: weak Wolfe conditions, doubling and bisection), made for BFGS on
objectives with kinks: a Huber loss with a small δ has them, up to a width of δ.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Final

import numpy as np
from numpy.typing import NDArray

from salf.laws import Array

Index = NDArray[np.intp]
Mask = NDArray[np.bool_]
Objective = Callable[[Array, Index], tuple[Array, Array]]
"""(points [p, d], which problems they belong to [p]) → (values [p], gradients [p, d])."""

PATIENCE: Final = 3  # iterations without a noticeable decrease before a problem counts as solved
_SUFFICIENT_DECREASE: Final = 1e-4
_CURVATURE: Final = 0.9
_TRIALS: Final = 20


@dataclass(frozen=True)
class Minima:
    """The end of each problem: points [P, d], values [P], and whether a tolerance was met [P]."""

    points: Array
    values: Array
    converged: Mask


@dataclass
class _Batch:
    """The problems still running; p of them. Each is inside a line search from ``point`` along ``direction``."""

    problem: Index  # [p]
    point: Array  # [p, d]
    value: Array  # [p]
    gradient: Array  # [p, d]
    inverse: Array  # [p, d, d], of the Hessian; NaN before the first step
    idle: Index  # [p] iterations without a noticeable decrease
    iterations: Index  # [p]
    direction: Array  # [p, d]
    slope: Array  # [p]
    low: Array  # [p], the bracket of the step length
    high: Array  # [p]
    step: Array  # [p]
    trials: Index  # [p]
    best_point: Array  # [p, d], of this search
    best_value: Array  # [p]
    best_gradient: Array  # [p, d]

    def keep(self, mask: Mask) -> None:
        for each in fields(self):
            setattr(self, each.name, getattr(self, each.name)[mask])


def minimise(
    objective: Objective,
    starts: Array,
    max_iterations: int = 1000,
    gradient_tolerance: float = 1e-7,
    value_tolerance: float = 1e-9,
) -> Minima:
    """Minimise P problems of d variables from starts [P, d].

    A problem is solved when its largest gradient component is below ``gradient_tolerance``, when its value fell by less
    than ``value_tolerance`` of itself for :data:`PATIENCE` iterations in a row, or when no step along its direction
    lowers it. It has not converged if it starts at a value that is not finite, or when the iterations run out.
    """
    result = Minima(starts.copy(), np.full(len(starts), np.inf), np.zeros(len(starts), dtype=bool))
    batch = _begin(objective, starts)
    searched = np.arange(len(batch.problem))
    while len(batch.problem):
        flat = np.abs(batch.gradient[searched]).max(axis=1, initial=0.0) <= gradient_tolerance
        solved = np.zeros(len(batch.problem), dtype=bool)  # [p]; of the problems whose search has just ended
        solved[searched] = flat | (batch.idle[searched] >= PATIENCE)
        over = solved | (batch.iterations >= max_iterations)
        if over.any():
            ended = batch.problem[over]
            result.points[ended], result.values[ended] = batch.point[over], batch.value[over]
            result.converged[ended] = solved[over]
            searched = (np.cumsum(~over) - 1)[searched[~over[searched]]]
            batch.keep(~over)
            if not len(batch.problem):
                break
        _begin_search(batch, searched)
        searched = np.flatnonzero(_try_a_step(objective, batch))
        _end_search(batch, searched, value_tolerance)
    return result


def _begin(objective: Objective, starts: Array) -> _Batch:
    count, size = starts.shape
    value, gradient = objective(starts, np.arange(count))
    zeros, none = np.zeros(count), np.zeros(count, dtype=np.intp)
    batch = _Batch(
        np.arange(count), starts, value, gradient, np.full((count, size, size), np.nan), none, none,
        np.zeros_like(starts), zeros, zeros, zeros, zeros, none, starts, value, gradient,
    )  # fmt: skip
    batch.keep(np.isfinite(value))  # which copies: no two share memory
    return batch


def _begin_search(batch: _Batch, which: Index) -> None:
    """A direction, −H·g, and an open bracket; steepest descent, one unit long, before the first step."""
    gradient, inverse = batch.gradient[which], batch.inverse[which]
    direction = -(inverse * gradient[:, None, :]).sum(axis=2)
    slope = (direction * gradient).sum(axis=1)
    unusable = ~(slope < 0)  # NaN before the first step; uphill through rounding only
    if unusable.any():
        steepest = gradient[unusable]
        direction[unusable] = -steepest / np.linalg.norm(steepest, axis=1, keepdims=True)
        slope[unusable] = (direction[unusable] * steepest).sum(axis=1)
        batch.inverse[which[unusable]] = np.nan
    batch.direction[which], batch.slope[which] = direction, slope
    batch.low[which], batch.high[which], batch.step[which], batch.trials[which] = 0.0, np.inf, 1.0, 0


def _try_a_step(objective: Objective, batch: _Batch) -> Mask:
    """One trial of every running search; returns those that end with it [p]."""
    trial = batch.point + batch.step[:, None] * batch.direction
    value, gradient = objective(trial, batch.problem)
    enough = value <= batch.value + _SUFFICIENT_DECREASE * batch.step * batch.slope
    better = enough & (value < batch.best_value)
    batch.best_point[better], batch.best_gradient[better] = trial[better], gradient[better]
    batch.best_value[better] = value[better]
    flat = (gradient * batch.direction).sum(axis=1) >= _CURVATURE * batch.slope
    batch.low = np.where(enough, batch.step, batch.low)
    batch.high = np.where(enough, batch.high, batch.step)
    doubled = np.isinf(batch.high)
    batch.step = np.where(doubled, 2 * batch.step, (batch.low + np.where(doubled, 0.0, batch.high)) / 2)
    batch.trials += 1
    return (enough & flat) | (batch.trials >= _TRIALS)


def _end_search(batch: _Batch, which: Index, value_tolerance: float) -> None:
    """Go to the best point of the search, or stay where no step lowered the value."""
    before, after = batch.value[which], batch.best_value[which]
    little = before - after <= value_tolerance * np.abs(before)
    batch.idle[which] = np.where(after >= before, PATIENCE, np.where(little, batch.idle[which] + 1, 0))
    batch.iterations[which] += 1
    steps, changes = batch.best_point[which] - batch.point[which], batch.best_gradient[which] - batch.gradient[which]
    batch.inverse[which] = _updated(batch.inverse[which], steps, changes)
    batch.point[which], batch.value[which] = batch.best_point[which], after
    batch.gradient[which] = batch.best_gradient[which]


def _updated(inverse: Array, steps: Array, changes: Array) -> Array:
    """The BFGS update (6.17) of inverse Hessians [q, d, d]; as they are where the curvature is not positive."""
    curvature, squared = (steps * changes).sum(axis=1), (changes * changes).sum(axis=1)
    usable = curvature > 1e-14 * squared
    share = 1.0 / np.where(usable, curvature, 1.0)
    fresh = usable & np.isnan(inverse[:, 0, 0])
    scale = curvature[fresh] / squared[fresh]  # (6.20): before the first update
    inverse[fresh] = scale[:, None, None] * np.eye(steps.shape[1])
    product = (inverse * changes[:, None, :]).sum(axis=2)
    outer = steps[:, :, None] * product[:, None, :]
    growth = share * (1.0 + share * (changes * product).sum(axis=1))
    own = growth[:, None, None] * (steps[:, :, None] * steps[:, None, :])
    updated = inverse + own - share[:, None, None] * (outer + outer.transpose(0, 2, 1))
    return np.where(usable[:, None, None], updated, inverse)
