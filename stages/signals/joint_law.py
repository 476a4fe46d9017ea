"""The joint law of the pilots' losses, and the loss of each boundary that it predicts, with intervals.

**The law.** Zhang et al. (arXiv 2402.17193, eq. 1): loss(X, D) = A·X^−α·D^−β + E. Here X is the number of trained
parameters above the boundary (ours), without embeddings and head as Kaplan et al. (arXiv 2001.08361, §1.3) count, so
that one layer more is one step more. D is the number of training examples. The law *holds* if

1. the optimiser converged, and both exponents are positive: more to train and more data lower the loss;
2. fitted without one of the boundaries, it predicts that boundary's losses no worse than interpolation between the
   others and the untrained loss at the last layer, all boundaries in turn (against :func:`interpolated`, true laws
   fail by the noise of so few trainings);
3. fitted without the largest size, it predicts that size's losses no worse than "as at the size before".

**Predictions** are the law's where it holds, otherwise the losses of the largest pilots, interpolated over depth. None
exceeds the loss before training.

**Intervals.** Each resample draws the validation examples with replacement, the same for all pilots, and a residual of
the law for every point (Efron & Tibshirani 1993, §9.4), widened by √(P/(P−4)) for the law's four parameters, and refits
the law. ``low`` and ``high`` hold the loss of one more fine-tune, so they draw a residual for it too. Without a law the
interval is of the validation examples only.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from salf.evidence import LeftOut
from salf.files import significant
from salf.fitting.bootstrap import interval, resampled_means
from salf.fitting.engine import Fit, fit_law
from salf.laws import JOINT, Array
from stages.common.params import Pilot

_DIGITS: Final = 8
_PARAMETERS: Final = len(JOINT.parameters)
_FEWEST: Final = 3  # boundaries, or sizes: two of them for the exponent, one to predict
_WARM_STARTS: Final = 3  # of a resample's fit: the best ends of the fit to the points themselves

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Points:
    """P pilots; losses in nats per answer token."""

    boundaries: Array  # [P]
    trained: Array  # X of each, [P]
    examples: Array  # D of each, [P]
    losses: Array  # of every validation example, [V, P]
    untrained: Array  # of every validation example before training, [V]
    depth: int  # L; with all layers frozen, interpolation takes the untrained loss

    @property
    def mean(self) -> Array:
        """Mean loss of each, [P]."""
        return self.losses.mean(axis=0)

    @property
    def variables(self) -> Array:
        """X and D, [P, 2]."""
        return np.column_stack([self.trained, self.examples])


@dataclass(frozen=True)
class JointLaw:
    """The fitted law and how far it may be believed.

    ``boundaries`` and ``sizes`` are errors at each boundary, and at the largest size, predicted from the others; none
    if there are too few. ``faults`` say why the law does not hold.
    """

    fit: Fit  # of one curve, the points' mean losses
    residuals: Array  # log of measured over fitted, [P]
    boundaries: LeftOut | None
    sizes: LeftOut | None
    faults: tuple[str, ...]

    @property
    def holds(self) -> bool:
        """Whether it meets the module's criteria."""
        return not self.faults

    @property
    def verdict(self) -> str:
        """Whether the law holds, or why not and what follows, in plain words."""
        _, _, alpha, beta = self.fit.theta[0]
        if self.holds:
            return f"The loss falls with trained parameters (exponent {alpha:.3g}) and with examples ({beta:.3g})."
        return (
            f"No joint law holds: {'; '.join(self.faults)}. Boundaries are compared by the losses of the largest "
            "pilots, interpolated; what more data would add is not predicted."
        )


@dataclass(frozen=True)
class Prediction:
    """Predictions for the boundaries 0..L, [L+1] each; losses in nats per answer token."""

    loss: Array  # expected mean validation loss
    low: Array  # interval of one fine-tune's
    high: Array
    excess: Array  # loss above that of the best boundary
    excess_error: Array  # its standard error; 0 at the best
    parameters: Array | None  # the law's over the resamples, [B, 4]; None without a law


def joint_law(points: Points) -> JointLaw:
    """Fit the law to the points' mean losses and judge it."""
    fit = fit_law(JOINT, points.variables, points.mean[None])
    residuals = np.log(points.mean / JOINT.curve(fit.theta, points.variables)[0])
    each = [points.boundaries == boundary for boundary in np.unique(points.boundaries)]
    largest = points.examples == points.examples.max()
    boundaries = _left_out(points, points.boundaries, each, _between_boundaries)
    sizes = _left_out(points, points.examples, [largest], _size_before)
    return JointLaw(fit, residuals, boundaries, sizes, tuple(_faults(fit, boundaries, sizes)))


def predict(points: Points, law: JointLaw, trained: Array, examples: int, params: Pilot) -> Prediction:
    """Predict the boundaries 0..L, of ``trained`` parameters [L+1] each, for a number of examples."""
    confidence = params.confidence
    drawn = resampled_means(np.column_stack([points.losses, points.untrained]), params.bootstrap, params.seed)
    measured, untrained = drawn[:, :-1], drawn[:, -1:]  # [B, P], [B, 1]
    if not law.holds:
        loss = _interpolate(points, points.mean, points.untrained.mean())
        curves = np.array([_interpolate(points, *row) for row in zip(measured, untrained[:, 0], strict=True)])
        return _prediction(loss, curves, curves, confidence, None)
    rng = np.random.default_rng(params.seed)
    at = np.column_stack([trained, np.full(len(trained), float(examples))])
    noise = law.residuals * np.sqrt(len(law.residuals) / (len(law.residuals) - _PARAMETERS))
    # Fitted values in place of the points' own noise.
    perturbed = measured * np.exp(rng.choice(noise, measured.shape)) * np.exp(-law.residuals)
    again = fit_law(JOINT, points.variables, perturbed, warm=law.fit.ends[:1, :_WARM_STARTS])
    loss = np.minimum(JOINT.curve(law.fit.theta, at)[0], points.untrained.mean())
    curves = np.minimum(JOINT.curve(again.theta, at), untrained)  # [B, L+1]
    outcomes = curves * np.exp(rng.choice(noise, curves.shape))
    return _prediction(loss, curves, outcomes, confidence, JOINT.natural(again.theta))


def interpolated(boundaries: Array, losses: Array, untrained: float, depth: int, at: Array) -> Array:
    """Losses [m] at boundaries ``at`` [m], on straight lines between the measured ones [n].

    Below the first, as there. Above the last, on the line of the last two, if it rises, and not above the loss before
    training: the first layer that trains takes most of that away, so a line up to it would say far too much. At
    ``depth``, where no layer trains and nothing was measured, the loss before training.
    """
    order = np.argsort(boundaries)
    known, values = boundaries[order], losses[order]
    found = np.interp(at, known, values)
    if len(known) > 1:
        slope = max(0.0, (values[-1] - values[-2]) / (known[-1] - known[-2]))
        above = at > known[-1]
        found[above] = np.minimum(values[-1] + slope * (at[above] - known[-1]), untrained)
    return np.where((at == depth) & (known[-1] < depth), untrained, found)


def _interpolate(points: Points, losses: Array, untrained: float) -> Array:
    """The losses [P] of the largest pilots over the boundaries 0..L."""
    largest = points.examples == points.examples.max()
    at = np.arange(points.depth + 1.0)
    return interpolated(points.boundaries[largest], losses[largest], untrained, points.depth, at)


def _prediction(loss: Array, curves: Array, outcomes: Array, confidence: float, parameters: Array | None) -> Prediction:
    low, high = interval(outcomes, confidence)
    best = int(loss.argmin())
    differences = curves - curves[:, best : best + 1]
    return Prediction(loss, low, high, loss - loss[best], differences.std(axis=0), parameters)


def _faults(fit: Fit, boundaries: LeftOut | None, sizes: LeftOut | None) -> Iterator[str]:
    _, _, alpha, beta = fit.theta[0]
    if not fit.converged[0]:
        yield "the optimiser did not converge"
    if alpha <= 0:
        yield "more trained layers do not lower the loss"
    if beta <= 0:
        yield "more examples do not lower the loss"
    for kind, what, left_out, rival in (
        ("boundary", "a left-out boundary", boundaries, "interpolation"),
        ("size", "the largest size", sizes, "the size before it"),
    ):
        if left_out is None:
            yield f"too few pilots to leave a {kind} out"
        elif left_out.law > left_out.without:
            errors = f"(off by {left_out.law:.2%} against {left_out.without:.2%})"
            yield f"it predicts {what} worse than {rival} does {errors}"


def _left_out(
    points: Points, values: Array, parts: Sequence[Mask], without: Callable[[Points, Mask], Array]
) -> LeftOut | None:
    """Predict each part of the points from all others; ``None`` with too few values, or too few others for the law."""
    if len(np.unique(values)) < _FEWEST or any((~part).sum() <= _PARAMETERS for part in parts):
        return None
    measured = np.log(np.concatenate([points.mean[part] for part in parts]))

    def error(predicted: Callable[[Points, Mask], Array]) -> float:
        rival = np.log(np.concatenate([predicted(points, part) for part in parts]))
        return significant(float(np.sqrt(((rival - measured) ** 2).mean())), _DIGITS)

    return LeftOut(law=error(_by_law), without=error(without))


def _by_law(points: Points, part: Mask) -> Array:
    fit = fit_law(JOINT, points.variables[~part], points.mean[None, ~part])
    return JOINT.curve(fit.theta, points.variables[part])[0]


def _between_boundaries(points: Points, part: Mask) -> Array:
    """Each point of the part on lines between the others of its size, and to the untrained loss at the last layer."""
    found = []
    for boundary, size in zip(points.boundaries[part], points.examples[part], strict=True):
        known = ~part & (points.examples == size)
        at = np.append(points.boundaries[known], points.depth)
        order = np.argsort(at, kind="stable")
        losses = np.append(points.mean[known], points.untrained.mean())
        found.append(np.interp(boundary, at[order], losses[order]))
    return np.array(found)


def _size_before(points: Points, part: Mask) -> Array:
    """Each point of the part as the largest of the others at its boundary."""
    largest = ~part & (points.examples == points.examples[~part].max())
    known = dict(zip(points.boundaries[largest], points.mean[largest], strict=True))
    return np.array([known[boundary] for boundary in points.boundaries[part]])
