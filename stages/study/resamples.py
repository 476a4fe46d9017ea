"""Paired resamples of test examples and seeds, and what is read off them.

Examples and seeds are drawn with replacement, each resample the same for all methods of a case, so that
differences between methods are paired (Efron and Tibshirani 1993, chapter 10; both levels are resampled since
another study would have other examples and other seeds). All boundaries of a case have the same seeds; a method
that is none and lacks a drawn seed is read at those drawn that it has.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from stages.study.measured import Case, Floats, Run

FOLDS: Final = 10


class Resamples:
    """Mean quality of every run of a case in every resample.

    Args:
        case: the case.
        resamples: how many, R.
        seed: of the draw.

    Attributes:
        case: the case.
        means: run → its mean quality in every resample, [R].
    """

    def __init__(self, case: Case, resamples: int, seed: int) -> None:
        self.case = case
        rng = np.random.default_rng(seed)
        seeds = sorted({one for run in case.runs.values() for one in run.seeds})
        examples = next(iter(case.runs.values())).values.shape[1]
        weights = rng.multinomial(examples, np.full(examples, 1 / examples), size=resamples) / examples
        drawn = rng.multinomial(len(seeds), np.full(len(seeds), 1 / len(seeds)), size=resamples)
        self.means: dict[tuple[str, str], Floats] = {
            key: _over_seeds(weights @ run.values.T, drawn[:, [seeds.index(one) for one in run.seeds]])
            for key, run in case.runs.items()
        }

    def difference(self, method: str, other: str, budget: str = "epochs") -> Floats:
        """Quality of one method over another's at equal epochs, [R]; in points, or nats."""
        return self.case.scale * (self.means[method, budget] - self.means[other, "epochs"])


def interval(values: Floats, confidence: float) -> tuple[float, float]:
    """Percentile interval of a resampled value [R]."""
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def p_value(differences: Floats) -> float:
    """Two-sided: twice the smaller share of resamples on either side of no difference, itself counted to both.

    One is added to both counts, so that no finite number of resamples gives 0 (Davison and Hinkley 1997, 4.2).
    """
    resamples = len(differences)
    below, above = int((differences <= 0).sum()), int((differences >= 0).sum())
    return min(1.0, 2 * (min(below, above) + 1) / (resamples + 1))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Adjusted p-values of several comparisons (Holm 1979): step down from the smallest, never decreasing."""
    adjusted, largest = {}, 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[name]))
        adjusted[name] = largest
    return {name: adjusted[name] for name in p_values}


def over_groups(values: Sequence[tuple[str, Floats]]) -> Floats:
    """Mean of arrays of one shape, given with their groups: within the groups first, so that data sets count alike."""
    groups: dict[str, list[Floats]] = {}
    for group, value in values:
        groups.setdefault(group, []).append(value)
    return np.mean([np.mean(each, axis=0) for each in groups.values()], axis=0)


def cross_fitted(runs: Sequence[Run], folds: int = FOLDS) -> Floats:
    """Per example [n], the quality of the run that is the best by other seeds on other folds, mean over seeds.

    The best of several measured means is better than it will be again, since luck helped to choose it; a run
    that is chosen without a seed and without an example owes nothing to either. With one seed there are no others,
    and its luck counts.

    Args:
        runs: the candidates, all with the same seeds.
        folds: parts into which the examples are dealt in turns.
    """
    values = np.array([run.values for run in runs])
    _, seeds, examples = values.shape
    fold: NDArray[np.integer[Any]] = np.arange(examples) % folds
    chosen = np.empty((seeds, examples))
    for seed in range(seeds):
        judging = values[:, [other for other in range(seeds) if other != seed] or [seed]].mean(axis=1)
        for part in np.unique(fold):
            inside = fold == part
            best = int(judging[:, ~inside].mean(axis=1).argmax()) if not inside.all() else 0
            chosen[seed, inside] = values[best, seed, inside]
    return chosen.mean(axis=0)


def _over_seeds(means: Floats, drawn: NDArray[np.integer[Any]]) -> Floats:
    """Mean over the drawn seeds: [R, S] and how often each was drawn [R, S] → [R]; all alike where none was drawn."""
    counts = np.where(drawn.sum(axis=1, keepdims=True) > 0, drawn, 1)
    return (means * counts).sum(axis=1) / counts.sum(axis=1)
