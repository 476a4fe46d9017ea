"""The joint law: found where it was planted, refused where it does not predict what it has not seen."""

import numpy as np
import pytest
from scipy.optimize import minimize

from salf.laws import JOINT
from stages.signals.joint_law import interpolated, joint_law
from tests.signals.pilots.planted import LAYERS, TRUTH, points, truth


def test_a_planted_law_is_recovered_and_holds():
    law = joint_law(points())
    found = dict(zip(JOINT.parameters, JOINT.natural(law.fit.theta)[0], strict=True))
    assert found == pytest.approx(TRUTH, rel=0.02)
    assert law.holds
    assert law.boundaries.law < 1e-3 < law.boundaries.without
    assert law.sizes.law < 1e-3 < law.sizes.without
    assert law.verdict == "The loss falls with trained parameters (exponent 0.22) and with examples (0.35)."


def test_no_start_of_scipys_finds_a_better_end():
    made = points(noise=0.03, seed=4)
    fit = joint_law(made).fit
    x, y = made.trained, made.mean

    def loss(theta):
        e, a, alpha, beta = np.exp(theta[0]), np.exp(theta[1]), *theta[2:]
        residuals = np.abs(np.log((e + a * x**-alpha * made.examples**-beta) / y))
        return np.where(residuals < 1e-3, residuals**2 / 2e-3, residuals - 5e-4).sum()

    rng, start = np.random.default_rng(0), JOINT.internal(np.array([list(TRUTH.values())]))[0]
    options = {"maxiter": 4000, "maxfev": 4000}
    tries = [
        minimize(loss, start + rng.normal(scale=0.1, size=4), method="Nelder-Mead", options=options).fun
        for _ in range(6)
    ]
    assert fit.loss[0] <= min(tries) + 1e-3


def no_effect_of_depth(boundaries, examples):
    """Freezing helps a little, as it may where there are few examples."""
    return truth(np.zeros_like(boundaries), examples) * (1 - 0.004 * boundaries)


def a_step(boundaries, examples):
    """Flat, then a cliff: no power of the trained parameters."""
    return np.where(boundaries > 20, 4.0, 1.0) * truth(np.zeros_like(boundaries), examples)


def worse_with_more(boundaries, examples):
    return truth(boundaries, 1e4 / examples)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"curve": no_effect_of_depth}, "more trained layers do not lower the loss"),
        ({"curve": worse_with_more}, "more examples do not lower the loss"),
        ({"curve": a_step, "boundaries": (0, 5, 10, 15, 22, 26)}, "a left-out boundary worse than interpolation"),
        ({"boundaries": (0, 15)}, "too few pilots to leave a boundary out"),
        ({"sizes": (64, 256)}, "too few pilots to leave a size out"),
    ],
)
def test_a_law_that_does_not_hold_says_why_and_what_follows(changes, why):
    law = joint_law(points(**changes))
    assert not law.holds
    assert why in law.verdict
    assert "compared by the losses of the largest pilots, interpolated" in law.verdict


def test_left_out_boundaries_without_a_law_are_numpys_lines_between_the_others():
    made = points(sizes=(64, 128, 256), noise=0.05, seed=2)
    errors = []
    for k in (0, 8, 15, 22):
        for n in (64, 128, 256):
            others = (made.boundaries != k) & (made.examples == n)
            known = [*made.boundaries[others], LAYERS]
            guess = np.interp(k, known, [*made.mean[others], made.untrained.mean()])
            errors.append(np.log(guess / made.mean[(made.boundaries == k) & (made.examples == n)][0]))
    assert joint_law(made).boundaries.without == pytest.approx(np.sqrt(np.mean(np.square(errors))))


@pytest.mark.parametrize(
    ("losses", "untrained", "expected"),
    [
        ([3.0, 1.0], 7.0, [1, 1, 1, 1, 1, 1.5, 2, 2.5, 3, 3.5, 7]),
        ([3.0, 1.0], 3.2, [1, 1, 1, 1, 1, 1.5, 2, 2.5, 3, 3.2, 3.2]),  # never above the loss before training
        ([1.0, 3.0], 7.0, [3, 3, 3, 3, 3, 2.5, 2, 1.5, 1, 1, 7]),  # what falls goes on level
    ],
)
def test_without_a_law_losses_go_on_behind_the_last_pilot_and_nothing_is_learned_in_the_end(
    losses, untrained, expected
):
    at = np.arange(11.0)
    np.testing.assert_allclose(interpolated(np.array([8.0, 4.0]), np.array(losses), untrained, 10, at), expected)


def test_what_was_measured_stands_also_at_the_last_layer():
    at = np.arange(11.0)
    assert interpolated(np.array([10.0]), np.array([2.0]), 7.0, 10, at)[-1] == 2.0
    assert set(interpolated(np.array([5.0]), np.array([2.0]), 7.0, 10, at)) == {2.0, 7.0}  # one pilot has no slope
