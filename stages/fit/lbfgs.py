"""L-BFGS for many small problems at once.

A law has three to five parameters and a curve some thirty points: a scalar optimiser spends its time in
the interpreter, not in arithmetic. Here all starts of all resamples take their steps together, each
with its own direction, step length and memory; those that are done leave the batch.

The method is Nocedal & Wright 2006, algorithm 7.4 (two-loop recursion). The step length is found by
Lewis & Overton's bracketing (2013, Math. Program. 141, algorithm 2.6: weak Wolfe conditions, doubling and
bisection), made for objectives with kinks: a Huber loss with a small δ has them, up to a width of δ.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from stages.common.laws import Array

Index = NDArray[np.intp]
Mask = NDArray[np.bool_]
Objective = Callable[[Array, Index], tuple[Array, Array]]
"""(points [p, d], which problems they belong to [p]) → (values [p], gradients [p, d])."""

MEMORY: Final = 10
PATIENCE: Final = 3  # iterations without a noticeable decrease before a problem counts as solved
_SUFFICIENT_DECREASE: Final = 1e-4
_CURVATURE: Final = 0.9
_TRIALS: Final = 20


@dataclass(frozen=True)
class Minima:
    """Where each problem ended: points [P, d], values [P], and whether a tolerance was met [P]."""

    points: Array
    values: Array
    converged: Mask


@dataclass
class _Batch:
    """The problems still running; p of them."""

    problem: Index  # [p]
    point: Array  # [p, d]
    value: Array  # [p]
    gradient: Array  # [p, d]
    steps: Array  # [memory, p, d], newest last
    changes: Array  # [memory, p, d] of the gradient
    idle: NDArray[np.intp]  # [p] iterations without a noticeable decrease

    def keep(self, mask: Mask) -> None:
        self.problem, self.point, self.value = self.problem[mask], self.point[mask], self.value[mask]
        self.gradient, self.idle = self.gradient[mask], self.idle[mask]
        self.steps, self.changes = self.steps[:, mask], self.changes[:, mask]


def minimise(
    objective: Objective,
    starts: Array,
    max_iterations: int = 1000,
    gradient_tolerance: float = 1e-7,
    value_tolerance: float = 1e-9,
) -> Minima:
    """Minimise P problems of d variables from starts [P, d].

    A problem is solved when its largest gradient component is below ``gradient_tolerance``, when its value fell
    by less than ``value_tolerance`` of itself for :data:`PATIENCE` iterations in a row, or when no
    step along its direction lowers it (the resolution of doubles, or a kink). It has not converged if it
    starts at a value that is not finite, or when the iterations run out.
    """
    count, size = starts.shape
    result = Minima(starts.copy(), np.full(count, np.inf), np.zeros(count, dtype=bool))
    everything = np.arange(count)
    value, gradient = objective(starts, everything)
    memory = np.zeros((0, count, size))
    batch = _Batch(everything, starts.copy(), value, gradient, memory, memory, np.zeros(count, dtype=np.intp))
    batch.keep(np.isfinite(value))
    for _ in range(max_iterations):
        done = (np.abs(batch.gradient).max(axis=1, initial=0.0) <= gradient_tolerance) | (batch.idle >= PATIENCE)
        _record(result, batch, done)
        batch.keep(~done)
        if not len(batch.problem):
            return result
        _advance(objective, batch, value_tolerance)
    _record(result, batch, np.ones(len(batch.problem), dtype=bool), converged=False)
    return result


def _record(result: Minima, batch: _Batch, which: Mask, converged: bool = True) -> None:
    problems = batch.problem[which]
    result.points[problems] = batch.point[which]
    result.values[problems] = batch.value[which]
    result.converged[problems] = converged


def _advance(objective: Objective, batch: _Batch, value_tolerance: float) -> None:
    """One step of every running problem."""
    direction = _direction(batch)
    point, value, gradient = _search(objective, batch, direction)
    stuck = value >= batch.value
    little = batch.value - value <= value_tolerance * np.abs(batch.value)
    batch.idle = np.where(stuck, PATIENCE, np.where(little, batch.idle + 1, 0))
    batch.steps = np.concatenate([batch.steps, (point - batch.point)[None]])[-MEMORY:]
    batch.changes = np.concatenate([batch.changes, (gradient - batch.gradient)[None]])[-MEMORY:]
    batch.point, batch.value, batch.gradient = point, value, gradient


def _direction(batch: _Batch) -> Array:
    """The two-loop recursion; steepest descent, one unit long, for a problem without a usable memory."""
    curvature = np.einsum("mpd,mpd->mp", batch.steps, batch.changes)
    usable = curvature > 1e-14 * np.einsum("mpd,mpd->mp", batch.changes, batch.changes)
    inverse = np.where(usable, 1.0 / np.where(usable, curvature, 1.0), 0.0)  # 0: this pair changes nothing
    vector = batch.gradient.copy()
    shares = np.zeros_like(inverse)
    for i in reversed(range(len(inverse))):
        shares[i] = inverse[i] * np.einsum("pd,pd->p", batch.steps[i], vector)
        vector -= shares[i, :, None] * batch.changes[i]
    vector *= _initial_scale(batch, inverse)[:, None]
    for i in range(len(inverse)):
        again = inverse[i] * np.einsum("pd,pd->p", batch.changes[i], vector)
        vector += (shares[i] - again)[:, None] * batch.steps[i]
    uphill = np.einsum("pd,pd->p", vector, batch.gradient) <= 0  # possible through rounding only
    unit = batch.gradient / np.linalg.norm(batch.gradient, axis=1, keepdims=True)
    return -np.where(uphill[:, None], unit, vector)


def _initial_scale(batch: _Batch, inverse: Array) -> Array:
    """Nocedal & Wright (7.20): s·y / y·y of the newest usable pair; without one, a step of length one."""
    scale = 1.0 / np.linalg.norm(batch.gradient, axis=1)
    for i in range(len(inverse)):
        usable = inverse[i] > 0
        squared = np.einsum("pd,pd->p", batch.changes[i], batch.changes[i])
        scale = np.where(usable, 1.0 / np.where(usable, inverse[i] * squared, 1.0), scale)
    return scale


def _search(objective: Objective, batch: _Batch, direction: Array) -> tuple[Array, Array, Array]:
    """The new point, value and gradient of every problem; the old ones where no step lowers the value."""
    slope = np.einsum("pd,pd->p", direction, batch.gradient)
    low, high, step = np.zeros(len(slope)), np.full(len(slope), np.inf), np.ones(len(slope))
    point, value, gradient = batch.point.copy(), batch.value.copy(), batch.gradient.copy()
    open_ = np.arange(len(slope))
    for _ in range(_TRIALS):
        trial = batch.point[open_] + step[open_, None] * direction[open_]
        new_value, new_gradient = objective(trial, batch.problem[open_])
        enough = new_value <= batch.value[open_] + _SUFFICIENT_DECREASE * step[open_] * slope[open_]
        better = enough & (new_value < value[open_])
        kept = open_[better]
        point[kept], value[kept], gradient[kept] = trial[better], new_value[better], new_gradient[better]
        flat = np.einsum("pd,pd->p", new_gradient, direction[open_]) >= _CURVATURE * slope[open_]
        low[open_[enough]] = step[open_[enough]]
        high[open_[~enough]] = step[open_[~enough]]
        open_ = open_[~(enough & flat)]
        if not len(open_):
            break
        doubled = np.isinf(high[open_])
        step[open_] = np.where(doubled, 2 * step[open_], (low[open_] + np.where(doubled, 0, high[open_])) / 2)
    return point, value, gradient
