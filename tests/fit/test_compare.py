import numpy as np
import pytest
from sklearn.isotonic import IsotonicRegression

from salf.fitting.bootstrap import resampled_means
from stages.fit.compare import aicc, assess, choose, faults, holdout_excess, r_squared, verdict
from stages.fit.forms import BASELINES, LAWS
from tests.fit.shapes import late_deviation, late_loss, noisy_examples

DEPTH = np.arange(1.0, 31.0)


def every_form(curve, resamples=None, holdout=3):
    resamples = curve[None] if resamples is None else resamples
    return [assess(form, curve, resamples, holdout) for form in (*LAWS, *BASELINES)]


def noise(scale, seed=0):
    return np.exp(np.random.default_rng(seed).normal(scale=scale, size=30))


CLEAR = {
    "power": 0.3 + 1.2 * DEPTH**-0.7,
    "exponential": 0.3 + 1.2 * np.exp(-0.15 * DEPTH),
    "power_tail": np.where(DEPTH < 16, 1.3, 0.2 + 40 * DEPTH**-1.4),  # jumps down at the onset
    "broken_power": DEPTH**-0.1 * (1 + (DEPTH / 12) ** 10) ** -0.08,
}


@pytest.mark.parametrize("name", CLEAR)
def test_the_generating_law_is_chosen(name):
    curve = CLEAR[name] * noise(0.002)
    best, fits = choose(every_form(curve))
    assert (best.form.name, fits) == (name, True)


@pytest.mark.parametrize("seed", range(2))
def test_wandering_has_no_law(seed):
    generator = np.random.default_rng(seed)
    steps = generator.normal(scale=0.03, size=30)
    wander = np.zeros(30)
    for k in range(1, 30):
        wander[k] = 0.7 * wander[k - 1] + steps[k]
    assessments = every_form(np.exp(wander))
    assert not choose(assessments)[1]
    assert "No law fits the deviation" in verdict("deviation", assessments, np.exp(wander))


def test_a_rising_power_law_does_not_fit_since_it_does_not_fall():
    """A decay law has nothing to say on a curve that rises, however well it follows it."""
    curve = 2.0 - 1.2 * DEPTH**-0.5
    assessments = every_form(curve * noise(0.001))
    assert not choose(assessments)[1]
    assert any("it does not fall" in fault for a in assessments[:1] for fault in faults(a, assessments))


def test_late_deviation_has_a_law_over_its_tail_only():
    curve = noisy_examples(late_deviation(), 192, 0.05, seed=0)[:, 1:].mean(axis=0)
    assessments = every_form(curve)
    best, fits = choose(assessments)
    assert fits
    assert best.form.name == "power_tail"
    assert 16 <= best.first_space <= 23
    assert "power" in {a.form.name for a in assessments if faults(a, assessments)}
    words = verdict("deviation", assessments, curve)
    assert f"spaces {best.first_space}–30" in words
    assert words.startswith("No law holds over the whole depth.")


def test_late_loss_has_no_law_over_the_whole_depth():
    curve = noisy_examples(late_loss(), 192, 0.2, seed=0)[:, 1:].mean(axis=0)
    assessments = every_form(curve)
    whole = [a for a in assessments if a.form.name in ("power", "exponential")]
    assert all(faults(a, assessments) for a in whole)
    tail = next(a for a in assessments if a.form.name == "power_tail")
    assert 22 <= tail.first_space <= 26
    best, fits = choose(assessments)
    words = verdict("loss", assessments, curve)
    assert ("Rely on observed gains" in words) == (not fits)
    assert best.aicc < whole[0].aicc - 50


def test_tail_finds_onset_plateau_and_exponent():
    curve = np.where(DEPTH < 19, 1.5, 30 * DEPTH**-1.2)
    found = LAWS[1].natural(LAWS[1].fit(curve[None]).theta)[0]
    np.testing.assert_allclose(found[:2], [1.5, 19])
    np.testing.assert_allclose(LAWS[1].curve(LAWS[1].fit(curve[None]).theta, DEPTH)[0], curve, rtol=1e-3)


def test_isotonic_is_sklearns_and_stays_at_its_last_level():
    curve = np.exp(-DEPTH / 20) * noise(0.1)
    form = BASELINES[0]
    theta = form.fit(curve[None]).theta
    reference = IsotonicRegression(increasing=False).fit_transform(DEPTH, np.log(curve))
    np.testing.assert_allclose(form.curve(theta, DEPTH)[0], np.exp(reference))
    assert form.degrees(theta[0]) == len(np.unique(reference))
    np.testing.assert_allclose(form.curve(theta, np.array([31.0, 99.0]))[0], np.exp(reference[-1]))


def test_aicc_by_hand():
    residuals = np.array([0.1, -0.1, 0.3, -0.3, 0.2, -0.2])  # mean |r| = 0.2
    likelihood = sum(np.log(1 / 0.4) - abs(r) / 0.2 for r in residuals)
    assert aicc(residuals, 2) == pytest.approx(-2 * likelihood + 4 + 2 * 2 * 3 / 3)
    assert aicc(residuals, 5) == np.inf


def test_r_squared_of_the_mean_is_zero_and_of_no_variation_undefined():
    assert r_squared(np.array([1.0, 2, 3]), np.full(3, 2.0)) == 0
    assert r_squared(np.ones(3), np.ones(3)) is None


def test_left_out_layers_are_predicted_from_the_others_alone():
    """Whatever the last layers are, the prediction is the same: the error follows by hand for a constant."""
    curve = np.full(30, 2.0)
    curve[-3:] = [1.0, 1.5, 2.0]
    constant = assess(BASELINES[1], curve, curve[None], 3)
    assert constant.holdout[0] == pytest.approx(np.sqrt((1 + 0.25 + 0) / 3), rel=1e-6)
    assert assess(BASELINES[1], curve, curve[None], 29).holdout is None


def test_four_layers_are_too_few_for_a_verdict_but_not_an_error():
    curve = np.array([1.0, 0.8, 0.7, 0.65])
    assessments = [assess(form, curve, curve[None], 3) for form in (*LAWS, *BASELINES) if len(curve) >= form.points]
    assert [a.form.name for a in assessments] == ["power", "exponential", "isotonic", "constant"]
    assert not choose(assessments)[1]
    assert "too few layers" in verdict("loss", assessments, curve)


NOISY = {
    "power": 0.3 + 0.7 * DEPTH**-0.7,
    "straight": 1 - 0.02 * DEPTH,
    "logistic": 0.3 + 0.7 / (1 + np.exp((DEPTH - 15) / 2)),
}


def accepted(shape, curves):
    """Of noisy means (1 % at every space) of one shape: the laws that fit, and how often without a margin, too."""
    found, without = [], 0
    for seed in range(curves):
        examples = NOISY[shape] * np.exp(np.random.default_rng([9, seed]).normal(scale=0.08, size=(64, 30)))
        mean = examples.mean(axis=0)
        assessments = every_form(mean, resampled_means(examples, 50, seed))
        laws = {a.form.name for a in assessments if not a.is_baseline and not faults(a, assessments)}
        found.append(laws)
        power = assessments[0]
        without += "power" in laws and holdout_excess(power, assessments)[0] <= 0
    return found, without


def test_a_true_law_with_noise_is_accepted_far_more_often_than_by_a_coin_flip():
    """Where the curve has flattened, "as before" predicts as well: which is ahead is chance, and no fault."""
    found, without = accepted("power", 16)
    assert sum("power" in laws for laws in found) >= 14
    assert without <= 12


def test_smooth_curves_pass_as_laws_and_other_shapes_do_not():
    """A straight line passes as an exponential or a broken power law, which the artifact says; an S does not."""
    straight, _ = accepted("straight", 4)
    assert sum(bool(laws & {"exponential", "broken_power"}) for laws in straight) >= 3
    assert accepted("logistic", 4)[0] == [set()] * 4
