"""Compares laws: which one describes a curve, how well, and whether any does.

**AICc.** The engine minimises Σ|r|, the maximum-likelihood fit under Laplace errors; with their scale b = mean|r|
profiled out, −2 ln L = 2n·ln(2b) + 2n, and AICc = −2 ln L + 2p + 2p(p+1)/(n−p−1) (Hurvich & Tsai 1989) with p the
parameters that the data chose, b included. All forms are judged on the same data: *all* spaces 1..L.

**A law fits** if all of these hold; the verdict names those that fail:

1. its AICc is below that of both baselines by at least :data:`MARGIN` (below a tenth, models have "essentially no
   support", Burnham & Anderson 2002, §2.6);
2. its r² over the spaces that it claims, first_space..L, is at least :data:`R2_BOUND`;
3. fitted without the last layers, it predicts them at most one standard error (over resamples of the examples) worse
   than the better baseline: where a curve has flattened, noise decides which is ahead;
4. its curve falls over these spaces, and the optimiser converged.

Of the laws that fit, the one of the lowest AICc is the best; if none does, the form of the lowest AICc is named.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from salf.laws import Array
from stages.fit.forms import BASELINES, Fitted, Form

MARGIN: Final = 10.0
R2_BOUND: Final = 0.9
SMOOTH: Final = (
    "A law that fits describes the curve; it is no evidence for scaling, since smooth curves pass as well: "
    "a straight line fits as a broken power law or an exponential."
)
_RESAMPLES: Final = 50  # fitted again for the standard error of the hold-out error, which they give to 10 %
_RESOLUTION: Final = 1e-7  # relative: of float32 traces; smaller residuals tell nothing


@dataclass(frozen=True)
class Assessment:
    """A form fitted to one curve, and how well it does."""

    form: Form
    fitted: Fitted
    curve: Array  # over the spaces 1..L, [L]
    first_space: int
    r2: float | None
    rmse: float
    aicc: float
    holdout: Array | None  # root mean squared error on the last layers, of the curve and its R resamples, [1 + R]

    @property
    def is_baseline(self) -> bool:
        """Whether it is no law but a bar for laws."""
        return self.form in BASELINES


def assess(form: Form, curve: Array, resamples: Array, holdout: int) -> Assessment:
    """Fit a form to a mean curve [L] over spaces 1..L, and judge it.

    The first of the bootstrap ``resamples`` [B, L] give the standard error of the error on the last ``holdout`` layers.
    """
    fitted = form.fit(curve[None])
    theta = fitted.theta[0]
    predicted = form.curve(fitted.theta, np.arange(1, len(curve) + 1, dtype=float))[0]
    first = form.first_space(theta)
    claimed = slice(first - 1, None)
    return Assessment(
        form,
        fitted,
        predicted,
        first,
        r2=r_squared(curve[claimed], predicted[claimed]),
        rmse=float(np.sqrt(((curve[claimed] - predicted[claimed]) ** 2).mean())),
        aicc=aicc(np.log(predicted / curve), form.degrees(theta) + 1),
        holdout=_holdout(form, np.concatenate([curve[None], resamples[:_RESAMPLES]]), holdout),
    )


def aicc(residuals: Array, parameters: int) -> float:
    """AICc under Laplace errors of log residuals [n]; ``parameters`` include the scale. Infinite if undefined."""
    n = len(residuals)
    if n <= parameters + 1:
        return np.inf
    scale = max(float(np.abs(residuals).mean()), _RESOLUTION)
    return float(2 * n * (np.log(2 * scale) + 1) + 2 * parameters * n / (n - parameters - 1))


def r_squared(values: Array, predicted: Array) -> float | None:
    """Share of the variance explained, 1 − SS_res / SS_tot; None if the values do not vary."""
    total = float(((values - values.mean()) ** 2).sum())
    return 1.0 - float(((values - predicted) ** 2).sum()) / total if total > 0 else None


def choose(assessments: Sequence[Assessment]) -> tuple[Assessment, bool]:
    """The best of the assessed forms, and whether it is a law that fits (see the module's criteria)."""
    fitting = [a for a in assessments if not a.is_baseline and not faults(a, assessments)]
    return min(fitting or assessments, key=lambda a: a.aicc), bool(fitting)


def faults(law: Assessment, assessments: Sequence[Assessment]) -> list[str]:
    """Why a law does not fit, in words; empty if it does."""
    bar = min((a.aicc for a in assessments if a.is_baseline), default=np.inf)
    found = []
    if not np.isfinite([law.aicc, bar]).all():
        found.append("too few layers for an AICc")
    elif law.aicc > bar - MARGIN:
        found.append(f"AICc {law.aicc:.1f} is not {MARGIN:g} below the best without a law ({bar:.1f})")
    if law.r2 is None or law.r2 < R2_BOUND:
        found.append("the curve does not vary" if law.r2 is None else f"r² {law.r2:.2f} is below {R2_BOUND:g}")
    excess = holdout_excess(law, assessments)
    if excess is None:
        found.append("too few layers to leave some out")
    elif excess[0] > excess[1]:
        found.append(
            f"its error on the last layers is {excess[0]:.3g} above that of no law, more than a standard error "
            f"({excess[1]:.3g})"
        )
    if law.curve[-1] >= law.curve[law.first_space - 1]:
        found.append("it does not fall")
    if not law.fitted.converged[0]:
        found.append("the optimiser did not converge")
    return found


def holdout_excess(law: Assessment, assessments: Sequence[Assessment]) -> tuple[float, float] | None:
    """By how much a law's hold-out error is above the better baseline's, and its standard error; None: too few layers.

    The standard error is 0 with fewer than two resamples.
    """
    bars = [a.holdout for a in assessments if a.is_baseline and a.holdout is not None]
    if law.holdout is None or not bars:
        return None
    over = law.holdout - min(bars, key=lambda errors: float(errors[0]))
    return float(over[0]), float(over[1:].std(ddof=1)) if len(over) > 2 else 0.0


def verdict(quantity: str, assessments: Sequence[Assessment], curve: Array) -> str:
    """Say which law describes which spaces of the curve [L], or that none does and what follows."""
    best, fits = choose(assessments)
    laws = [a for a in assessments if not a.is_baseline]
    if not laws:
        return f"No law was fitted to the {quantity}: too few layers. Rely on observed gains."
    if not fits:
        nearest = min(laws, key=lambda a: a.aicc)
        where = f"{nearest.form.name} from space {nearest.first_space} on"
        why = "; ".join(faults(nearest, assessments))
        return f"No law fits the {quantity}: the nearest, {where}, fails: {why}. Rely on observed gains."
    name = f"{best.form.name.replace('_', ' ')} (r² {best.r2:.3f})"
    words = f"A law describes the {quantity} over spaces {best.first_space}–{len(curve)}: {name}."
    if best.first_space == 1:
        return words
    before = curve[: best.first_space - 1]
    return f"No law holds over the whole depth. {words} Before it, values are {before.min():.3g} to {before.max():.3g}."


def _holdout(form: Form, curves: Array, layers: int) -> Array | None:
    """Root mean squared errors [C] on the last layers of curves [C, L], each fitted to its first L−h spaces."""
    known = curves.shape[1] - layers
    if known < form.points:
        return None
    first = form.fit(curves[:1, :known])
    theta = np.concatenate([first.theta, form.fit(curves[1:, :known], first.warm).theta])
    predicted = form.curve(theta, np.arange(known + 1, curves.shape[1] + 1, dtype=float))
    return np.asarray(np.sqrt(((curves[:, known:] - predicted) ** 2).mean(axis=1)))
