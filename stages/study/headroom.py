"""Headroom: what a perfect choice of the boundary per dataset could gain over the fixed depth of the same mean cost.

Selectors can only be better than a fixed depth where datasets differ. *Interaction* tests whether their curves over
depth differ by more than the noise of seeds and test examples. *Headroom* picks each dataset's boundary from its own
measured curve. A curve that is picked from and scored on flatters the pick ("seen"). "cross-fitted" picks by the other
seeds on nine tenths of the test examples and scores the remaining seed on the remaining tenth, over all seeds, tenths
and several splits. That understates it, because fewer runs are seen. "validation" picks by validation accuracy.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
import pandas as pd

from stages.study.comparisons import share_of_cost
from stages.study.description import FULL
from stages.study.measured import Case, Floats
from stages.study.resamples import CONFIDENCE
from stages.study.tables import Row

_SEED: Final = 1
_FOLDS: Final = 10
_SPLITS: Final = 20
_DRAWS: Final = 5000
_AIMS: Final = [
    *(("within", points) for points in (1, 2)),  # points below full fine-tuning
    *(("trade", price) for price in (0.5, 2, 4, 6, 8, 11, 14, 18)),  # points that full fine-tuning's cost is worth
]


def several_seeds(cases: Sequence[Case]) -> dict[str, list[Case]]:
    """Return by model the cases with accuracies of at least two seeds, for models with at least two datasets."""
    fitting = [case for case in cases if case.unit == "points" and len(case.runs[FULL, "epochs"].seeds) > 1]
    models = {case.model: [one for one in fitting if one.model == case.model] for case in fitting}
    return {model: mine for model, mine in models.items() if len(mine) > 1}


def interactions(cases: Sequence[Case]) -> pd.DataFrame:
    """Return for each model that shares at least two boundaries the interaction of dataset and boundary."""
    rows = []
    for model, mine in several_seeds(cases).items():
        shared = sorted(set.intersection(*(set(case.curve()) for case in mine)) - {mine[0].layers})
        if len(shared) > 1:
            names = {"model": model, "data_sets": len(mine), "boundaries": " ".join(map(str, shared))}
            rows.append(names | _interaction([_values(case)[np.isin(list(case.curve()), shared)] for case in mine]))
    return pd.DataFrame(rows)


def _interaction(tables: Sequence[Floats]) -> Row:
    """Mean square of datasets' tables [B, S, N], and that of the noise of seeds and test examples alone."""
    rng, drawn = np.random.default_rng(_SEED), []
    for values in tables:
        noise = sum(np.cov(values.mean(axis=axis)) / values.shape[3 - axis] for axis in (2, 1))  # [B, B]
        drawn.append(rng.multivariate_normal(np.zeros(len(values)), noise, _DRAWS, method="eigh"))
    observed = _mean_square(np.array([[values.mean(axis=(1, 2)) for values in tables]])).item()
    null = _mean_square(np.stack(drawn, axis=1))
    mean, high = null.mean(), np.quantile(null, CONFIDENCE)
    p, excess = (1 + (null >= observed).sum()) / (_DRAWS + 1), np.sqrt(max(0.0, observed - mean))
    return {"observed": observed, "noise": mean, "noise_high": high, "p": p, "excess": excess}


def _mean_square(tables: Floats) -> Floats:
    """Mean squares of tables [R, datasets, boundaries], centred over both, per degree of freedom [R]."""
    for axis in (1, 2):
        tables = tables - tables.mean(axis=axis, keepdims=True)
    return np.asarray((tables**2).sum(axis=(1, 2)) / ((tables.shape[1] - 1) * (tables.shape[2] - 1)))


def headroom(cases: Sequence[Case]) -> pd.DataFrame:
    """Return for each model every way to pick its datasets' boundaries; means over groups of datasets, in points."""
    rows = []
    for model, mine in several_seeds(cases).items():
        rng = np.random.default_rng(_SEED)
        evidence = {
            "cross-fitted": [_cross_fitted(case, rng) for case in mine],
            "seen": [(case.line.over_full[None], case.line.over_full[None]) for case in mine],
            "validation": [(_validated(case), case.line.over_full[None]) for case in mine],
        }
        for picked_by, curves in evidence.items():
            for aim, points in _AIMS:
                picked = [_picked(case, aim, points, *each) for case, each in zip(mine, curves, strict=True)]
                names = {"model": model, "picked_by": picked_by, "aim": f"{aim} {points:g}"}
                rows.append(names | _over_fixed_depth(mine, pd.DataFrame(picked)))
    return pd.DataFrame(rows)


def _picked(case: Case, aim: str, points: float, judged: Floats, scored: Floats) -> Row:
    """Mean cost of the boundaries picked by curves [K, B], and how much worse than full fine-tuning others score."""
    costs, near = case.line.costs, judged >= judged[:, :1] - points
    worth = np.where(near, np.arange(len(costs)), -1) if aim == "within" else judged - points * costs  # [K, B]
    chosen = worth.argmax(axis=1)
    behind = scored[:, 0] - scored[np.arange(len(scored)), chosen]
    return {"cost_share": costs[chosen].mean(), "behind_full": behind.mean()}


def _over_fixed_depth(cases: Sequence[Case], picked: pd.DataFrame) -> Row:
    """Means of the picks over groups, and their gain where a fixed depth below 1 costs as much on average."""
    groups = [case.group for case in cases]
    by_group = picked.groupby(groups).mean()
    found: Row = {"groups": len(by_group), **by_group.mean()}
    depth = share_of_cost(found["cost_share"], [(case.group, case.line) for case in cases])
    if depth is None:
        return found
    lost = pd.Series([-np.interp(depth, case.line.shares, case.line.over_full) for case in cases])
    gains = (lost - picked["behind_full"]).groupby(groups).mean()
    found |= {"fixed_depth": depth, "fixed_behind_full": lost.groupby(groups).mean().mean(), "gain": gains.mean()}
    return found | {"gain_error": gains.sem(), "least_gain": gains.drop(gains.idxmax()).mean()}


def _values(case: Case) -> Floats:
    """Points of every test example at measured boundaries [B, S, N]."""
    return case.scale * np.array([case.runs[method, "epochs"].values for method in case.curve().values()])


def _validated(case: Case) -> Floats:
    return 100 * np.array([[case.runs[method, "epochs"].validation_accuracy for method in case.curve().values()]])


def _cross_fitted(case: Case, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Curves to pick by and to score on, each [splits x folds x seeds, B]."""
    values, judged, scored = _values(case), [], []
    _, seeds, examples = values.shape
    others = (1 - np.eye(seeds)) / (seeds - 1)  # [S, S]
    for _ in range(_SPLITS):
        inside = np.eye(_FOLDS)[rng.permutation(np.arange(examples) % _FOLDS)]  # [N, F]
        within, sizes = values @ inside, inside.sum(axis=0)  # [B, S, F]
        outside = (values.sum(axis=2, keepdims=True) - within) / (examples - sizes)
        judged.append(np.einsum("bsf,ts->ftb", outside, others).reshape(-1, len(values)))
        scored.append((within / sizes).transpose(2, 1, 0).reshape(-1, len(values)))
    return np.concatenate(judged), np.concatenate(scored)
