"""The loss of every boundary at the full number of examples, with intervals.

Where the joint law holds, it predicts; else the losses of the largest pilots do, interpolated over depth.
No prediction exceeds the loss before training: a power law grows without bound as nothing is left to train,
a model that learns nothing stays as it was.

**Intervals.** What was drawn at random is the validation examples (the same for all pilots: they are drawn
together, so that differences between boundaries keep what they have in common) and the course of each
training, of which the law's residuals tell. Each resample draws both: the examples with replacement, and a
residual for every point (Efron & Tibshirani 1993, §9.4), widened by √(P/(P−4)) for the law's four parameters;
then the law is fitted anew. ``low`` and ``high`` hold the loss of one more fine-tune, so a residual is drawn for
it too; ``excess_error`` is of the *expected* difference to the best boundary, without it. Without a law there are
no residuals, and the interval is of the validation examples alone.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from salf.fitting.bootstrap import interval, resampled_means
from salf.fitting.engine import Fit
from salf.laws import JOINT, Array
from stages.pilot.law import JointLaw, Points, fit_points, interpolated

_WARM_STARTS: Final = 3  # of a resample's fit: the best ends of the fit to the points themselves


@dataclass(frozen=True)
class Prediction:
    """Of boundaries 0..L.

    Attributes:
        loss: expected mean validation loss, nats per answer token, [L+1].
        low, high: of one fine-tune's, [L+1].
        excess: loss over that of the best boundary, [L+1].
        excess_error: its standard error, [L+1]; 0 at the best.
        parameters: the law's over the resamples, [B, 4]; ``None`` without a law.
    """

    loss: Array
    low: Array
    high: Array
    excess: Array
    excess_error: Array
    parameters: Array | None


def predict(
    points: Points, law: JointLaw, trained: Array, examples: int, resamples: int, confidence: float, seed: int
) -> Prediction:
    """Predict every boundary.

    Args:
        points: the pilots.
        law: the law fitted to them.
        trained: X of boundaries 0..L, [L+1].
        examples: D to predict for.
        resamples: B.
        confidence: of the intervals.
        seed: of the resamples.
    """
    drawn = resampled_means(np.column_stack([points.losses, points.untrained]), resamples, seed)
    measured, untrained = drawn[:, :-1], drawn[:, -1:]
    if not law.holds:
        loss = _interpolate(points, points.mean, float(points.untrained.mean()))
        curves = np.array(
            [_interpolate(points, row, float(top[0])) for row, top in zip(measured, untrained, strict=True)]
        )
        return _prediction(loss, curves, curves, confidence, None)
    rng = np.random.default_rng(seed)
    at = np.column_stack([trained, np.full(len(trained), float(examples))])
    noise = law.residuals * np.sqrt(len(law.residuals) / (len(law.residuals) - len(JOINT.parameters)))
    again = _refit(points, law, measured * np.exp(rng.choice(noise, measured.shape)))
    loss = np.minimum(JOINT.curve(law.fit.theta, at)[0], points.untrained.mean())
    curves = np.minimum(JOINT.curve(again.theta, at), untrained)
    outcomes = curves * np.exp(rng.choice(noise, curves.shape))
    return _prediction(loss, curves, outcomes, confidence, JOINT.natural(again.theta))


def _refit(points: Points, law: JointLaw, perturbed: Array) -> Fit:
    """The law fitted to resamples: fitted values where the points' own noise stands, [B, P]."""
    return fit_points(points, perturbed * np.exp(-law.residuals), law.fit.ends[:1, :_WARM_STARTS])


def _interpolate(points: Points, losses: Array, untrained: float) -> Array:
    """The losses [P] of the largest pilots over boundaries 0..L."""
    largest = points.examples == points.examples.max()
    at = np.arange(points.depth + 1.0)
    return interpolated(points.boundaries[largest], losses[largest], untrained, points.depth, at)


def _prediction(loss: Array, curves: Array, outcomes: Array, confidence: float, parameters: Array | None) -> Prediction:
    low, high = interval(outcomes, confidence)
    best = int(loss.argmin())
    differences = curves - curves[:, best : best + 1]
    return Prediction(loss, low, high, loss - loss[best], differences.std(axis=0), parameters)
