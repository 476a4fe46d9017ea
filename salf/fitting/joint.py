"""Joint laws of a factor X and the number of examples D, by method: which method is better, and from which D on.

**The law.** Zhang et al. (arXiv 2402.17193) fit each method's loss over D and X: model size, pre-training tokens or
adapter size; ours are the trained layers, too. It is multiplicative (eq. 1, :data:`salf.laws.JOINT`) or additive
(:data:`salf.laws.ADDITIVE`): the form with the lower errors at runs left out is taken. As in the paper, E and the term
of D are fitted for one factor of a method, and held for a further one. Residuals are logarithms (the paper's are not).

**Left out**, and predicted from the other runs, are each level of X in turn, and the largest D; without a law by
straight lines between the other runs, beyond these as at the nearest. A law *holds* if the optimiser converged, both
exponents are positive, and it predicts both no worse than the lines do. Noise of few trainings can fail a true law.

**Resamples** take a residual of the law for every run (Efron & Tibshirani 1993, §9.4), widened by √(P/(P−d)) for the d
parameters that P runs decide, and where they are known a draw of the examples' losses, the same for all runs; then they
refit the law. Intervals of losses are those of one more fine-tune, which gets a residual, too.

**Critical size** (the paper's D^c): the number of examples from which on one method's loss is below another's, found by
bisection. With equal E and multiplicative laws it is (A₁·X^−α₁ / A₂·X^−α₂)^(1/(β₁−β₂)).
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Final, NamedTuple, Self

import numpy as np

from salf.evidence import CriticalSize, Forecast, LeftOut, MethodLaw
from salf.files import significant
from salf.fitting.bootstrap import interval, resampled_means
from salf.fitting.engine import Fit, fit_law
from salf.fitting.quasi_newton import Mask
from salf.laws import ADDITIVE, JOINT, Array, Law

REACH: Final = 10  # critical sizes are sought up to this many times the largest run
TRUSTED: Final = 4  # beyond this many times the largest run they carry a warning
_FEWEST: Final = 3  # levels, or sizes: two of them for the exponent, one to predict
_WARM_STARTS: Final = 3  # of a resample's fit: the best ends of the fit to the runs themselves
_GRID: Final = 200  # sizes at which two curves are compared before bisection
_DIGITS: Final = 8


class Runs(NamedTuple):
    """P runs of one method."""

    factor: str  # what X is
    variables: Array  # X and D of each, [P, 2]
    losses: Array  # [P]
    samples: Array  # the losses over B draws of the validation examples, [B, P]

    @classmethod
    def of(cls, factor: str, variables: Array, losses: Array, resamples: int, seed: int) -> Self:
        """Means of n trainings with the same X and D [n, 2]; ``losses``: of V validation examples, or one mean, [V, n].

        The same seed draws the same examples.
        """
        points, place = np.unique(variables, axis=0, return_inverse=True)
        means = np.stack([losses[:, place == point].mean(axis=1) for point in range(len(points))], axis=1)  # [V, P]
        return cls(factor, points, means.mean(axis=0), resampled_means(means, resamples, seed))


class JointLaw(NamedTuple):
    """The law of a method's runs."""

    runs: Runs
    law: Law
    theta: Array  # of the runs, then of their B resamples, [1 + B, d]
    noise: Array  # residuals, as wide as those of runs that decided no parameter, [P]
    record: MethodLaw

    def at(self, level: float, examples: Array) -> Array:
        """Losses at a level of X, for numbers of examples [n], [1 + B, n]."""
        return self.law.curve(self.theta, np.column_stack([np.full(len(examples), level), examples]))


def joint_law(
    runs: Runs, confidence: float, seed: int, forms: Sequence[Law] = (JOINT, ADDITIVE), held: Array | None = None
) -> JointLaw:
    """Fit the form that predicts left-out runs better, or the first where there are too few to tell, and judge it.

    ``held``: parameters that are known, NaN for others, of the runs and their resamples, [1 + B, d].
    """
    known, resampled = (None, None) if held is None else (held[:1], held[1:])
    errors = [_left_out(runs, column, forms, known) for column in (0, 1)]
    law = min(forms, key=lambda form: sum(each.forms.get(form.name, np.inf) for each in errors if each))
    fit = fit_law(law, runs.variables, runs.losses[None], held=known)
    residuals = np.log(runs.losses / law.curve(fit.theta, runs.variables)[0])
    free = len(law.parameters) if known is None else int(np.isnan(known).sum())
    noise = residuals * np.sqrt(len(residuals) / max(len(residuals) - free, 1))
    # Fitted values in place of the runs' own noise.
    drawn = runs.samples * np.exp(np.random.default_rng(seed).choice(noise, runs.samples.shape) - residuals)
    again = fit_law(law, runs.variables, drawn, warm=fit.ends[:1, :_WARM_STARTS], held=resampled).theta
    levels, largest = (each and each.model_copy(update={"law": each.forms[law.name]}) for each in errors)
    faults = list(_faults(runs.factor, fit, levels, largest))
    low, high = map(numbers, interval(law.natural(again), confidence))
    alpha, beta = fit.theta[0, -2:]
    falls = f"The loss falls with {runs.factor} (exponent {alpha:.3g}) and with examples ({beta:.3g})."
    record = MethodLaw(
        name=law.name,
        formula=f"{law.formula} (X: {runs.factor}, D: examples)",
        parameters=dict(zip(law.parameters, numbers(law.natural(fit.theta)[0]), strict=True)),
        intervals={name: list(pair) for name, *pair in zip(law.parameters, low, high, strict=True)},
        residual=_root_mean_square(residuals),
        left_out={"levels": levels, "largest_size": largest},
        holds=not faults,
        verdict=f"No joint law holds: {'; '.join(faults)}." if faults else falls,
    )
    return JointLaw(runs, law, np.concatenate([fit.theta, again]), noise, record)


def forecasts(laws: Mapping[str, JointLaw], examples: Sequence[float], confidence: float, seed: int) -> list[Forecast]:
    """Each method's losses at all levels that it was run at, for numbers of examples."""
    rng, found = np.random.default_rng([seed, 1]), []
    for name, law in laws.items():
        for level in levels_of(law):
            losses = law.at(level, np.array(examples))  # [1 + B, n]
            outcomes = losses[1:] * np.exp(rng.choice(law.noise, losses[1:].shape))
            columns = (numbers(each) for each in (losses[0], *interval(outcomes, confidence)))
            for size, loss, low, high in zip(examples, *columns, strict=True):
                found.append(Forecast(method=name, level=level, examples=size, loss=loss, low=low, high=high))
    return found


def critical_sizes(laws: Mapping[str, JointLaw], confidence: float) -> list[CriticalSize]:
    """For all pairs of methods and levels that both were run at."""
    return [
        _critical_size(laws, pair, level, confidence)
        for pair in combinations(laws, 2)
        for level in levels_of(laws[pair[0]])
        if level in levels_of(laws[pair[1]])
    ]


def levels_of(law: JointLaw) -> list[float]:
    """Levels of X, the largest first."""
    return np.unique(law.runs.variables[:, 0])[::-1].tolist()


def _critical_size(
    laws: Mapping[str, JointLaw], pair: tuple[str, str], level: float, confidence: float
) -> CriticalSize:
    sizes = np.concatenate([laws[name].runs.variables[:, 1] for name in pair])
    below, above = sorted(pair, key=lambda name: laws[name].at(level, sizes.min(keepdims=True))[0, 0])
    found = overtaken(laws[below], laws[above], level, sizes.min(), REACH * sizes.max())
    tail = (1 - confidence) / 2
    ends = found[0], *np.quantile(found[1:], [tail, 1 - tail], method="inverted_cdf")
    size, low, high = (significant(float(end), _DIGITS) if 0 < end < np.inf else None for end in ends)
    warnings = [f"the law of {name} does not hold" for name in pair if not laws[name].record.holds]
    if size and size > TRUSTED * sizes.max():
        warnings.append(f"more than {TRUSTED} times the {sizes.max():g} examples of the largest run")
    return CriticalSize(level=level, below=below, above=above, examples=size, low=low, high=high, warnings=warnings)


def overtaken(first: JointLaw, second: JointLaw, level: float, smallest: float, largest: float) -> Array:
    """Numbers of examples from which on the second of each pair of curves is lower, [1 + B].

    Zero where it is at ``smallest``; infinity where it is at none up to ``largest``.
    """

    def lower(examples: Array) -> Mask:
        return second.at(level, examples) < first.at(level, examples)  # [1 + B, n]

    grid = np.geomspace(smallest, largest, _GRID)
    found = lower(grid)
    place = found.argmax(axis=1)
    low, high = grid[np.maximum(place - 1, 0)], grid[place]
    for _ in range(60):
        middle = np.sqrt(low * high)
        beyond = np.diagonal(lower(middle))
        low, high = np.where(beyond, low, middle), np.where(beyond, middle, high)
    return np.where(found[:, 0], 0.0, np.where(found.any(axis=1), high, np.inf))


def numbers(values: Array) -> list[float]:
    """Values as artifacts hold them."""
    return [significant(float(value), _DIGITS) for value in values]


def _faults(factor: str, fit: Fit, levels: LeftOut | None, largest: LeftOut | None) -> Iterator[str]:
    if not fit.converged[0]:
        yield "the optimiser did not converge"
    for what, exponent in zip((factor, "examples"), fit.theta[0, -2:], strict=True):
        if exponent <= 0:
            yield f"the loss does not fall with {what}"
    for part, errors in ((f"a level of {factor}", levels), ("the largest size", largest)):
        if errors is None:
            yield f"too few runs to leave {part} out"
        elif errors.law > errors.without:
            off = f"(off by {errors.law:.2%} against {errors.without:.2%})"
            yield f"it predicts {part} worse than lines between the other runs do {off}"


def _left_out(runs: Runs, column: int, forms: Sequence[Law], held: Array | None) -> LeftOut | None:
    """Errors at each level of X in turn, or at the largest D; ``None``: too few levels, or others for any form."""
    at = runs.variables[:, column]
    levels = np.unique(at)
    left = at == (levels[-1:] if column else levels)[:, None]  # [fits, P]
    able = [law for law in forms if len(law.parameters) < (~left).sum(axis=1).min()]
    if len(levels) < _FEWEST or not able:
        return None
    losses, errors = np.tile(runs.losses, (len(left), 1)), {}
    for law in able:
        fit = fit_law(law, runs.variables, losses, (~left).astype(float), held=held)
        errors[law.name] = _root_mean_square(np.log(law.curve(fit.theta, runs.variables) / losses)[left])
    without = _root_mean_square(np.log(_on_lines(runs, column) / losses)[left])
    return LeftOut(law=min(errors.values()), without=without, forms=errors)


def _on_lines(runs: Runs, column: int) -> Array:
    """Each run on lines between those of other levels at its value of the other variable (if none is: all), [P]."""
    at, same = runs.variables[:, column], runs.variables[:, 1 - column]
    found = []
    for run in range(len(at)):
        alike = (at != at[run]) & (same == same[run])
        known = np.flatnonzero(alike if alike.any() else at != at[run])
        known = known[np.argsort(at[known], kind="stable")]
        found.append(np.interp(at[run], at[known], runs.losses[known]))
    return np.array(found)


def _root_mean_square(values: Array) -> float:
    return significant(float(np.sqrt((values**2).mean())), _DIGITS)
