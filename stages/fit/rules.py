"""Rules that describe a whole curve over spaces 1..n, under one interface: laws, a law with an onset, no law.

A rule fits C curves at once and predicts any space, also ones beyond those it was fitted to. θ is an
array [C, d] of the rule's own; only the rule reads it.

**The onset.** A trace may wander for most of the depth and obey a law only after some space k0. Fitting
spaces k0..L alone would make criteria incomparable (other data at every k0, and any law is perfect on four
points). :class:`TailRule` therefore describes *every* space: a plateau C before k0, the power law from
k0 on. Every k0 is tried, the one of the smallest total loss stays, and k0 and C count as parameters.
Resamples of a curve try the k0 that came close on the curve itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Protocol

import numpy as np

from salf.fitting.engine import Fit, fit_law
from salf.fitting.quasi_newton import Mask
from salf.laws import BROKEN_POWER, CONSTANT, EXPONENTIAL, POWER, Array, Law

WARM_STARTS: Final = 3  # of a resample's fit: the best distinct-start ends of the curve itself
WARM_ONSETS: Final = 6  # onsets that survive the scan: those of the smallest loss
SCAN: Final = 30  # iterations of the scan, after the engine's screening
PLATEAU: Final = 2  # fewest spaces before an onset
TAIL: Final = 5  # fewest spaces from an onset on: the law has three parameters


class Fitted(NamedTuple):
    """A rule fitted to C curves: θ [C, d], convergence [C], and ``warm``, for fitting curves like these."""

    theta: Array
    converged: Mask
    warm: object


class Rule(Protocol):
    """What every rule can do."""

    @property
    def name(self) -> str:
        """As the artifacts name it."""

    @property
    def formula(self) -> str:
        """As a reader sees it."""

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the natural parameters."""

    @property
    def points(self) -> int:
        """Fewest spaces that it can be fitted to."""

    def fit(self, curves: Array, warm: object = None) -> Fitted:
        """Fit curves [C, n] over spaces 1..n; ``warm`` comes from an earlier fit of a curve of this length."""

    def curve(self, theta: Array, spaces: Array) -> Array:
        """Predictions [C, m] at spaces [m]."""

    def natural(self, theta: Array) -> Array:
        """Values [C, len(parameters)] of the named parameters."""

    def first_space(self, theta: Array) -> int:
        """The space from which on the rule's law holds, for one θ [d]."""

    def degrees(self, theta: Array) -> int:
        """Parameters that the data chose, for one θ [d]."""


@dataclass(frozen=True)
class LawRule:
    """A law over the whole depth."""

    law: Law
    points: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "points", len(self.law.parameters) + 1)

    @property
    def name(self) -> str:
        """As the artifacts name it."""
        return self.law.name

    @property
    def formula(self) -> str:
        """As a reader sees it."""
        return self.law.formula

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the natural parameters."""
        return self.law.parameters

    def fit(self, curves: Array, warm: object = None) -> Fitted:
        """See :class:`Rule`."""
        fit = fit_law(self.law, _spaces(curves), curves, warm=warm if isinstance(warm, np.ndarray) else None)
        return Fitted(fit.theta, fit.converged, fit.ends[:1, :WARM_STARTS])

    def curve(self, theta: Array, spaces: Array) -> Array:
        """See :class:`Rule`."""
        return self.law.curve(theta, spaces)

    def natural(self, theta: Array) -> Array:
        """See :class:`Rule`."""
        return self.law.natural(theta)

    def first_space(self, theta: Array) -> int:  # noqa: ARG002 (the same for all)
        """See :class:`Rule`."""
        return 1

    def degrees(self, theta: Array) -> int:
        """See :class:`Rule`."""
        return len(theta)


class _Onsets(NamedTuple):
    """Onsets worth trying, and starts for each: plateau [O, 1], law [O, d]."""

    onsets: Array
    plateaus: Array
    thetas: Array


class TailRule:
    """A plateau, then a power law from an onset on. θ = (ln C, k0, θ of the law)."""

    name = "power_tail"
    formula = "C for k < k0; E + A·k^−α for k ≥ k0"
    parameters = ("plateau", "onset", *POWER.parameters)
    points = PLATEAU + TAIL

    def fit(self, curves: Array, warm: object = None) -> Fitted:
        """See :class:`Rule`. Without ``warm`` all onsets are scanned roughly and the likely ones fitted to the end."""
        known = warm if isinstance(warm, _Onsets) else self._scan(curves)
        plateau, tail = self._fit_onsets(curves, known.onsets, known.plateaus, known.thetas)
        tried = len(known.onsets)
        best = (plateau.loss + tail.loss).reshape(-1, tried).argmin(axis=1)
        chosen = np.arange(len(curves)) * tried + best
        theta = np.column_stack([plateau.theta[chosen], known.onsets[best], tail.theta[chosen]])
        return Fitted(theta, plateau.converged[chosen] & tail.converged[chosen], known)

    def _scan(self, curves: Array) -> _Onsets:
        onsets = np.arange(PLATEAU + 1, curves.shape[1] - TAIL + 2, dtype=float)
        mean = curves.mean(axis=0, keepdims=True)
        plateau, tail = self._fit_onsets(mean, onsets, max_iterations=SCAN)
        likely = np.sort(np.argsort(plateau.loss + tail.loss, kind="stable")[:WARM_ONSETS])
        return _Onsets(onsets[likely], plateau.theta[likely], tail.theta[likely])

    def _fit_onsets(
        self,
        curves: Array,
        onsets: Array,
        plateaus: Array | None = None,
        thetas: Array | None = None,
        max_iterations: int = 1000,
    ) -> tuple[Fit, Fit]:
        """Plateau and law for every (curve, onset) pair, curve by curve."""
        count, spaces = len(curves), _spaces(curves)
        in_tail = np.tile((spaces >= onsets[:, None]).astype(float), (count, 1))
        repeated = np.repeat(curves, len(onsets), axis=0)
        return (
            fit_law(CONSTANT, spaces, repeated, 1 - in_tail, _starts(plateaus, count), max_iterations),
            fit_law(POWER, spaces, repeated, in_tail, _starts(thetas, count), max_iterations),
        )

    def curve(self, theta: Array, spaces: Array) -> Array:
        """See :class:`Rule`."""
        before = spaces < theta[:, 1:2]
        return np.where(before, CONSTANT.curve(theta[:, :1], spaces), POWER.curve(theta[:, 2:], spaces))

    def natural(self, theta: Array) -> Array:
        """See :class:`Rule`."""
        return np.column_stack([np.exp(theta[:, 0]), theta[:, 1], POWER.natural(theta[:, 2:])])

    def first_space(self, theta: Array) -> int:
        """See :class:`Rule`."""
        return int(theta[1])

    def degrees(self, theta: Array) -> int:
        """See :class:`Rule`."""
        return len(theta)


class IsotonicRule:
    """No law: the non-increasing sequence nearest to the logarithms. θ = ln of its levels, [C, n].

    Beyond its last space it stays at the last level: what one predicts who knows no law. Its degrees of
    freedom are the number of its levels (Meyer & Woodroofe 2000, Annals of Statistics 28).
    """

    name = "isotonic"
    formula = "non-increasing, no law"
    parameters: tuple[str, ...] = ("levels",)
    points = 1

    def fit(self, curves: Array, warm: object = None) -> Fitted:  # noqa: ARG002 (the fit is direct)
        """See :class:`Rule`."""
        levels = np.array([non_increasing(row) for row in np.log(curves).tolist()])
        return Fitted(levels, np.ones(len(curves), dtype=bool), None)

    def curve(self, theta: Array, spaces: Array) -> Array:
        """See :class:`Rule`."""
        return np.exp(theta[:, np.clip(spaces.astype(int) - 1, 0, theta.shape[1] - 1)])

    def natural(self, theta: Array) -> Array:
        """See :class:`Rule`."""
        return 1.0 + (np.diff(theta, axis=1) < 0).sum(axis=1, keepdims=True)

    def first_space(self, theta: Array) -> int:  # noqa: ARG002 (the same for all)
        """See :class:`Rule`."""
        return 1

    def degrees(self, theta: Array) -> int:
        """See :class:`Rule`."""
        return int(self.natural(theta[None])[0, 0])


def non_increasing(values: Sequence[float]) -> list[float]:
    """The nearest non-increasing sequence in least squares, by pooling adjacent violators (Ayer et al. 1955).

    A dozen lines instead of scikit-learn's, whose import takes longer than everything else that this stage does.
    """
    pools: list[tuple[float, int]] = []  # mean and size
    for value in values:
        mean, size = value, 1
        while pools and pools[-1][0] <= mean:
            before, count = pools.pop()
            mean = (before * count + mean * size) / (count + size)
            size += count
        pools.append((mean, size))
    return [mean for mean, size in pools for _ in range(size)]


def _spaces(curves: Array) -> Array:
    return np.arange(1, curves.shape[1] + 1, dtype=float)


def _starts(seeds: Array | None, count: int) -> Array | None:
    """One start for every (curve, onset) pair, [count · O, 1, d]."""
    return None if seeds is None else np.tile(seeds[:, None, :], (count, 1, 1))


CONSTANT_RULE: Final = LawRule(CONSTANT)
POWER_RULE: Final[Rule] = LawRule(POWER)
LAWS: Final[tuple[Rule, ...]] = (POWER_RULE, TailRule(), LawRule(EXPONENTIAL), LawRule(BROKEN_POWER))
BASELINES: Final[tuple[Rule, ...]] = (IsotonicRule(), CONSTANT_RULE)
