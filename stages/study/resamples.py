"""Paired resamples of test examples and seeds, and mean differences over datasets with their intervals.

Examples and seeds are drawn with replacement, the same for all methods of a case, so that differences between methods
are paired (Efron and Tibshirani 1993, chapter 10; both levels are resampled because another study would have other
examples and other seeds). Cases with the same test examples draw them alike. A method that lacks seeds is compared
over the seeds that both have, and where none of these was drawn, over all of them. Row 0 draws everything once: it is
what was measured. So a difference and its resamples are one array [1+R].

Two questions are answered apart. On *these* datasets only test examples and seeds are drawn; over datasets *like
these* a group of datasets is the unit.
"""

from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import Any, Final
from zlib import crc32

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from stages.study.description import FULL, Budget
from stages.study.measured import DIGITS, Case, Floats, Line
from stages.study.summary import Estimate

CONFIDENCE: Final = 0.95  # of all intervals; tests are at 5 %
POWER: Final = 0.8
_SAME_COST: Final = 1e-9  # shares of one boundary's cost differ by rounding alone

Gap = tuple[str, Floats]  # of one case: its group, and the difference as measured and in every resample [1+R]


class Resamples:
    """Quality of every run of a case as measured, and in each of R resamples, drawn with a seed."""

    def __init__(self, case: Case, resamples: int, seed: int = 1) -> None:
        self.case = case
        self._seeds = sorted({one for run in case.runs.values() for one in run.seeds})
        examples = next(iter(case.runs.values())).values.shape[1]
        weights = _weights(_test_examples(seed, case.test_set, examples, resamples), case.labels)
        name = crc32(f"{case.data_set}, {case.model}".encode())
        self._drawn = _drawn(np.random.default_rng([seed, name]), len(self._seeds), resamples)
        self._by_seed = {key: case.scale * weights @ run.values.T for key, run in case.runs.items()}  # [1+R, S]

    def quality(self, method: str, budget: Budget = "epochs", seeds: Sequence[int] | None = None) -> Floats:
        """Return a method's mean quality over its seeds, or over some of them, [1+R]; in points or minus nats."""
        own = self.case.runs[method, budget].seeds
        chosen = own if seeds is None else seeds
        means = self._by_seed[method, budget][:, [own.index(one) for one in chosen]]
        drawn = self._drawn[:, [self._seeds.index(one) for one in chosen]]  # [1+R, S]
        counts = np.where(drawn.sum(axis=1, keepdims=True) > 0, drawn, 1)  # all seeds alike where none was drawn
        return np.asarray(((means * counts).sum(axis=1) / counts.sum(axis=1)).round(DIGITS))

    def over(self, method: str, other: str, budget: Budget = "epochs") -> Floats | None:
        """Return a method's quality minus another's at equal epochs, over their common seeds (or ``None``), [1+R]."""
        if not (seeds := self.case.common_seeds(method, other, budget)):
            return None
        return np.asarray((self.quality(method, budget, seeds) - self.quality(other, "epochs", seeds)).round(DIGITS))

    @cached_property
    def over_full(self) -> Floats:
        """Every measured boundary's quality minus full fine-tuning's [1+R, B]."""
        return np.array([self.over(method, FULL) for method in self.case.curve().values()]).T


Measured = Sequence[tuple[Resamples, str]]  # cases with the method that was measured there


def interval(values: Floats) -> Floats:
    """Return the ends of the percentile interval of resampled values [1+R, ...]."""
    return np.quantile(values[1:], [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], axis=0)


def p_value(differences: Floats) -> float:
    """Return the two-sided p-value of resampled differences [1+R]: twice the smaller tail, zero counted in both."""
    # One is added to both counts, so that no number of resamples gives 0 (Davison and Hinkley 1997, 4.2).
    resamples, exact = len(differences) - 1, np.round(differences[1:], DIGITS)
    below, above = int((exact <= 0).sum()), int((exact >= 0).sum())
    return min(1.0, 2 * (min(below, above) + 1) / (resamples + 1))


def over_other_groups(values: Sequence[Gap]) -> dict[str, float] | None:
    """Return interval, p-value and standard error of the mean over groups like these; ``None``: there is one group.

    By Student's t over the groups' means, whose spread includes what examples and seeds contribute.
    """
    means = np.array([*group_means(values).values()]).round(DIGITS)
    if len(means) < 2:
        return None
    mean, error, freedom = float(means.mean()), float(means.std(ddof=1) / np.sqrt(len(means))), len(means) - 1
    half_width = float(student.ppf((1 + CONFIDENCE) / 2, freedom) * error)
    p = 2 * float(student.sf(abs(mean) / error, freedom)) if error else float(mean == 0)
    return {"low": mean - half_width, "high": mean + half_width, "p": p, "error": error}


def detectable(error: float, freedom: float = np.inf) -> float:
    """Return the true difference that a two-sided test at 5 % finds with a power of 80 %."""
    return float((student.ppf((1 + CONFIDENCE) / 2, freedom) + student.ppf(POWER, freedom)) * error)


def group_means(values: Sequence[Gap]) -> dict[str, Floats]:
    """Return by group the mean of arrays given with their groups."""
    groups: dict[str, list[Floats]] = {}
    for group, value in values:
        groups.setdefault(group, []).append(value)
    return {group: np.mean(each, axis=0) for group, each in groups.items()}


def over_groups(values: Sequence[Gap]) -> Floats:
    """Return the mean over groups, so that datasets count alike."""
    return np.mean([*group_means(values).values()], axis=0)


def estimate(gaps: Sequence[Gap]) -> Estimate:
    """Return the mean difference over groups of datasets, with two kinds of inference."""
    mean, groups = over_groups(gaps), len({group for group, _ in gaps})
    found = {"mean_difference_points": float(mean[0]), "interval_examples": tuple(map(float, interval(mean)))}
    found |= {"p": p_value(mean), "detectable_points": detectable(mean[1:].std())}
    if other := over_other_groups([(group, gap[0]) for group, gap in gaps]):
        found |= {"interval_datasets": (other["low"], other["high"]), "p_datasets": other["p"]}
        found["detectable_points_datasets"] = detectable(other["error"], groups - 1)
    return Estimate.model_validate(found)


def above_full(measured: Measured, budget: Budget = "epochs") -> list[Gap]:
    """Return each case's difference from full fine-tuning, over the seeds that both have."""
    found = ((one.case.group, one.over(method, FULL, budget)) for one, method in measured)
    return [(group, gap) for group, gap in found if gap is not None]


def above_fixed_depth(measured: Measured) -> list[Gap]:
    """Return each case's difference from a fixed depth, which freezes one share of the layers on all cases of a model.

    It costs as much on average. A model is left out where no boundary does above which a layer trains.
    """
    found: list[Gap] = []
    for model in dict.fromkeys(one.case.model for one, _ in measured):
        mine = [(one, method) for one, method in measured if one.case.model == model]
        cost = np.mean([one.case.cost_share(method) for one, method in mine])
        share = share_of_cost(float(cost), [(one.case.data_set, one.case.line) for one, _ in mine])
        for one, method in mine if share is not None else ():
            gap = one.over(method, FULL)
            if gap is not None:
                found.append((one.case.group, gap - one.over_full @ one.case.line.weights(np.array(share))))
    return found


def share_of_cost(cost: float, lines: Sequence[tuple[str, Line]]) -> float | None:
    """Return the share of the layers whose freezing costs this much on average over groups; ``None``: none below 1."""
    deepest = min(line.deepest for _, line in lines)
    shares = np.unique([deepest, *(share for _, line in lines for share in line.shares if share < deepest)])
    costs = over_groups([(group, np.interp(shares, line.shares, line.costs)) for group, line in lines])  # falling
    within = costs[-1] - _SAME_COST <= cost <= costs[0] + _SAME_COST  # sums differ by their order
    return float(np.interp(cost, costs[::-1], shares[::-1])) if within else None


def _weights(drawn: NDArray[np.integer[Any]], labels: NDArray[np.integer[Any]] | None) -> Floats:
    """Weight of every example in the mean of a resample [1+R, examples]."""
    weights: Floats = drawn / drawn.shape[1]
    for label in np.unique(labels) if labels is not None else []:
        mine = labels == label
        weights[:, mine] *= mine.sum() / np.maximum(1, drawn[:, mine].sum(axis=1, keepdims=True))
    return weights


@lru_cache(maxsize=16)  # several models share a test set
def _test_examples(seed: int, test_set: int, examples: int, resamples: int) -> NDArray[np.integer[Any]]:
    """Counts of each test example in every resample [1+R, examples]."""
    return _drawn(np.random.default_rng([seed, test_set]), examples, resamples).astype(np.uint16)


def _drawn(rng: np.random.Generator, things: int, resamples: int) -> NDArray[np.integer[Any]]:
    """Counts of each thing, first once each and then in every resample [1+R, things]."""
    return np.insert(rng.multinomial(things, np.full(things, 1 / things), size=resamples), 0, 1, axis=0)
