import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize._numdiff import approx_derivative

from salf import laws
from tests.salf.fitting.natural import internal

DEPTH = np.arange(1.0, 31.0)
PLANE = np.stack([np.geomspace(1e8, 1e10, 12), np.geomspace(3e11, 1e9, 12)], axis=1)
CASES = [
    (laws.POWER, [0.3, 1.2, 0.7], DEPTH, lambda k: 0.3 + 1.2 * k**-0.7),
    (laws.EXPONENTIAL, [0.8, 3.0, 0.2], DEPTH, lambda k: 0.8 + 3.0 * np.exp(-0.2 * k)),
    (
        laws.BROKEN_POWER,
        [20.0, 0.05, 3.0, 24.0],
        DEPTH,
        lambda k: 20.0 * k**-0.05 * (1 + (k / 24.0) ** (1 / laws.BREAK_WIDTH)) ** (-laws.BREAK_WIDTH * 2.95),
    ),
    (laws.CONSTANT, [4.0], DEPTH, lambda k: 4.0 + 0 * k),
    (
        laws.ADDITIVE,
        [1.8, 480.0, 2000.0, 0.35, 0.37],
        PLANE,
        lambda x: 1.8 + 480.0 / x[:, 0] ** 0.35 + 2000.0 / x[:, 1] ** 0.37,
    ),
    (
        laws.JOINT,
        [0.9, 40.0, 0.12, 0.08],
        PLANE,
        lambda x: 0.9 + 40.0 / (x[:, 0] ** 0.12 * x[:, 1] ** 0.08),
    ),
]
each_law = pytest.mark.parametrize(("law", "natural", "x", "closed_form"), CASES, ids=[c[0].name for c in CASES])


@each_law
def test_curve_is_the_closed_form(law, natural, x, closed_form):
    theta = internal(law, np.array([natural]))
    np.testing.assert_allclose(law.curve(theta, x)[0], closed_form(x), rtol=1e-12)
    np.testing.assert_allclose(law.natural(theta)[0], natural, rtol=1e-12)


@each_law
def test_gradient_is_that_of_finite_differences(law, natural, x, closed_form):
    theta = internal(law, np.array([natural]))[0]
    numeric = approx_derivative(lambda t: law.log_curve(t[None], x)[0][0], theta, method="3-point")
    np.testing.assert_allclose(
        law.log_curve(theta[None], x)[1][0], np.reshape(numeric, (len(x), -1)), rtol=1e-6, atol=1e-7
    )


@each_law
@settings(max_examples=25, deadline=None)
@given(x_unit=st.floats(0.01, 100), y_unit=st.floats(0.001, 1000))
def test_a_law_in_other_units_is_the_same_curve(law, natural, x, closed_form, x_unit, y_unit):
    """The parameters of x/u and y/v, taken to units of one, give v times the curve at x."""
    theta = internal(law, np.array([natural]))
    logs = np.full(x.ndim, np.log(x_unit))
    there = law.from_units(theta, logs, np.log(y_unit))
    np.testing.assert_allclose(law.curve(there, x * x_unit), y_unit * law.curve(theta, x), rtol=1e-9)
    np.testing.assert_allclose(law.from_units(there, -logs, -np.log(y_unit)), theta, rtol=1e-9, atol=1e-9)


def test_parameters_far_out_neither_overflow_nor_lose_the_other_term():
    theta = np.array([[-1e4, 0.0, 1.0], [0.0, -1e4, 1.0]])
    np.testing.assert_allclose(laws.POWER.curve(theta, DEPTH), [1 / DEPTH, np.ones(30)])
