"""Headroom: what a perfect choice of the boundary per dataset could gain over one fixed depth.

Selectors can only be better than a fixed depth where datasets differ. *Interaction* tests whether their curves over
depth differ by more than the noise of seeds and test examples. *Headroom* picks each dataset's boundary from its own
measured curve and compares it with the fixed depth of the same mean cost. A curve that is picked from and scored on
flatters the pick ("seen"); "cross-fitted" picks by the other seeds on nine tenths of the test examples and scores the
remaining seed on the remaining tenth, over all seeds, tenths and several splits, which understates it, because fewer
runs are seen. The truth lies between. "validation" picks by the runs' validation accuracy.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stages.study.description import FULL
from stages.study.measured import Case, Floats
from stages.study.resamples import CONFIDENCE, FOLDS, over_groups

Pick = Callable[[Floats, Floats], NDArray[np.integer]]  # judged curves [K, B] and costs [B] → places [K]
Row = dict[str, Any]
_SEED: Final = 1
_SPLITS: Final = 20
_DRAWS: Final = 5000
_TOLERANCES: Final = (1, 2)  # points below full fine-tuning
_PRICES: Final = (0.5, 2, 4, 6, 8, 11, 14, 18)  # points of accuracy that full fine-tuning's whole cost is worth


def several_seeds(cases: Sequence[Case]) -> dict[str, list[Case]]:
    """Return by model the cases with accuracies of at least two seeds, for models with at least two datasets."""
    fitting = [case for case in cases if case.unit == "points" and len(case.runs[FULL, "epochs"].seeds) > 1]
    models = {case.model: [one for one in fitting if one.model == case.model] for case in fitting}
    return {model: mine for model, mine in models.items() if len(mine) > 1}


def interactions(cases: Sequence[Case]) -> pd.DataFrame:
    """Return for each model that shares at least two boundaries the interaction of dataset and boundary."""
    rows = [_interaction(model, mine) for model, mine in several_seeds(cases).items()]
    return pd.DataFrame([row for row in rows if row])


def _interaction(model: str, cases: Sequence[Case]) -> Row | None:
    boundaries = sorted(set.intersection(*(set(case.curve()) for case in cases)) - {cases[0].layers})
    if len(boundaries) < 2:
        return None
    rng, means, drawn = np.random.default_rng(_SEED), [], []
    for case in cases:
        values = _values(case, boundaries)  # [B, S, N]
        noise = np.cov(values.mean(axis=2)) / values.shape[1] + np.cov(values.mean(axis=1)) / values.shape[2]
        means.append(values.mean(axis=(1, 2)))
        drawn.append(rng.multivariate_normal(np.zeros(len(boundaries)), noise, _DRAWS, method="eigh"))
    observed, null = _mean_square(np.array(means)[None])[0], _mean_square(np.stack(drawn, axis=1))
    return {
        "model": model,
        "data_sets": len(cases),
        "boundaries": " ".join(map(str, boundaries)),
        "observed": float(observed),
        "noise": float(null.mean()),
        "noise_high": float(np.quantile(null, CONFIDENCE)),
        "p": float((1 + (null >= observed).sum()) / (_DRAWS + 1)),
        "excess": float(np.sqrt(max(0.0, observed - null.mean()))),
    }


def headroom(cases: Sequence[Case]) -> pd.DataFrame:
    """Return for each model every way to pick its datasets' boundaries; means over groups of datasets, in points."""
    rows = []
    for model, mine in several_seeds(cases).items():
        rng = np.random.default_rng(_SEED)
        evidence = {
            "cross-fitted": [_cross_fitted(case, rng) for case in mine],
            "seen": [(curve, curve) for curve in map(_curve, mine)],
            "validation": [(_validated(case), _curve(case)) for case in mine],
        }
        for picked_by, curves in evidence.items():
            for aim, pick in _aims().items():
                rows.append({"model": model, "picked_by": picked_by, "aim": aim, **_headroom(mine, pick, curves)})
    return pd.DataFrame(rows)


def _aims() -> dict[str, Pick]:
    def within(points: float) -> Pick:
        return lambda judged, _: judged.shape[1] - 1 - (judged >= judged[:, :1] - points)[:, ::-1].argmax(axis=1)

    def trade(price: float) -> Pick:
        return lambda judged, costs: (judged - price * costs).argmax(axis=1)

    return {f"within {points}": within(points) for points in _TOLERANCES} | {
        f"trade {price:g}": trade(price) for price in _PRICES
    }


def _headroom(cases: Sequence[Case], pick: Pick, curves: Sequence[tuple[Floats, Floats]]) -> Row:
    groups = [case.group for case in cases]
    picked = pd.DataFrame([_picked(case, pick, *each) for case, each in zip(cases, curves, strict=True)])
    by_group = picked.groupby(groups).mean()
    found: Row = {"groups": len(by_group), **by_group.mean()}
    depth = _fixed_depth(cases, by_group["cost_share"].mean())
    if depth is None:
        return found
    lost = np.array([-np.interp(depth, case.line.shares, case.line.over_full) for case in cases])
    gains = (lost - picked["behind_full"]).groupby(groups).mean()
    return found | {
        "fixed_depth": depth,
        "fixed_behind_full": pd.Series(lost).groupby(groups).mean().mean(),
        "gain": gains.mean(),
        "gain_error": gains.sem(),
        "least_gain": gains.drop(gains.idxmax()).mean(),
    }


def _picked(case: Case, pick: Pick, judged: Floats, scored: Floats) -> Row:
    """Mean cost of the picked boundaries, and by how much they are worse than full fine-tuning."""
    chosen = pick(judged, case.line.costs)
    behind = scored[:, 0] - scored[np.arange(len(scored)), chosen]
    return {"cost_share": case.line.costs[chosen].mean(), "behind_full": behind.mean()}


def _fixed_depth(cases: Sequence[Case], cost: float) -> float | None:
    """The share of the layers whose freezing costs this much on average; ``None``: none below 1 does."""
    lines = [(case.group, case.line) for case in cases]
    shares = np.linspace(0, min(line.deepest for _, line in lines), 1000)
    mean = over_groups([(group, np.interp(shares, line.shares, line.costs)) for group, line in lines])  # falls
    return float(np.interp(cost, mean[::-1], shares[::-1])) if mean[-1] <= cost <= mean[0] else None


def _values(case: Case, boundaries: Sequence[int]) -> Floats:
    """Points of every test example [B, S, N] at measured boundaries."""
    curve = case.curve()
    return case.scale * np.array([case.runs[curve[boundary], "epochs"].values for boundary in boundaries])


def _curve(case: Case) -> Floats:
    return _values(case, list(case.curve())).mean(axis=(1, 2))[None]


def _validated(case: Case) -> Floats:
    return 100 * np.array([[case.runs[method, "epochs"].validation_accuracy for method in case.curve().values()]])


def _cross_fitted(case: Case, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Curves to pick by and to score on, each [splits x folds x seeds, B]."""
    values = _values(case, list(case.curve()))  # [B, S, N]
    _, seeds, examples = values.shape
    others = (1 - np.eye(seeds)) / (seeds - 1)  # [S, S]
    judged, scored = [], []
    for _ in range(_SPLITS):
        inside = np.eye(FOLDS)[rng.permutation(np.arange(examples) % FOLDS)]  # [N, F]
        within, sizes = values @ inside, inside.sum(axis=0)  # [B, S, F]
        outside = (values.sum(axis=2, keepdims=True) - within) / (examples - sizes)
        judged.append(np.einsum("bsf,ts->ftb", outside, others).reshape(-1, len(values)))
        scored.append((within / sizes).transpose(2, 1, 0).reshape(-1, len(values)))
    return np.concatenate(judged), np.concatenate(scored)


def _mean_square(tables: Floats) -> Floats:
    """Mean squares of tables [R, datasets, boundaries], centred over both, per degree of freedom [R]."""
    centred = tables - tables.mean(axis=1, keepdims=True) - tables.mean(axis=2, keepdims=True)
    centred = centred + tables.mean(axis=(1, 2), keepdims=True)
    freedom = (tables.shape[1] - 1) * (tables.shape[2] - 1)
    return np.asarray((centred**2).sum(axis=(1, 2)) / freedom)
