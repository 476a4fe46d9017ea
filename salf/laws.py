"""Functional forms of the scaling laws: the curve, its gradient and its units. Fitting is elsewhere.

Why these forms. Kaplan et al. 2020 (arXiv 2001.08361) describe the loss of a model of N parameters by
a power law; Hoffmann et al. 2022 (arXiv 2203.15556) add what no size removes, L(N) = E + A·N^−α. The
first k of a decoder's layers are a sub-model of size N_k ∝ k, so that a trace over depth is such a
curve in k; the constant of proportionality is absorbed by A (:data:`POWER`). Its rivals:

- :data:`EXPONENTIAL`, E + A·e^(−ρk): every layer removes the same *share* of what is left, not a share
  that falls with depth;
- :data:`BROKEN_POWER`: one power law up to a break, another after it: Caballero et al. 2022 (arXiv
  2210.14891) with one break and no E. Its smoothness is fixed: a curve of some thirty points does not
  determine it, and the second slope does E's work;
- :data:`CONSTANT`: depth explains nothing. The bar that every law has to clear.

:data:`CHINCHILLA` is Hoffmann's law of two variables, by which the fitting engine is checked against a
published table. :data:`JOINT` is Zhang et al.'s for fine-tuning (arXiv 2402.17193, eq. 1): what is trained
(X) and the data (D) lower the loss together, not each by itself.

**Log space.** All are fitted to logarithms. A sum of positive terms is ln Σ_j e^(u_j) (log-sum-exp)
with the terms' logarithms u_j linear in θ, hence d ln ŷ / dθ = Σ_j w_j · du_j/dθ with the softmax
weights w_j = e^(u_j) / ŷ: nothing overflows, positivity needs no bounds, and the gradient is exact.

**Hazard.** For α → 0, A·k^−α turns into A − A·α·ln k: E and A then trade against each other freely, and
only the curve, not E or A, is determined. Intervals of E and A spanning decades say just that.
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
        name: as the artifacts name it.
        formula: as a reader sees it.
        parameters: names of the natural parameters, in the order of θ.
        logarithmic: for each, whether θ holds its natural logarithm.
        log_curve: (θ [P, d], x [n] or [n, variables]) → (ln ŷ [P, n], d ln ŷ / dθ [P, n, d]).
        from_units: (θ [P, d], ln of x's units [variables], ln of y's unit) → θ of the same curve when x and
            y, so far counted in those units, are counted in ones. Negated units give the inverse.
    """

    name: str
    formula: str
    parameters: tuple[str, ...]
    logarithmic: tuple[bool, ...]
    log_curve: Callable[[Array, Array], tuple[Array, Array]]
    from_units: Callable[[Array, Array, float], Array]

    def natural(self, theta: Array) -> Array:
        """Natural parameters [..., d] of θ [..., d]."""
        return np.where(self.logarithmic, np.exp(np.clip(theta, -_LARGEST_LOG, _LARGEST_LOG)), theta)

    def internal(self, natural: Array) -> Array:
        """θ [..., d] of natural parameters [..., d]; those held as logarithms have to be positive."""
        return np.where(self.logarithmic, np.log(np.where(self.logarithmic, natural, 1.0)), natural)

    def curve(self, theta: Array, x: Array) -> Array:
        """ŷ [P, n] at x [n] or [n, variables] for θ [P, d]."""
        return np.asarray(np.exp(np.minimum(self.log_curve(theta, x)[0], _LARGEST_LOG)))


def _floor_plus_terms(floor: Array, terms: list[Array]) -> tuple[Array, list[Array]]:
    """Log-sum-exp of a floor [P, 1] and terms [P, n], and the softmax weight of each [P, n]."""
    largest = np.maximum(floor, terms[0])
    for term in terms[1:]:
        np.maximum(largest, term, out=largest)
    weights = [np.exp(part - largest) for part in (floor, *terms)]
    total = sum(weights[1:], weights[0])
    return largest + np.log(total), [weight / total for weight in weights]


def _decay(theta: Array, steps: Array) -> tuple[Array, Array]:
    """ln(E + A·e^(−ρ·step)): a power law when the steps [n] are ln k, an exponential one when they are k."""
    value, (of_floor, of_term) = _floor_plus_terms(theta[:, :1], [theta[:, 1:2] - theta[:, 2:3] * steps])
    return value, _gradient(of_floor, of_term, -of_term * steps)


def _gradient(*parts: Array) -> Array:
    """Join d ln ŷ / dθ [P, n, d] from its d parts [P, n]; a parameter's points lie side by side in memory."""
    return np.stack(parts).transpose(1, 2, 0)


def _power(theta: Array, x: Array) -> tuple[Array, Array]:
    return _decay(theta, np.log(x))


def _power_units(theta: Array, x_unit: Array, y_unit: float) -> Array:
    floor, amplitude, exponent = theta.T
    return np.stack([floor + y_unit, amplitude + y_unit + exponent * x_unit[0], exponent], axis=1)


def _exponential_units(theta: Array, x_unit: Array, y_unit: float) -> Array:
    floor, amplitude, rate = theta.T
    return np.stack([floor + y_unit, amplitude + y_unit, rate * np.exp(-x_unit[0])], axis=1)


def _broken_power(theta: Array, x: Array) -> tuple[Array, Array]:
    amplitude, before, after, at = (theta[:, i : i + 1] for i in range(4))
    depth = np.log(x)
    beyond = (depth - at) / BREAK_WIDTH
    rise, (_, share_after) = _floor_plus_terms(np.zeros_like(at), [beyond])
    bend = BREAK_WIDTH * rise  # 0 well before the break, ln k − ln k_b well after it
    value = amplitude - before * (depth - bend) - after * bend
    return value, _gradient(np.ones_like(bend), bend - depth, -bend, (after - before) * share_after)


def _broken_power_units(theta: Array, x_unit: Array, y_unit: float) -> Array:
    amplitude, before, after, at = theta.T
    return np.stack([amplitude + y_unit + before * x_unit[0], before, after, at + x_unit[0]], axis=1)


def _constant(theta: Array, x: Array) -> tuple[Array, Array]:
    value = np.broadcast_to(theta, (len(theta), len(x)))
    return value, np.ones((*value.shape, 1))


def _constant_units(theta: Array, x_unit: Array, y_unit: float) -> Array:  # noqa: ARG001 (x has no part in it)
    return theta + y_unit


def _chinchilla(theta: Array, x: Array) -> tuple[Array, Array]:
    size, data = np.log(x).T
    floor, of_size, of_data, alpha, beta = (theta[:, i : i + 1] for i in range(5))
    value, (w_floor, w_size, w_data) = _floor_plus_terms(floor, [of_size - alpha * size, of_data - beta * data])
    return value, _gradient(w_floor, w_size, w_data, -w_size * size, -w_data * data)


def _chinchilla_units(theta: Array, x_unit: Array, y_unit: float) -> Array:
    floor, of_size, of_data, alpha, beta = theta.T
    sizes, data = of_size + y_unit + alpha * x_unit[0], of_data + y_unit + beta * x_unit[1]
    return np.stack([floor + y_unit, sizes, data, alpha, beta], axis=1)


def _joint(theta: Array, x: Array) -> tuple[Array, Array]:
    size, data = np.log(x).T
    floor, amplitude, alpha, beta = (theta[:, i : i + 1] for i in range(4))
    value, (w_floor, w_term) = _floor_plus_terms(floor, [amplitude - alpha * size - beta * data])
    return value, _gradient(w_floor, w_term, -w_term * size, -w_term * data)


def _joint_units(theta: Array, x_unit: Array, y_unit: float) -> Array:
    floor, amplitude, alpha, beta = theta.T
    return np.stack([floor + y_unit, amplitude + y_unit + theta[:, 2:] @ x_unit, alpha, beta], axis=1)


POWER: Final = Law(
    "power", "E + A·k^−α", ("E", "A", "alpha"), (True, True, False), _power, _power_units
)  # Kaplan's L(N) in depth, with Hoffmann's irreducible E
EXPONENTIAL: Final = Law(
    "exponential", "E + A·e^(−ρ·k)", ("E", "A", "rho"), (True, True, False), _decay, _exponential_units
)
BROKEN_POWER: Final = Law(
    "broken_power",
    f"A·k^−α·(1 + (k/k_b)^(1/w))^(−w·(α′−α)), w = {BREAK_WIDTH}",
    ("A", "alpha", "alpha_after", "break"),
    (True, False, False, True),
    _broken_power,
    _broken_power_units,
)
CONSTANT: Final = Law("constant", "C", ("C",), (True,), _constant, _constant_units)
CHINCHILLA: Final = Law(
    "chinchilla",
    "E + A/N^α + B/D^β",
    ("E", "A", "B", "alpha", "beta"),
    (True, True, True, False, False),
    _chinchilla,
    _chinchilla_units,
)
JOINT: Final = Law(
    "joint",
    "E + A·X^−α·D^−β",
    ("E", "A", "alpha", "beta"),
    (True, True, False, False),
    _joint,
    _joint_units,
)
