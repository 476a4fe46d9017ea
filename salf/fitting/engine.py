"""Fits a law to curves: Huber loss on log residuals, BFGS from a grid of starts.

The procedure is Hoffmann et al. 2022 (arXiv 2203.15556), approach 3: minimise Σ_i ρ_δ(ln ŷ_i − ln y_i) with δ = 1e-3
over (log E, log A, α, ...) from many starts and keep the best end. They use L-BFGS, which with a few parameters has
nothing to save: :mod:`salf.fitting.quasi_newton`. Since δ is far below the residuals of a real trace, the estimator is
almost the least absolute deviation: a layer off the law moves the fit little.

**Hazard: tolerances.** With δ = 1e-3 the objective is of the order of 1e-4, and an optimiser's default absolute
tolerances are met before it has arrived, as Besiroglu et al. 2024 (arXiv 2404.10102) find in the published Chinchilla
fit. Here the loss is *summed* and *divided by δ* (about Σ|r|), the tolerance on the value is relative, and x and y are
counted in units in which both logarithms are of order one.
"""

from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Final

import numpy as np

from salf.fitting.quasi_newton import Index, Mask, minimise
from salf.laws import Array, Law

HUBER_DELTA: Final = 1e-3
SCREENING: Final = 30  # iterations given to every start of a grid before the best of them go on
FINALISTS: Final = 4
_CHUNK: Final = 128  # problems evaluated at a time: their arrays stay in the processor's cache


@dataclass(frozen=True)
class Fit:
    """The best end of C curves."""

    theta: Array  # [C, d]
    loss: Array  # [C], the summed Huber loss of the log residuals over δ (about Σ|r|)
    converged: Mask  # [C], whether the best end met a tolerance
    ends: Array  # [C, S, d], where every start (of a grid: every finalist) ended, best first


def huber(residuals: Array, delta: float = HUBER_DELTA) -> tuple[Array, Array]:
    """Huber's loss over δ, and its derivative: r²/2δ within ±δ, |r| − δ/2 beyond."""
    slope = np.clip(residuals / delta, -1.0, 1.0)
    return slope * (residuals - slope * delta / 2), slope


def fit_law(
    law: Law,
    x: Array,
    y: Array,
    weights: Array | None = None,
    warm: Array | None = None,
    max_iterations: int = 1000,
    held: Array | None = None,
) -> Fit:
    """Fit one law to C curves y [C, n] at x [n] or [n, variables], all positive.

    ``weights`` [C, n] are of the points' losses; a point of weight 0 is left out. ``warm`` are starts [C, S, d], or
    [1, S, d] for all curves, in place of the law's grid. ``held`` [C, d] is θ where it is known and stays, NaN where it
    is fitted, in the same places for all curves.
    """
    x_unit = np.log(x.reshape(len(x), -1)).max(axis=0)
    log_y = np.log(y)
    y_unit = float(log_y.mean())
    starts = np.array([list(product(*law.starts))]) if warm is None else _in_units(law, warm, -x_unit, -y_unit)
    free = np.ones(len(law.parameters)) if held is None else np.isnan(held[0]).astype(float)
    if held is not None:
        starts = np.where(free, starts, law.from_units(held, -x_unit, -y_unit)[:, None])
    weights = np.ones_like(y) if weights is None else weights
    data = _Data(law, x / np.exp(x_unit), log_y - y_unit, weights, free)
    if warm is None:
        starts = _run(data, starts, SCREENING).ends[:, :FINALISTS]
    fit = _run(data, starts, max_iterations)
    return replace(fit, theta=law.from_units(fit.theta, x_unit, y_unit), ends=_in_units(law, fit.ends, x_unit, y_unit))


@dataclass(frozen=True)
class _Data:
    law: Law
    x: Array
    log_y: Array  # [C, n]
    weights: Array  # [C, n]
    free: Array  # [d], 1 for parameters that are fitted, 0 for those that are known

    def objective(self, starts: int, theta: Array, problems: Index) -> tuple[Array, Array]:
        """Huber loss and gradient of chosen problems; problem number p belongs to curve p // starts."""
        ends = range(_CHUNK, len(problems), _CHUNK)
        parts = zip(np.split(theta, ends), np.split(problems // starts, ends), strict=True)
        values, gradients = zip(*(self._part(*part) for part in parts), strict=True)
        return np.concatenate(values), np.concatenate(gradients)

    def _part(self, theta: Array, curve: Index) -> tuple[Array, Array]:
        weights = self.weights[curve]
        with np.errstate(over="ignore", invalid="ignore"):  # a trial step far out: its value is refused
            value, jacobian = self.law.log_curve(theta, self.x)
            loss, slope = huber(value - self.log_y[curve])
            total = (weights * loss).sum(axis=1)
            gradient = np.einsum("pn,pnd->pd", weights * slope, jacobian) * self.free
        return np.where(np.isfinite(total) & np.isfinite(gradient).all(axis=1), total, np.inf), gradient


def _in_units(law: Law, theta: Array, x_unit: Array, y_unit: float) -> Array:
    return law.from_units(theta.reshape(-1, theta.shape[-1]), x_unit, y_unit).reshape(theta.shape)


def _run(data: _Data, starts: Array, max_iterations: int) -> Fit:
    """Minimise from every start [C or 1, S, d] of every curve; all in the engine's units."""
    shape = (len(data.log_y), *starts.shape[1:])
    problems = np.broadcast_to(starts, shape).reshape(-1, shape[2])
    minima = minimise(partial(data.objective, shape[1]), problems, max_iterations)
    values = minima.values.reshape(shape[:2])
    order = np.argsort(values, axis=1, kind="stable")
    ends = np.take_along_axis(minima.points.reshape(shape), order[:, :, None], axis=1)
    converged = np.take_along_axis(minima.converged.reshape(shape[:2]), order, axis=1)
    return Fit(ends[:, 0], values.min(axis=1), converged[:, 0], ends)
