"""Joint laws by method: found where they were planted, refused where they do not predict what they have not seen."""

import numpy as np
import pytest
from scipy.optimize import brentq, minimize

from salf.fitting.joint import JointLaw, Runs, critical_sizes, forecasts, joint_law, overtaken
from salf.laws import JOINT
from tests.salf.fitting.natural import internal

LEVELS, SIZES = (8.0, 15.0, 22.0, 30.0), (64.0, 128.0, 256.0, 512.0)
TRUTH = {"E": 0.35, "A": 6.0, "alpha": 0.22, "beta": 0.35}
GRID = np.array([(x, d) for x in LEVELS for d in SIZES])


def multiplicative(x, d, *, E=TRUTH["E"], A=TRUTH["A"], alpha=TRUTH["alpha"], beta=TRUTH["beta"]):  # noqa: N803
    return E + A * x**-alpha * d**-beta


def additive(x, d):
    return 0.3 + 2.0 * x**-0.9 + 12.0 * d**-0.6


def runs(curve=multiplicative, grid=GRID, noise=0.0, seed=0, factor="layers", resamples=20):
    losses = curve(*grid.T) * np.exp(np.random.default_rng(seed).normal(scale=noise, size=len(grid)))
    return Runs(factor, grid, losses, np.tile(losses, (resamples, 1)))


def fitted(*args, **options):
    return joint_law(runs(*args, **options), 0.9, seed=1)


@pytest.fixture(scope="module")
def given():
    """Laws with these parameters, which are sure of them: all 20 resamples are alike."""
    planted = fitted()

    def make(**natural):
        theta = internal(JOINT, np.array([list({**TRUTH, **natural}.values())] * 21))
        return planted._replace(law=JOINT, theta=theta)

    return make


def grid(levels=LEVELS, sizes=SIZES):
    return np.array([(x, d) for x in levels for d in sizes])


def test_a_planted_law_is_recovered_and_holds():
    law = fitted()
    assert law.record.parameters == pytest.approx(TRUTH, rel=0.02)
    assert law.record.holds
    for errors in law.record.left_out.values():
        assert errors.law < 1e-3 < errors.without
    assert law.record.verdict == "The loss falls with layers (exponent 0.22) and with examples (0.35)."


@pytest.mark.parametrize(("curve", "form"), [(multiplicative, "joint"), (additive, "additive")])
def test_the_form_is_told_by_the_errors_at_runs_left_out(curve, form):
    record = fitted(curve, noise=0.002).record
    assert record.name == form
    for errors in record.left_out.values():
        assert errors.law == errors.forms[form] < max(errors.forms.values())


def test_an_additive_law_is_recovered():
    found = fitted(additive).record.parameters
    assert found == pytest.approx({"E": 0.3, "A": 2.0, "B": 12.0, "alpha": 0.9, "beta": 0.6}, rel=0.03)


def test_no_start_of_scipys_finds_a_better_end():
    made = runs(noise=0.03, seed=4)
    law = joint_law(made, 0.9, 1, forms=[JOINT])

    def loss(theta):
        residuals = np.abs(np.log(JOINT.curve(theta[None], GRID)[0] / made.losses))
        return np.where(residuals < 1e-3, residuals**2 / 2e-3, residuals - 5e-4).sum()

    rng, start = np.random.default_rng(0), internal(JOINT, np.array([list(TRUTH.values())]))[0]
    options = {"maxiter": 4000, "maxfev": 4000}
    tries = [
        minimize(loss, start + rng.normal(scale=0.1, size=4), method="Nelder-Mead", options=options).fun
        for _ in range(6)
    ]
    assert loss(law.theta[0]) <= min(tries) + 1e-3


def no_effect_of_depth(x, d):
    """Freezing helps a little, as it may where there are few examples."""
    return multiplicative(30.0, d) * (0.88 + 0.004 * x)


def a_step(x, d):
    """Flat, then a cliff: no power of the trained layers."""
    return np.where(x < 10, 4.0, 1.0) * multiplicative(30.0, d)


@pytest.mark.parametrize(
    ("curve", "levels", "sizes", "why"),
    [
        (no_effect_of_depth, LEVELS, SIZES, "the loss does not fall with layers"),
        (lambda x, d: multiplicative(x, 1e4 / d), LEVELS, SIZES, "the loss does not fall with examples"),
        (a_step, (4.0, 8.0, 15.0, 20.0, 25.0, 30.0), SIZES, "it predicts a level of layers worse than lines"),
        (multiplicative, (15.0, 30.0), SIZES, "too few runs to leave a level of layers out"),
        (multiplicative, LEVELS, (64.0, 256.0), "too few runs to leave the largest size out"),
    ],
)
def test_a_law_that_does_not_hold_says_why(curve, levels, sizes, why):
    record = fitted(curve, grid(levels, sizes)).record
    assert not record.holds
    assert why in record.verdict


def test_left_out_runs_without_a_law_are_numpys_lines_between_the_others():
    made = runs(noise=0.05, seed=2)
    errors = []
    for x, d in GRID:
        others = (made.variables[:, 0] != x) & (made.variables[:, 1] == d)
        guess = np.interp(x, made.variables[others, 0], made.losses[others])
        errors.append(np.log(guess / made.losses[((x, d) == GRID).all(axis=1)][0]))
    left_out = joint_law(made, 0.9, 1).record.left_out
    assert left_out["levels"].without == pytest.approx(np.sqrt(np.mean(np.square(errors))))
    before, last = (made.losses[made.variables[:, 1] == d] for d in SIZES[-2:])
    assert left_out["largest_size"].without == pytest.approx(np.sqrt(np.mean(np.log(before / last) ** 2)))


@pytest.mark.parametrize("scale", [(1e6, 1.0), (1.0, 1e-3)])
def test_units_of_factor_and_examples_change_the_amplitude_alone(scale):
    one, other = fitted(noise=0.01), joint_law(runs(noise=0.01)._replace(variables=GRID * scale), 0.9, 1)
    for name in ("E", "alpha", "beta"):
        assert other.record.parameters[name] == pytest.approx(one.record.parameters[name], rel=1e-3)
    np.testing.assert_allclose(
        other.at(15.0 * scale[0], np.array([300.0 * scale[1]])), one.at(15.0, np.array([300.0])), rtol=1e-4
    )


def test_a_further_factor_shares_e_and_beta_with_the_first():
    """Ranks at 15 layers: A and α of their own, everything else as fitted over the layers."""
    first = fitted(noise=0.01)
    e, beta = first.record.parameters["E"], first.record.parameters["beta"]
    ranks = grid((4.0, 8.0, 16.0, 32.0))
    made = runs(lambda x, d: multiplicative(x, d, E=e, A=3.0, alpha=0.05, beta=beta), ranks, factor="rank")
    held = np.where(np.isin(JOINT.parameters, ("A", "alpha")), np.nan, first.theta)
    law = joint_law(made, 0.9, 1, [first.law], held)
    assert law.record.parameters == pytest.approx({"E": e, "A": 3.0, "alpha": 0.05, "beta": beta}, rel=1e-3)
    np.testing.assert_allclose(law.theta[:, [0, 3]], first.theta[:, [0, 3]], rtol=1e-12)  # in every resample, too


def test_critical_size_of_equal_floors_is_the_closed_form(given):
    """The paper's D^c = H·X^γ, H = (A₁/A₂)^(1/(β₁−β₂)), γ = (α₂−α₁)/(β₁−β₂)."""
    few, many = given(A=2.0, alpha=0.1, beta=0.2), given(A=6.0, alpha=0.22, beta=0.35)
    for level in LEVELS:
        closed = (2.0 / 6.0) ** (1 / (0.2 - 0.35)) * level ** ((0.22 - 0.1) / (0.2 - 0.35))
        np.testing.assert_allclose(overtaken(few, many, level, 64, 1e5), closed, rtol=1e-9)


def test_critical_size_of_any_laws_is_scipys_root_whichever_comes_first(given):
    one, two = given(E=0.4, A=2.0, beta=0.2), given(E=0.3)

    def gap(d):
        return float((one.at(15.0, np.array([d])) - two.at(15.0, np.array([d])))[0, 0])

    found, swapped = (critical_sizes(laws, 0.9) for laws in ({"one": one, "two": two}, {"two": two, "one": one}))
    assert found == swapped
    at_15 = next(each for each in found if each.level == 15.0)
    assert (at_15.below, at_15.above, at_15.warnings) == ("one", "two", [])
    assert at_15.examples == pytest.approx(brentq(gap, 64, 5120), rel=1e-7)
    assert at_15.low == at_15.high == at_15.examples  # all resamples are alike


@pytest.mark.parametrize("other", [{"A": 7.0}, {}])
def test_curves_that_do_not_cross_have_no_critical_size(given, other):
    for found in critical_sizes({"same": given(), "other": given(**other)}, 0.9):
        assert (found.below, found.examples, found.low, found.high) == ("same", None, None, None)


def test_a_critical_size_beyond_four_times_the_largest_run_carries_a_warning(given):
    few, many = given(A=1.4, alpha=0.1, beta=0.2), given(A=6.0, alpha=0.22, beta=0.35)
    sizes = critical_sizes({"few": few, "many": many}, 0.9)
    for found in sizes:
        far = found.examples > 4 * SIZES[-1]
        assert any("more than 4 times the 512 examples" in warning for warning in found.warnings) == far
    assert {found.examples > 4 * SIZES[-1] for found in sizes} == {True, False}


def test_an_interval_that_leaves_what_was_searched_is_open(given):
    """Of twenty resamples two never cross: at 90 % the upper end is beyond."""
    few = given(A=2.0, alpha=0.1, beta=0.2)
    many = given()
    many.theta[1:3, 1] += 1.0  # ln A
    (*_, found) = critical_sizes({"few": few, "many": many}, 0.9)
    assert found.examples is not None
    assert (found.low, found.high) == (found.examples, None)


def test_a_law_that_does_not_hold_is_named_in_a_warning(given):
    weak: JointLaw = fitted(multiplicative, grid(LEVELS, (64.0, 256.0)))
    found = critical_sizes({"strong": given(), "weak": weak}, 0.9)
    assert all("the law of weak does not hold" in each.warnings for each in found)


def test_forecasts_are_the_law_at_every_level_and_size_with_the_width_of_one_run():
    law = fitted(noise=0.03, resamples=200)
    rows = forecasts({"weights": law}, (256.0, 512.0), 0.9, 1)
    assert [(row.level, row.examples) for row in rows] == [(x, d) for x in LEVELS[::-1] for d in (256.0, 512.0)]
    for row in rows:
        assert row.loss == pytest.approx(multiplicative(row.level, row.examples), rel=0.05)
        assert 0.8 < np.log(row.high / row.low) / (2 * 1.645 * 0.03) < 2


@pytest.mark.slow
def test_intervals_of_critical_sizes_hold_the_truth_as_often_as_they_say():
    """30 studies with noise of 1 % a training, at one level; nominal 90 %."""
    truth = brentq(lambda d: multiplicative(15.0, d) - multiplicative(15.0, d, E=0.45, A=2.6, beta=0.3), 64, 5120)
    hits = []
    for study in range(30):
        one = fitted(noise=0.01, seed=study, resamples=60)
        two = fitted(
            lambda x, d: multiplicative(x, d, E=0.45, A=2.6, beta=0.3), noise=0.01, seed=99 + study, resamples=60
        )
        found = next(each for each in critical_sizes({"one": one, "two": two}, 0.9) if each.level == 15.0)
        hits.append((found.low or 0) <= truth <= (found.high or np.inf))
    assert 0.75 <= np.mean(hits) <= 1.0
