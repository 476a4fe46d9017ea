import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize, rosen, rosen_der
from scipy.special import huber as scipy_huber

from salf import laws
from salf.fitting.engine import HUBER_DELTA, fit_law, huber
from salf.fitting.quasi_newton import minimise
from tests.salf.fitting.natural import internal

DEPTH = np.arange(1.0, 31.0)
KNOWN = [
    (laws.POWER, [0.3, 1.2, 0.7], [0.06, 0.06, 0.08]),
    (laws.EXPONENTIAL, [0.8, 3.0, 0.2], [0.03, 0.2, 0.02]),
    (laws.BROKEN_POWER, [1.0, 0.02, 0.4, 20.0], [0.02, 0.01, 0.15, 2.5]),
    (laws.CONSTANT, [0.97], [0.01]),
]
each_law = pytest.mark.parametrize(("law", "natural", "within"), KNOWN, ids=[c[0].name for c in KNOWN])


def test_bfgs_solves_many_problems_at_once_like_scipy():
    starts = np.random.default_rng(0).uniform(-2, 2, size=(50, 4))

    def objective(points, _problems):
        return np.array([rosen(p) for p in points]), np.array([rosen_der(p) for p in points])

    ours = minimise(objective, starts, value_tolerance=1e-14)
    theirs = [minimize(rosen, s, jac=rosen_der, method="L-BFGS-B", options={"ftol": 1e-15}).fun for s in starts]
    assert ours.converged.all()
    assert (np.minimum(ours.values, 4) < np.array(theirs) + 1e-6).mean() > 0.9  # a few end in the other minimum
    assert (np.abs(ours.points[ours.values < 1e-6] - 1) < 1e-3).all()


def test_bfgs_finds_the_bottom_of_a_kink():
    centre = np.array([0.3, -0.7, 2.0])

    def objective(points, _problems):
        return np.abs(points - centre).sum(axis=1), np.sign(points - centre)

    assert np.abs(minimise(objective, np.zeros((1, 3))).points - centre).max() < 1e-3


def test_a_problem_ends_where_it_ends_alone_whatever_runs_beside_it():
    starts = np.random.default_rng(1).uniform(-2, 2, size=(12, 4))

    def objective(points, _problems):
        return np.array([rosen(p) for p in points]), np.array([rosen_der(p) for p in points])

    together = minimise(objective, starts)
    for number, start in enumerate(starts):
        alone = minimise(objective, start[None])
        assert alone.values[0] == together.values[number]
        assert (alone.points[0] == together.points[number]).all()


def test_a_problem_without_a_finite_start_has_not_converged():
    ended = minimise(lambda p, _: (np.where(p[:, 0] > 5, np.nan, p[:, 0] ** 2), 2 * p), np.array([[9.0], [1.0]]))
    assert ended.converged.tolist() == [False, True]


def test_huber_is_scipys_over_delta_and_its_slope_is_its_derivative():
    r = np.linspace(-0.01, 0.01, 401)
    value, slope = huber(r)
    np.testing.assert_allclose(value, scipy_huber(HUBER_DELTA, r) / HUBER_DELTA, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(slope, (huber(r + 1e-8)[0] - huber(r - 1e-8)[0]) / 2e-8, atol=1e-4)


@each_law
def test_recovers_a_law_from_its_own_curve_and_from_noise(law, natural, within):
    curve = law.curve(internal(law, np.array([natural])), DEPTH)
    exact = fit_law(law, DEPTH, curve)
    assert exact.converged.all()
    np.testing.assert_allclose(law.natural(exact.theta)[0], natural, rtol=1e-3)
    noise = np.random.default_rng(3).normal(scale=0.005, size=(20, 30))
    found = law.natural(fit_law(law, DEPTH, curve * np.exp(noise)).theta)
    assert (np.abs(np.median(found, axis=0) - natural) < within).all()


@pytest.mark.parametrize("law", [laws.POWER, laws.EXPONENTIAL], ids=lambda law: law.name)
def test_no_start_of_scipys_finds_a_better_end(law):
    """The same objective written anew and given to scipy, from the truth and around it."""
    generator = np.random.default_rng(5)
    truth = internal(law, np.array([[0.4, 1.0, 0.5]]))
    y = law.curve(truth, DEPTH) * np.exp(generator.normal(scale=0.02, size=(1, 30)))

    def loss(theta):
        return scipy_huber(HUBER_DELTA, np.log(law.curve(theta[None], DEPTH) / y)).sum() / HUBER_DELTA

    tries = [minimize(loss, truth[0] + generator.normal(size=3) * 0.3, method="Nelder-Mead").fun for _ in range(8)]
    assert fit_law(law, DEPTH, y).loss[0] <= min(tries) + 1e-4


@settings(max_examples=10, deadline=None)
@given(scale=st.floats(1e-3, 1e3), seed=st.integers(0, 5))
def test_a_scaled_curve_has_the_scaled_law(scale, seed):
    y = (0.4 + 1.1 * DEPTH**-0.8) * np.exp(np.random.default_rng(seed).normal(scale=0.01, size=(1, 30)))
    one, other = fit_law(laws.POWER, DEPTH, y), fit_law(laws.POWER, DEPTH, scale * y)
    np.testing.assert_allclose(
        laws.POWER.curve(other.theta, DEPTH), scale * laws.POWER.curve(one.theta, DEPTH), rtol=1e-4
    )


def test_points_of_weight_zero_have_no_say():
    y = np.tile(0.3 + 1.2 * DEPTH**-0.7, (1, 1))
    weights = (DEPTH > 5).astype(float)[None]
    spoilt = np.where(weights > 0, y, 77.0)
    np.testing.assert_allclose(
        laws.POWER.natural(fit_law(laws.POWER, DEPTH, spoilt, weights).theta)[0], [0.3, 1.2, 0.7], rtol=1e-3
    )


def test_parameters_that_are_held_stay_and_the_others_fit_best_with_them():
    """Two curves with known α each; scipy finds no better E and A."""
    y = np.array([0.3 + 1.2 * DEPTH**-0.7, 0.1 + 2.0 * DEPTH**-0.4])
    held = np.array([[np.nan, np.nan, 0.6], [np.nan, np.nan, 0.4]])
    fit = fit_law(laws.POWER, DEPTH, y, held=held)
    np.testing.assert_allclose(fit.theta[:, 2], held[:, 2], rtol=1e-12)
    np.testing.assert_allclose(laws.POWER.natural(fit.theta)[1], [0.1, 2.0, 0.4], rtol=1e-3)

    def loss(theta):
        return huber(np.log(laws.POWER.curve(np.array([[*theta, 0.6]]), DEPTH) / y[0]))[0].sum()

    assert fit.loss[0] <= minimize(loss, fit.theta[0, :2] + 0.1, method="Nelder-Mead").fun + 1e-4


def test_reproduces_the_published_chinchilla_fit(shared):
    """Besiroglu et al. 2024 (arXiv 2404.10102): A 482.01, B 2085.43, E 1.8172, α 0.3478, β 0.3658."""
    points = pd.read_csv(shared / "data" / "chinchilla" / "svg_extracted_data.csv").sort_values("loss").iloc[:-5]
    assert len(points) == 240
    size = points["Model Size"].to_numpy()
    x = np.stack([size, points["Training FLOP"].to_numpy() / (6 * size)], axis=1)
    loss = points["loss"].to_numpy()[None]
    fit = fit_law(laws.ADDITIVE, x, loss)
    e, a, b, alpha, beta = laws.ADDITIVE.natural(fit.theta)[0]
    assert abs(alpha - 0.3478) < 0.003
    assert abs(e - 1.8172) < 0.003
    assert abs(beta - 0.3658) < 0.003
    assert a == pytest.approx(482.01, rel=0.05)
    assert b == pytest.approx(2085.43, rel=0.05)
    published = internal(laws.ADDITIVE, np.array([[1.8172, 482.01, 2085.43, 0.3478, 0.3658]]))
    residuals = np.log(laws.ADDITIVE.curve(published, x) / loss)
    assert fit.loss[0] <= huber(residuals)[0].sum()
