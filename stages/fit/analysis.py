"""Everything that is fitted to one quantity (the deviation, or the loss): laws, verdict, gains.

**Gains** (:mod:`salf.gains`). Layers 2..L-1 compete: layer 1's step starts from the embedding output, and above L no
layer is left to train. ``ratio``, ``marginal`` and ``law`` are written whether their power law fits or not.
"""

from typing import Final, NamedTuple, get_args

import numpy as np

from salf.evidence import DepthLaw, FittedLaw, LayerGain, Numbers
from salf.files import significant
from salf.fitting.bootstrap import interval, resampled_means
from salf.gains import Falling, by_law, falling, local, marginal, named, observed, ratio
from salf.laws import Array
from salf.selectors import GainName, Quantity
from stages.common.params import Fit
from stages.fit.compare import SMOOTH, Assessment, assess, choose, faults, verdict
from stages.fit.forms import BASELINES, LAWS, POWER_FORM, WARM_STARTS, power_from

DIGITS: Final = 8
# Laws are fitted to logarithms. A mean of exactly zero (a model that is certain everywhere) is lifted to what
# float32 could just tell from it.
_FLOOR: Final = 1e-9


def analyse(name: Quantity, examples: Array, params: Fit) -> tuple[DepthLaw, list[LayerGain]]:
    """Fit each form to the mean of curves [n, L+1], with bootstrap intervals, and compute the gains."""
    mean = np.maximum(examples.mean(axis=0), _FLOOR)
    resamples = np.maximum(resampled_means(examples, params.bootstrap, params.seed), _FLOOR)
    forms = [form for form in (*LAWS, *BASELINES) if len(mean) > form.points]
    assessments = [assess(form, mean[1:], resamples[:, 1:], params.holdout_layers) for form in forms]
    refits = [one.form.fit(resamples[:, 1:], one.fitted.warm).theta for one in assessments]  # of each form [B, d]
    once, often, from_peak = Laws(), Laws(), None
    if POWER_FORM in forms:
        law = falling(mean[None])
        laws = falling(resamples, law.fit.ends[:, :WARM_STARTS])
        once, often = Laws(assessments[0].fitted.theta, law), Laws(refits[0], laws)
        from_peak = _from_peak(mean, resamples, int(law.peaks[0]), laws.fit.theta, params)
    best, fits = choose(assessments)
    low, high = interval(resamples, params.confidence)
    p10, p50, p90 = np.percentile(examples, [10, 50, 90], axis=0)
    curves = {"mean": mean, "low": low, "high": high, "p10": p10, "p50": p50, "p90": p90}
    found = DepthLaw(
        examples=len(examples),
        **{column: _numbers(curve) for column, curve in curves.items()},
        laws=[_law(*pair, assessments, params.confidence) for pair in zip(assessments, refits, strict=True)],
        best=best.form.name,
        fits=fits,
        verdict=verdict(name, assessments, mean[1:]),
        embedding_step=significant(float(mean[0] - mean[1]), DIGITS),
        notes=_notes(examples, mean) + [SMOOTH] * fits,
        falling=from_peak,
    )
    return found, all_gains(name, mean, resamples, once, often, params.confidence)


def _from_peak(mean: Array, resamples: Array, peak: int, again: Array, params: Fit) -> FittedLaw:
    """The power law from the peak of the mean [L+1] on, judged over these spaces; ``again``: θ of the resamples."""
    forms = (power_from(peak), *BASELINES)
    judged = [assess(form, mean[peak:], resamples[:, peak:], params.holdout_layers) for form in forms]
    law, before = _law(judged[0], again, judged, params.confidence), Numbers([None] * (peak - 1))
    curves = {name: before + getattr(law, name) for name in ("curve", "curve_low", "curve_high")}
    return law.model_copy(update={**curves, "name": "power_from_peak", "first_space": peak})


def _law(one: Assessment, again: Array, rivals: list[Assessment], confidence: float) -> FittedLaw:
    """An assessed form as the artifact holds it; ``again``: θ of its resamples, [B, d]."""
    form, first = one.form, one.first_space
    low, high = map(_numbers, interval(form.natural(again), confidence))
    curve_low, curve_high = interval(form.curve(again, np.arange(1, len(one.curve) + 1, dtype=float)), confidence)
    wrong = [] if one.is_baseline else faults(one, rivals)
    return FittedLaw(
        name=form.name,
        formula=form.formula,
        first_space=first,
        parameters=dict(zip(form.parameters, _numbers(form.natural(one.fitted.theta)[0]), strict=True)),
        intervals={name: list(pair) for name, *pair in zip(form.parameters, low, high, strict=True)},
        converged=bool(one.fitted.converged[0]),
        r2=_number(one.r2),
        rmse=_number(one.rmse),
        aicc=_number(one.aicc),
        holdout_rmse=None if one.holdout is None else _number(one.holdout[0]),
        fits=not one.is_baseline and not wrong,
        faults=wrong,
        curve=_from(first, one.curve),
        curve_low=_from(first, curve_low),
        curve_high=_from(first, curve_high),
    )


def _notes(examples: Array, mean: Array) -> list[str]:
    layers = len(mean) - 1
    notes = [
        f"{form.name} needs {form.points} layers, the model has {layers}: left out"
        for form in (*LAWS, *BASELINES)
        if layers < form.points
    ]
    notes += ["one example only: its intervals have no width and mean nothing"] * (len(examples) == 1)
    raised = f"means of zero were raised to {_FLOOR:g}, since laws are fitted to logarithms"
    return notes + [raised] * bool((mean <= _FLOOR).any())


def _from(first: int, curve: Array) -> Numbers:
    return [None] * (first - 1) + _numbers(curve[first - 1 :])


def _numbers(values: Array) -> Numbers:
    return [_number(value) for value in values]


def _number(value: float | None) -> float | None:
    return None if value is None or not np.isfinite(value) else significant(float(value), DIGITS)


def resolution(resamples: Array) -> float:
    """The smallest gain that resampled curves distinguish from noise [B, L+1]: the median standard error of g_k.

    Not below a millionth of the curve's height, which is what float32 traces resolve.
    """
    return max(float(np.median(observed(resamples).std(axis=0))), 1e-6 * float(np.abs(resamples).mean()))


def win_shares(gains: Array) -> Array:
    """For each layer the share of resamples [B, L] in which it is the largest of layers 2..L-1; ties: the deepest."""
    eligible = gains[:, 1:-1]
    if not eligible.size or np.isnan(eligible).any():
        return np.zeros(gains.shape[1])
    return np.bincount(named(gains), minlength=gains.shape[1] + 1)[1:] / len(gains)


class Laws(NamedTuple):
    """Power laws of C curves, over the whole depth (θ [C, 3]) and from their peaks on; ``None``: too few layers."""

    theta: Array | None = None
    falling: Falling | None = None


def all_gains(
    quantity: Quantity, curve: Array, resamples: Array, once: Laws, often: Laws, confidence: float
) -> list[LayerGain]:
    """Every gain of a positive curve [L+1], with intervals and win shares from its resamples [B, L+1].

    ``once`` and ``often`` are the laws of the curve and of the resamples; without them their gains are NaN.
    """
    smallest = resolution(resamples)
    own, drawn = _each_gain(curve[None], once, smallest), _each_gain(resamples, often, smallest)
    found = []
    for name in get_args(GainName):
        columns = (own[name][0], *interval(drawn[name], confidence), win_shares(drawn[name]))
        for layer, row in enumerate(zip(*columns, strict=True), start=1):
            value, low, high, share = (significant(float(number), DIGITS) for number in row)
            known = {"value": value, "low": low, "high": high, "win_share": share}
            found.append(LayerGain(quantity=quantity, gain=name, layer=layer, embedding_step=layer == 1, **known))
    return found


def _each_gain(curves: Array, laws: Laws, smallest: float) -> dict[str, Array]:
    undefined = np.full((len(curves), curves.shape[1] - 1), np.nan)
    return {
        "observed": observed(curves),
        "ratio": undefined if laws.theta is None else ratio(curves, laws.theta, smallest),
        "local": local(curves),
        "marginal": undefined if laws.theta is None else marginal(curves, laws.theta),
        "law": undefined if laws.falling is None else by_law(laws.falling, curves.shape[1] - 1),
    }
