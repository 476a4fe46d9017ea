"""Forms that describe a whole curve over spaces 1..n: laws, a law with an onset, and no law.

A form fits C curves at once and predicts any space, also beyond those it was fitted to. θ is an array [C, d] that
only the form reads.

**The onset** (ours). A trace may obey a law only from some space k0 on. :class:`_TailForm` describes *every* space, so
that criteria stay comparable: a plateau C before k0, the power law from k0 on. Every k0 is tried, the one of the
smallest total loss stays, and k0 and C count as parameters. Resamples try the k0 that came close on the curve itself.
"""

from abc import ABC, abstractmethod
from functools import partial
from typing import Any, Final, NamedTuple

import numpy as np
from scipy.optimize import isotonic_regression

from salf.fitting.engine import Fit, fit_law
from salf.fitting.quasi_newton import Mask
from salf.laws import BROKEN_POWER, CONSTANT, EXPONENTIAL, POWER, Array, Law

WARM_STARTS: Final = 3  # of a resample's fit: the best distinct-start ends of the curve itself
WARM_ONSETS: Final = 6  # onsets that survive the scan: those of the smallest loss
SCAN: Final = 30  # iterations of the scan, after the engine's screening
PLATEAU: Final = 2  # fewest spaces before an onset
TAIL: Final = 5  # fewest spaces from an onset on: the law has three parameters


class Fitted(NamedTuple):
    """A form fitted to C curves: θ [C, d], convergence [C], and ``warm``, for fitting curves like these."""

    theta: Array
    converged: Mask
    warm: Any


class Form(ABC):
    """The interface of every form; its name, formula and natural parameters are as the artifacts show them."""

    name: str
    formula: str
    parameters: tuple[str, ...]
    points: int  # fewest spaces that it can be fitted to

    @abstractmethod
    def fit(self, curves: Array, warm: Any = None) -> Fitted:
        """Fit curves [C, n] over spaces 1..n; ``warm`` comes from an earlier fit of a curve of this length."""

    @abstractmethod
    def curve(self, theta: Array, spaces: Array) -> Array:
        """Predictions [C, m] at spaces [m]."""

    @abstractmethod
    def natural(self, theta: Array) -> Array:
        """Values [C, len(parameters)] of the named parameters."""

    def first_space(self, theta: Array) -> int:  # noqa: ARG002 (most hold over the whole depth)
        """The space from which on the form's law holds, for one θ [d]."""
        return 1

    def degrees(self, theta: Array) -> int:
        """Parameters that the data chose, for one θ [d]."""
        return len(theta)


class _LawForm(Form):
    """A law over the whole depth, or from a later space ``first`` on: its curves then begin there."""

    def __init__(self, law: Law, first: int = 1) -> None:
        self.law, self.name, self.formula, self.parameters = law, law.name, law.formula, law.parameters
        self.points, self._before = len(law.parameters) + 1, first - 1

    def fit(self, curves: Array, warm: Any = None) -> Fitted:
        fit = fit_law(self.law, _spaces(curves) + self._before, curves, warm=warm)
        return Fitted(fit.theta, fit.converged, fit.ends[:1, :WARM_STARTS])

    def curve(self, theta: Array, spaces: Array) -> Array:
        return self.law.curve(theta, spaces + self._before)

    def natural(self, theta: Array) -> Array:
        return self.law.natural(theta)


class _Onsets(NamedTuple):
    """Onsets worth trying [O], and starts for each: plateau [O, 1], law [O, d]; ``None``: the laws' own grids."""

    onsets: Array
    plateaus: Array | None = None
    thetas: Array | None = None


class _TailForm(Form):
    """A plateau, then a power law from an onset on. θ = (ln C, k0, θ of the law)."""

    name = "power_tail"
    formula = "C for k < k0; E + A·k^−α for k ≥ k0"
    parameters = ("plateau", "onset", *POWER.parameters)
    points = PLATEAU + TAIL

    def fit(self, curves: Array, warm: Any = None) -> Fitted:
        # Without `warm` all onsets are scanned roughly and the likely ones fitted to the end.
        known: _Onsets = warm or self._scan(curves)
        plateau, tail = self._fit_onsets(curves, known)
        tried = len(known.onsets)
        best = (plateau.loss + tail.loss).reshape(-1, tried).argmin(axis=1)
        chosen = np.arange(len(curves)) * tried + best
        theta = np.column_stack([plateau.theta[chosen], known.onsets[best], tail.theta[chosen]])
        return Fitted(theta, plateau.converged[chosen] & tail.converged[chosen], known)

    def _scan(self, curves: Array) -> _Onsets:
        onsets = np.arange(PLATEAU + 1, curves.shape[1] - TAIL + 2, dtype=float)
        mean = curves.mean(axis=0, keepdims=True)
        plateau, tail = self._fit_onsets(mean, _Onsets(onsets), SCAN)
        likely = np.sort(np.argsort(plateau.loss + tail.loss, kind="stable")[:WARM_ONSETS])
        return _Onsets(onsets[likely], plateau.theta[likely], tail.theta[likely])

    def _fit_onsets(self, curves: Array, known: _Onsets, max_iterations: int = 1000) -> tuple[Fit, Fit]:
        """Plateau and law for every (curve, onset) pair, curve by curve."""
        onsets, *seeds = known
        count, spaces = len(curves), _spaces(curves)
        in_tail = np.tile((spaces >= onsets[:, None]).astype(float), (count, 1))  # [C·O, n]
        repeated = np.repeat(curves, len(onsets), axis=0)
        starts = [None if seed is None else np.tile(seed[:, None], (count, 1, 1)) for seed in seeds]  # [C·O, 1, d]
        return (
            fit_law(CONSTANT, spaces, repeated, 1 - in_tail, starts[0], max_iterations),
            fit_law(POWER, spaces, repeated, in_tail, starts[1], max_iterations),
        )

    def curve(self, theta: Array, spaces: Array) -> Array:
        before = spaces < theta[:, 1:2]
        return np.where(before, CONSTANT.curve(theta[:, :1], spaces), POWER.curve(theta[:, 2:], spaces))

    def natural(self, theta: Array) -> Array:
        return np.column_stack([np.exp(theta[:, 0]), theta[:, 1], POWER.natural(theta[:, 2:])])

    def first_space(self, theta: Array) -> int:
        return int(theta[1])


class _IsotonicForm(Form):
    """No law: the non-increasing sequence nearest to the logarithms. θ = ln of its levels, [C, n].

    Beyond its last space it stays at the last level: the prediction of one who knows no law. Its degrees of freedom
    are the number of its levels (Meyer & Woodroofe 2000, Annals of Statistics 28).
    """

    name = "isotonic"
    formula = "non-increasing, no law"
    parameters = ("levels",)
    points = 1

    def fit(self, curves: Array, warm: Any = None) -> Fitted:  # noqa: ARG002 (the fit is direct)
        levels = np.array([isotonic_regression(row, increasing=False).x for row in np.log(curves)])
        return Fitted(levels, np.ones(len(curves), dtype=bool), None)

    def curve(self, theta: Array, spaces: Array) -> Array:
        return np.exp(theta[:, np.clip(spaces.astype(int) - 1, 0, theta.shape[1] - 1)])

    def natural(self, theta: Array) -> Array:
        return 1.0 + (np.diff(theta, axis=1) < 0).sum(axis=1, keepdims=True)

    def degrees(self, theta: Array) -> int:
        return int(self.natural(theta[None])[0, 0])


def _spaces(curves: Array) -> Array:
    return np.arange(1, curves.shape[1] + 1, dtype=float)


POWER_FORM: Final = _LawForm(POWER)
power_from = partial(_LawForm, POWER)  # the power law from a space on, for curves that begin there
LAWS: Final[tuple[Form, ...]] = (POWER_FORM, _TailForm(), _LawForm(EXPONENTIAL), _LawForm(BROKEN_POWER))
BASELINES: Final[tuple[Form, ...]] = (_IsotonicForm(), _LawForm(CONSTANT))
