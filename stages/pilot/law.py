"""The joint law of the pilots' losses: what a boundary leaves to be trained, times how much data there is.

Zhang et al., "When Scaling Meets LLM Finetuning" (arXiv 2402.17193, eq. 1), find that the loss of a fine-tune
falls with the data D and with a second factor X by a *product* of powers, loss(X, D) = A·X^−α·D^−β + E. Among
their factors is the number of trained parameters (of adapters). Here X is the number of trained parameters
above the boundary: those of the layers and of the final norm, without embeddings and head, as Kaplan et al.
(arXiv 2001.08361, §1.3) count; so that one layer more is one step more, also where the first one brings the
embeddings with it. D is the number of training examples; epochs and schedule are the same in all pilots.

**A law holds** when all of these do; the verdict names those that do not:

1. the optimiser converged, and both exponents are positive: more to train and more data lower the loss;
2. fitted without one of the boundaries, it predicts that boundary's losses no worse than interpolation
   between the others and the untrained loss at the last layer does, all boundaries in turn;
3. fitted without the largest size, it predicts that size's losses no worse than "as at the size before".

It has four parameters and some twelve points: measures of fit on the points themselves would say little. The bar of
the second is lower than what stands in for a law that does not hold (:func:`interpolated`): beside that, laws that
are true fail by the noise of so few trainings (with 3 % each, intervals of 90 % then covered 68 % of outcomes).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from salf.fitting.engine import Fit, fit_law
from salf.laws import JOINT, Array

_PARAMETERS: Final = len(JOINT.parameters)
_FEWEST: Final = 3  # boundaries, or sizes: two of them for the exponent, one to predict

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Points:
    """P pilots.

    Attributes:
        boundaries: [P].
        trained: X of each, [P].
        examples: D of each, [P].
        losses: of every validation example, [V, P].
        untrained: of every validation example before training, [V].
        depth: L; there, with all layers frozen, interpolation takes what was untrained to stay so.
    """

    boundaries: Array
    trained: Array
    examples: Array
    losses: Array
    untrained: Array
    depth: int

    @property
    def mean(self) -> Array:
        """Mean loss of each, [P]."""
        return self.losses.mean(axis=0)


@dataclass(frozen=True)
class LeftOut:
    """Root mean square of the log residuals at points that a prediction did not see: the law's, and without a law."""

    law: float
    without: float


@dataclass(frozen=True)
class JointLaw:
    """The fitted law and how far it may be believed.

    Attributes:
        fit: of one curve, the points' mean losses.
        residuals: log of measured over fitted, [P].
        boundaries: predicted one by one from the others; ``None`` where there are too few.
        sizes: the largest predicted from the others; ``None`` where there are too few.
        faults: why it does not hold, in words; empty where it does.
    """

    fit: Fit
    residuals: Array
    boundaries: LeftOut | None
    sizes: LeftOut | None
    faults: tuple[str, ...]

    @property
    def holds(self) -> bool:
        """See the module's criteria."""
        return not self.faults


def fit_points(points: Points, losses: Array, warm: Array | None = None) -> Fit:
    """Fit the law to C sets of the points' losses [C, P]; ``warm``: starts, as the engine takes them."""
    return fit_law(JOINT, _variables(points), losses, warm=warm)


def joint_law(points: Points) -> JointLaw:
    """Fit the law to the points' mean losses and judge it."""
    fit = fit_points(points, points.mean[None])
    residuals = np.log(points.mean / JOINT.curve(fit.theta, _variables(points))[0])
    boundaries, sizes = _leave_boundaries_out(points), _leave_largest_size_out(points)
    return JointLaw(fit, residuals, boundaries, sizes, tuple(_faults(fit, boundaries, sizes)))


def verdict(law: JointLaw) -> str:
    """Whether the law holds, or why not and what follows, in plain words."""
    _, _, alpha, beta = law.fit.theta[0]
    if law.holds:
        return f"The loss falls with trained parameters (exponent {alpha:.3g}) and with examples ({beta:.3g})."
    return (
        f"No joint law holds: {'; '.join(law.faults)}. Boundaries are compared by the losses of the largest "
        "pilots, interpolated; what more data would add is not predicted."
    )


def interpolated(boundaries: Array, losses: Array, untrained: float, depth: int, at: Array) -> Array:
    """Losses [m] at boundaries ``at`` [m], on straight lines between the measured ones [n].

    In front of the first, as there. Behind the last, on the line of the last two, as far as it rises and not above the
    loss before training: the first layer that trains takes most of that away, so a line up to it says far too much.
    At ``depth``, where no layer trains and nothing was measured, the loss before training.
    """
    order = np.argsort(boundaries)
    known, values = boundaries[order], losses[order]
    found = np.interp(at, known, values)
    if len(known) > 1:
        slope = max(0.0, (values[-1] - values[-2]) / (known[-1] - known[-2]))
        behind = at > known[-1]
        found[behind] = np.minimum(values[-1] + slope * (at[behind] - known[-1]), untrained)
    return np.where((at == depth) & (known[-1] < depth), untrained, found)


def _variables(points: Points) -> Array:
    """[P, 2]: X and D."""
    return np.column_stack([points.trained, points.examples])


def _faults(fit: Fit, boundaries: LeftOut | None, sizes: LeftOut | None) -> Iterator[str]:
    _, _, alpha, beta = fit.theta[0]
    if not fit.converged[0]:
        yield "the optimiser did not converge"
    if alpha <= 0:
        yield "more trained layers do not lower the loss"
    if beta <= 0:
        yield "more examples do not lower the loss"
    if boundaries is None:
        yield "too few pilots to leave a boundary out"
    elif boundaries.law > boundaries.without:
        yield _worse("a left-out boundary", boundaries, "interpolation")
    if sizes is None:
        yield "too few pilots to leave a size out"
    elif sizes.law > sizes.without:
        yield _worse("the largest size", sizes, "the size before it")


def _worse(what: str, left_out: LeftOut, rival: str) -> str:
    return f"it predicts {what} worse than {rival} does (off by {left_out.law:.2%} against {left_out.without:.2%})"


def _leave_boundaries_out(points: Points) -> LeftOut | None:
    each = [points.boundaries == boundary for boundary in np.unique(points.boundaries)]
    return _left_out(points, each, _between_boundaries) if len(each) >= _FEWEST else None


def _leave_largest_size_out(points: Points) -> LeftOut | None:
    largest = points.examples == points.examples.max()
    return _left_out(points, [largest], _size_before) if len(np.unique(points.examples)) >= _FEWEST else None


def _left_out(points: Points, parts: Sequence[Mask], without: Callable[[Points, Mask], Array]) -> LeftOut | None:
    """Predict each part of the points from all others; ``None`` where these do not suffice for the law."""
    if any((~part).sum() <= _PARAMETERS for part in parts):
        return None
    rivals = [np.concatenate([predict(points, part) for part in parts]) for predict in (_by_law, without)]
    measured = np.log(np.concatenate([points.mean[part] for part in parts]))
    return LeftOut(*(float(np.sqrt(((np.log(rival) - measured) ** 2).mean())) for rival in rivals))


def _by_law(points: Points, part: Mask) -> Array:
    variables = _variables(points)
    fit = fit_law(JOINT, variables[~part], points.mean[None, ~part])
    return JOINT.curve(fit.theta, variables[part])[0]


def _between_boundaries(points: Points, part: Mask) -> Array:
    """Every point of the part on lines between the others of its size, and to what was untrained at the last layer."""
    found = []
    for boundary, size in zip(points.boundaries[part], points.examples[part], strict=True):
        known = ~part & (points.examples == size)
        at = np.append(points.boundaries[known], points.depth)
        order = np.argsort(at, kind="stable")
        losses = np.append(points.mean[known], points.untrained.mean())
        found.append(np.interp(boundary, at[order], losses[order]))
    return np.array(found)


def _size_before(points: Points, part: Mask) -> Array:
    """Every point of the part as the largest of the others at its boundary."""
    largest = ~part & (points.examples == points.examples[~part].max())
    known = dict(zip(points.boundaries[largest], points.mean[largest], strict=True))
    return np.array([known[boundary] for boundary in points.boundaries[part]])
