"""Functional forms of the scaling laws: the curve, its gradient, its units and where a fit starts.

That a law over depth estimates the gain of each layer is from the abstract; its form is not public. A power law over
depth is ours. Kaplan et al. 2020 (arXiv 2001.08361) describe the loss of a model of N parameters by a power law;
Hoffmann et al. 2022 (arXiv 2203.15556) add what no size removes, L(N) = E + A·N^−α. The first k of a decoder's layers
are a sub-model of size N_k ∝ k, so a trace over depth is such a curve in k (:data:`POWER`). Its rivals:

- :data:`EXPONENTIAL`, E + A·e^(−ρk): every layer removes the same *share* of what is left;
- :data:`BROKEN_POWER`: one power law up to a break, another above it: Caballero et al. 2022 (arXiv 2210.14891) with one
  break and no E. Its smoothness is fixed: a curve of some thirty points does not determine it, and the second slope
  does E's work;
- :data:`CONSTANT`: depth explains nothing. The bar that every law has to clear.

:data:`JOINT` is Zhang et al.'s law for fine-tuning (arXiv 2402.17193, eq. 1): a factor X, such as what is trained, and
the data D lower the loss together. In its rival :data:`ADDITIVE`, the form of Hoffmann et al., each has a term.

All are fitted to logarithms: a sum of positive terms is a log-sum-exp of the terms' logarithms u_j, linear in θ, so
d ln ŷ / dθ = Σ_j w_j · du_j/dθ with the softmax weights w_j = e^(u_j) / ŷ. For α → 0, E and A trade against each other
freely, and their intervals span decades.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

BREAK_WIDTH: Final = 0.1  # of the broken power law's transition, in ln k: about ± one layer in ten
_LARGEST_LOG: Final = 700.0  # e^709 is the largest double


@dataclass(frozen=True)
class Law:
    """A family of curves ŷ = f(x; θ) over P parameter vectors at once.

    Attributes:
        log_curve: (θ [P, d], x [n] or [n, variables]) → (ln ŷ [P, n], d ln ŷ / dθ [P, n, d]).
        from_units: (θ [P, d], ln of x's units [variables], ln of y's unit) → θ of the same curve when x and
            y, so far counted in those units, are counted in ones. Negated units give the inverse.
        starts: values of each θ from which fits start, in every combination, in the engine's units: y relative to its
            geometric mean, x relative to its largest value. An amplitude is then the term's size at the deepest space.
    """

    name: str
    formula: str
    parameters: tuple[str, ...]  # names of the natural ones, in the order of θ
    logarithmic: tuple[bool, ...]  # for each, whether θ holds its natural logarithm
    log_curve: Callable[[Array, Array], tuple[Array, Array]]
    from_units: Callable[[Array, Array, float], Array]
    starts: tuple[tuple[float, ...], ...]

    def natural(self, theta: Array) -> Array:
        """Natural parameters [..., d] of θ [..., d]."""
        return np.where(self.logarithmic, np.exp(np.clip(theta, -_LARGEST_LOG, _LARGEST_LOG)), theta)

    def curve(self, theta: Array, x: Array) -> Array:
        """ŷ [P, n] at x [n] or [n, variables] for θ [P, d]."""
        return np.asarray(np.exp(np.minimum(self.log_curve(theta, x)[0], _LARGEST_LOG)))


def _log_sum(floor: Array, term: Array) -> tuple[Array, Array, Array]:
    """ln(e^floor + e^term) [P, n] of a floor [P, 1] and a term [P, n], and the softmax weight of each."""
    largest = np.maximum(floor, term)
    of_floor, of_term = np.exp(floor - largest), np.exp(term - largest)
    total = of_floor + of_term
    return largest + np.log(total), of_floor / total, of_term / total


def _decay(theta: Array, *steps: Array) -> tuple[Array, Array]:
    """ln(E + A·e^(−Σ ρ·step)): a power law when the steps [n] are ln x, an exponential one when they are x."""
    floor, term = theta[:, :1], theta[:, 1:2]
    for place, step in enumerate(steps, start=2):
        term = term - theta[:, place : place + 1] * step
    value, of_floor, of_term = _log_sum(floor, term)
    return value, _gradient(of_floor, of_term, *(-of_term * step for step in steps))


def _gradient(*parts: Array) -> Array:
    """Join d ln ŷ / dθ [P, n, d] from its d parts [P, n]; a parameter's points are adjacent in memory."""
    return np.stack(parts).transpose(1, 2, 0)


def _power(theta: Array, x: Array) -> tuple[Array, Array]:
    return _decay(theta, *np.log(x.reshape(len(x), -1)).T)


def _power_units(theta: Array, x_unit: Array, y_unit: float) -> Array:
    amplitude = theta[:, 1:2] + y_unit + theta[:, 2:] @ x_unit[:, None]
    return np.column_stack([theta[:, 0] + y_unit, amplitude, theta[:, 2:]])


def _additive(theta: Array, x: Array) -> tuple[Array, Array]:
    factor, data = np.log(x).T
    floor, of_factor, of_data, alpha, beta = (theta[:, i : i + 1] for i in range(5))
    rest, share_floor, share_factor = _log_sum(floor, of_factor - alpha * factor)
    value, share_rest, share_data = _log_sum(rest, of_data - beta * data)
    share_floor, share_factor = share_rest * share_floor, share_rest * share_factor
    return value, _gradient(share_floor, share_factor, share_data, -share_factor * factor, -share_data * data)


def _additive_units(theta: Array, x_unit: Array, y_unit: float) -> Array:
    return np.column_stack([theta[:, :1] + y_unit, theta[:, 1:3] + y_unit + theta[:, 3:] * x_unit, theta[:, 3:]])


def _exponential_units(theta: Array, x_unit: Array, y_unit: float) -> Array:
    return np.column_stack([theta[:, :2] + y_unit, theta[:, 2] * np.exp(-x_unit[0])])


def _broken_power(theta: Array, x: Array) -> tuple[Array, Array]:
    amplitude, before, after, at = (theta[:, i : i + 1] for i in range(4))
    depth = np.log(x)
    beyond = (depth - at) / BREAK_WIDTH
    rise, _, share_above = _log_sum(np.zeros_like(at), beyond)
    bend = BREAK_WIDTH * rise  # 0 well before the break, ln k − ln k_b well after it
    value = amplitude - before * (depth - bend) - after * bend
    return value, _gradient(np.ones_like(bend), bend - depth, -bend, (after - before) * share_above)


def _broken_power_units(theta: Array, x_unit: Array, y_unit: float) -> Array:
    amplitude, before, after, at = theta.T
    return np.stack([amplitude + y_unit + before * x_unit[0], before, after, at + x_unit[0]], axis=1)


def _constant(theta: Array, x: Array) -> tuple[Array, Array]:
    value = np.broadcast_to(theta, (len(theta), len(x)))
    return value, np.ones((*value.shape, 1))


POWER: Final = Law(
    "power",
    "E + A·k^−α",
    ("E", "A", "alpha"),
    (True, True, False),
    _power,
    _power_units,
    ((-4.0, -0.3), (-5.0, -0.7), (0.2, 1.0, 3.0)),
)
EXPONENTIAL: Final = Law(
    "exponential",
    "E + A·e^(−ρ·k)",
    ("E", "A", "rho"),
    (True, True, False),
    _decay,
    _exponential_units,
    ((-4.0, -0.3), (-1.0, 1.0), (0.3, 2.0, 10.0, 30.0)),
)
BROKEN_POWER: Final = Law(
    "broken_power",
    f"A·k^−α·(1 + (k/k_b)^(1/w))^(−w·(α′−α)), w = {BREAK_WIDTH}",
    ("A", "alpha", "alpha_after", "break"),
    (True, False, False, True),
    _broken_power,
    _broken_power_units,
    ((0.0,), (0.0, 0.5), (0.0, 0.5, 2.0), (-2.5, -1.5, -0.7, -0.3, -0.15)),
)
CONSTANT: Final = Law("constant", "C", ("C",), (True,), _constant, lambda theta, _, y_unit: theta + y_unit, ((0.0,),))
JOINT: Final = Law(
    "joint",
    "E + A·X^−α·D^−β",
    ("E", "A", "alpha", "beta"),
    (True, True, False, False),
    _power,
    _power_units,
    ((-4.0, -0.7, -0.2), (-4.0, -1.0), (0.1, 0.5, 1.5), (0.1, 0.5)),
)
ADDITIVE: Final = Law(
    "additive",
    "E + A·X^−α + B·D^−β",
    ("E", "A", "B", "alpha", "beta"),
    (True, True, True, False, False),
    _additive,
    _additive_units,
    ((-1.0, -0.3), (-9.0, -4.0), (-9.0, -4.0), (0.2, 0.5, 1.0), (0.2, 0.5, 1.0)),
)
