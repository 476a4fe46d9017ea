"""The first round's analysis: recomputes what ``reports/study/first_round.json`` and the tables beside it keep.

Selectors' choices and the readings of the paper's selector, compared with full fine-tuning and with the fixed depth of
the same cost; headroom; and the interaction of dataset and boundary. Datasets count alike, however many models they
were studied with, and those of one group are left out together. Only accuracies are averaged.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import pandas as pd

from salf.files import rounded
from stages.study.description import FULL
from stages.study.description import Case as Key
from stages.study.measured import Case, Floats, Run
from stages.study.reading import read_study
from stages.study.resamples import CONFIDENCE, Gap, Resamples, above_fixed_depth, above_full, estimate, share_of_cost
from stages.study.summary import Json
from stages.study.tables import Row, columns, read_table, records

PRICE_ONLY: Final = ("affordable",)  # selectors that see costs, and neither data nor model
RANDOM: Final = "random"  # a random boundary is judged by the mean over all boundaries, not by one draw
_MEAN: Final = "mean over boundaries 1..L-1 that are measured or between measured ones"


class Choice(NamedTuple):
    """A selector's choice; ``deciding_share``: FLOPs of its pilots as a share of full fine-tuning's."""

    rule: str
    selector: str
    boundary: int | None
    reason: str
    deciding_share: float = 0.0


class Chosen(NamedTuple):
    """A case with its selectors' choices, and the chosen boundaries that are interpolated."""

    drawn: Resamples
    choices: tuple[Choice, ...]
    between: dict[str, int]


Drawn = Mapping[Key, Chosen]


def read(folder: Path, resamples: int) -> Drawn:
    """Every case with its selectors' choices and readings."""
    table = pd.concat([read_table(folder, "choices"), *_readings(folder)])
    return {case.key: _with_choices(case, table, resamples) for case in read_study(folder).cases}


def _readings(folder: Path) -> list[pd.DataFrame]:
    path = folder / "readings.csv"
    return [pd.read_csv(path)] if path.exists() else []


def _with_choices(case: Case, table: pd.DataFrame, resamples: int) -> Chosen:
    """The case with its choices; unmeasured boundaries are interpolated."""
    mine = table[(table["data_set"] == case.data_set) & (table["model"] == case.model) & (table["selector"] != "")]
    choices = [
        Choice(
            row["rule"],
            row["selector"],
            None if row["boundary"] is None or row["selector"] == RANDOM else int(row["boundary"]),
            _MEAN if row["selector"] == RANDOM else str(row.get("reason") or ""),
            float(row.get("deciding_share") or 0.0),
        )
        for row in records(mine)
    ]
    wanted = sorted({choice.boundary for choice in choices if choice.boundary is not None})
    found = {b: run for b in wanted if (run := _between(case, b))}
    mixed: dict[Any, Run] = {(f"freeze-{b}", "epochs"): run for b, run in found.items()}
    if any(choice.selector == RANDOM for choice in choices):
        curve = case.curve()
        every = [case.runs[curve[b], "epochs"] if b in curve else _between(case, b) for b in range(1, case.layers)]
        there = [run for run in every if run is not None]
        mixed |= {(RANDOM, "epochs"): _mixed(there, [1 / len(there)] * len(there))} if there else {}
    whole = dataclasses.replace(case, runs={**case.runs, **mixed})
    return Chosen(Resamples(whole, resamples), tuple(choices), {f"freeze-{b}": b for b in found})


def _between(case: Case, boundary: int) -> Run | None:
    """An unmeasured boundary's run, interpolated linearly between its measured neighbours, if it has both."""
    curve = case.curve()
    below = max((b for b in curve if b < boundary), default=None)
    above = min((b for b in curve if b > boundary), default=case.layers)
    if boundary in curve or below is None or above == case.layers:
        return None
    share = (boundary - below) / (above - below)
    return _mixed([case.runs[curve[b], "epochs"] for b in (below, above)], [1 - share, share])


def _mixed(runs: Sequence[Run], shares: Sequence[float]) -> Run:
    """A weighted mean of runs with the same seeds, example by example."""

    def mean(name: str) -> Any:
        return sum(share * getattr(run, name) for share, run in zip(shares, runs, strict=True))

    return Run(
        runs[0].seeds, **{each.name: mean(each.name) for each in dataclasses.fields(Run) if each.name != "seeds"}
    )


# Columns of table.csv; a value that was not measured is missing.
#   method: the fine-tune that does what the selector says; interpolated: it is between measured boundaries
#   unit: of qualities and differences; seeds: how many were measured
#   cost_share: FLOPs at equal epochs as a share of full fine-tuning's; deciding_share: those spent on deciding
#   over_full: quality above full fine-tuning's over the seeds that both have
_COLUMNS: Final = columns(
    "data_set group model rule selector boundary:Int64 method unit interpolated:bool seeds:Int64 quality:float "
    "cost_share:float deciding_share:float over_full:float reason"
)
_MEANS: Final = ["cost_share", "deciding_share", "over_full"]


def choices(drawn: Drawn) -> pd.DataFrame:
    """Return a row per case and selector."""
    rows = [_row(choice, one) for one in drawn.values() for choice in one.choices]
    return pd.DataFrame(rows, columns=list(_COLUMNS)).astype(_COLUMNS)


def _row(choice: Choice, chosen: Chosen) -> Json:
    one, case = chosen.drawn, chosen.drawn.case
    method = method_of(chosen, choice)
    row = {
        **{name: getattr(case, name) for name in ("data_set", "group", "model", "unit")},
        **{name: getattr(choice, name) for name in ("rule", "selector", "boundary", "deciding_share", "reason")},
        "method": method,
        "interpolated": method in chosen.between,
        "seeds": 0,
    }
    if (method, "epochs") not in case.runs:
        return row
    over = one.over(method, FULL)
    row |= {"seeds": len(case.runs[method, "epochs"].seeds), "quality": case.quality(method)}
    return rounded({**row, "cost_share": case.cost_share(method), "over_full": None if over is None else over[0]})


def method_of(chosen: Chosen, choice: Choice) -> str:
    """Return the measured method that does what a selector says; empty: there is none."""
    case = chosen.drawn.case
    if (choice.selector, "epochs") in case.runs and choice.selector not in case.boundaries:
        return choice.selector
    by_boundary = {boundary: method for method, boundary in {**chosen.between, **case.boundaries}.items()}
    return by_boundary.get(-1 if choice.boundary is None else choice.boundary, "")


def measured(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows in points whose fine-tune and whose case's full fine-tuning were measured or interpolated."""
    return table[(table["unit"] == "points") & table["over_full"].notna()]


def overall(table: pd.DataFrame) -> pd.DataFrame:
    """Return each selector's means over its groups of datasets, those on most groups first, then the best."""
    mine = measured(table)
    by_group = mine.groupby(["rule", "group"])[_MEANS].mean()
    found = by_group.groupby("rule").mean()
    worse = by_group["over_full"].groupby("rule")
    found["groups"], found["cases"] = worse.size(), mine.groupby("rule").size()
    found["groups_worse"] = worse.agg(lambda values: (values < 0).sum())
    return found.sort_values(["groups", "over_full", "cost_share", "rule"], ascending=[False, False, True, True])


def compare(table: pd.DataFrame, drawn: Drawn) -> list[Json]:
    """Return every selector's means, and its differences: ``compared`` with full fine-tuning, and ``over_fixed``.

    The latter, from the fixed depth of the same cost, is ``None`` for those that choose one boundary for each model.
    """
    chosen = {
        str(rule): [(drawn[Key(row["data_set"], row["model"])].drawn, str(row["method"])) for row in records(rows)]
        for rule, rows in measured(table).groupby("rule")
    }
    over_full = {rule: above_full(each) for rule, each in chosen.items() if rule != FULL}
    over_fixed: dict[str, list[Gap]] = {}
    for rule, rows in measured(table).groupby("rule"):
        freezes = all(_freezes(drawn[one.case.key], method) for one, method in chosen[str(rule)])
        if freezes and (rows.groupby("model")["boundary"].nunique() > 1).any():
            over_fixed[str(rule)] = above_fixed_depth(chosen[str(rule)])
    compared = {
        "compared": estimates({rule: gaps for rule, gaps in over_full.items() if gaps}),
        "over_fixed": estimates({rule: gaps for rule, gaps in over_fixed.items() if gaps}),
    }
    return [
        row | {name: one.get(row["rule"]) for name, one in compared.items()}
        for row in records(overall(table).reset_index())
    ]


def _freezes(chosen: Chosen, method: str) -> bool:
    return method in chosen.drawn.case.boundaries or method in chosen.between


def estimates(gaps: Mapping[str, Sequence[Gap]]) -> dict[str, Json]:
    """Return several mean differences by name, their p-values adjusted together."""
    found = {name: estimate(each).model_dump() for name, each in gaps.items()}
    for end in ("", "_datasets"):
        p = holm(pd.Series({name: one[f"p{end}"] for name, one in found.items()}, dtype=float).dropna())
        for name, one in found.items():
            one[f"p_holm{end}"] = p.get(name)
    return found


def holm(p_values: "pd.Series[float]") -> "pd.Series[float]":
    """Return adjusted p-values of several comparisons (Holm 1979), by the same index."""
    ordered = p_values.sort_values()
    return (ordered * np.arange(len(ordered), 0, -1)).clip(upper=1.0).cummax()


def choose(table: pd.DataFrame, cost_cap: float) -> str | None:
    """Return the best selector on the mean within the cost cap that was measured on every case."""
    mine = measured(table)
    rules, cases = overall(table), mine[["data_set", "model"]].drop_duplicates()
    price = rules["cost_share"] + rules["deciding_share"]
    fitting = rules[(rules["cases"] == len(cases)) & (price <= cost_cap) & (rules.index != FULL)]
    return str(fitting.index[0]) if len(fitting) else None


def leave_one_out(table: pd.DataFrame, cost_cap: float) -> pd.DataFrame:
    """Return for every group the selector that the others would choose, and its figures on the group's cases."""
    found = []
    for group in sorted(table.loc[table["unit"] == "points", "group"].unique()):
        rule = choose(table[table["group"] != group], cost_cap)
        own = table[(table["group"] == group) & (table["rule"] == rule)]
        found.append(overall(own).reset_index().assign(group=group))
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame()


def degenerate(table: pd.DataFrame, model: str) -> dict[str, str]:
    """Return selectors that cannot show what looking at data or model is worth, and why, by choices for a model."""
    mine = table[(table["model"] == model) & (table["selector"] != FULL)]
    deepest = mine.dropna(subset="boundary").groupby("rule")["boundary"].max()
    freezing = {
        str(rule): f"freezes {'at most one layer' if most else 'nothing'} with {model}"
        for rule, most in deepest[deepest <= 1].items()
    }
    blind = table.loc[table["selector"].isin(PRICE_ONLY), "rule"]
    return freezing | dict.fromkeys(blind, "sees the cost alone")


def significant(over: Json, end: str = "") -> int:
    """Return 1 where a selector is significantly better after Holm's procedure, -1 where worse, else 0."""
    p = over[f"p_holm{end}"]
    return 0 if p is None or p >= 1 - CONFIDENCE else 1 if over["mean_difference_points"] > 0 else -1


def headline(scope: str, rows: Sequence[Json]) -> str:
    """Return what looking at the data or the model is worth: selectors that are better or worse than a fixed depth."""
    looking = [row["over_fixed"] for row in rows if row["over_fixed"] and not row["degenerate"]]
    if not looking:
        return ""
    counts = [sum(significant(one, end) == way for one in looking) for way in (1, -1) for end in ("", "_datasets")]
    return (
        "Of {} selectors that look at the data or the model ({}), {} on these datasets and {} over datasets like these "
        "are significantly better than a fixed depth of the same cost; {} and {} are significantly worse (Holm's "
        "procedure, at {:.0%})."
    ).format(len(looking), scope, *counts, 1 - CONFIDENCE)


def told(row: Json) -> str:
    """A selector's cost and points."""
    return f"it costs {row['cost_share']:.0%} and is {worse(row['over_full'])}"


def worse(points: float) -> str:
    """A difference in words."""
    points = round(points, 2)
    return f"{abs(points):.2f} points {'worse' if points < 0 else 'better'}"


READ: Final = {  # the readings that the headline names
    "deviation, observed, observed": "the observed deviation",
    "deviation, observed, law": "the law of the deviation",
    "loss, observed, law": "the law of the loss",
}
_NOT_TESTED: Final = {
    "the paper's own formula for the gain": "it is in no public source; the law and the gains here are reconstructions",
    "well-known models and datasets": "one model of 135 M parameters and three toys; none of the paper's models",
}
_SHOWN: Final = ("verdict", "models", "reading", "cost_share", "mean_difference_points", "interval_examples")


def summarise_readings(
    table: pd.DataFrame, drawn: Drawn, points: pd.DataFrame, leading: str, cost_cap: float
) -> Json | None:
    """Compare every reading over all models and over the leading one; ``None``: the study has no readings.

    ``table`` are selectors' choices, readings' among them, ``points`` the measured boundaries of :func:`balance`.
    """
    mine = table[is_reading(table)]
    if mine.empty:
        return None
    scopes = {}
    for scope, part in (("all models", mine), (leading, mine[mine["model"] == leading])):
        by_trace = part["selector"] == "budget"  # p-values of these and of readings are adjusted apart
        scopes[scope] = [row for rows in (part[~by_trace], part[by_trace]) for row in compare(rows, drawn)]
    left = leave_one_out(mine[mine["selector"] != "budget"], cost_cap)
    correlated = _correlations(points)
    return {"scopes": scopes, "left_out": records(left), "claims": _claims(scopes), "correlations": correlated}


def is_reading(table: pd.DataFrame) -> "pd.Series[bool]":
    """Mask of the choices that are readings: their names list quantity, gain and curve."""
    return table["rule"].str.contains(", ")


def _claims(scopes: dict[str, list[Json]]) -> list[Json]:
    """Verdicts by these datasets' intervals: one wholly below zero contradicts; a wide one is consistent with much."""
    found = []
    for scope, rows in scopes.items():
        by_rule = {row["rule"]: row for row in rows}
        for one in (by_rule[name] for name in READ if name in by_rule):
            for claim, over in (
                ("effective at lower cost, no worse than full fine-tuning", one["compared"]),
                ("better than a baseline, the fixed depth of the same cost", one["over_fixed"]),
            ):
                if over:
                    more = {"models": scope, "reading": READ[one["rule"]], "cost_share": one["cost_share"]}
                    found.append(_claim(claim, over, more))
    return found + [_untested(claim, why) for claim, why in _NOT_TESTED.items()]


def _claim(claim: str, over: Json, more: Json) -> Json:
    verdict = "contradicts" if over["interval_examples"][1] < 0 else "consistent with"
    return {"claim": claim, **dict.fromkeys(_SHOWN), **over, **more, "verdict": verdict}


def _untested(claim: str, why: str) -> Json:
    return {"claim": claim, **dict.fromkeys(_SHOWN), "verdict": "not tested", "reading": why}


def readings_headline(found: Json, leading: str) -> str:
    """Return what the paper's selector comes to with the leading model, observed and by the law, and each claim."""
    rules, said = {one["rule"]: one for one in found["scopes"][leading]}, dict[str, list[str]]()
    parts = [f"by {words} {told(rules[name])}" for name, words in READ.items() if name in rules]
    for one in found["claims"]:
        if one["models"] in (leading, None):
            said.setdefault(one["claim"], []).append(one["verdict"] + f" ({one['reading']})" * bool(one["models"]))
    claims = " ".join(f"{claim.capitalize()}: {', '.join(verdict)}." for claim, verdict in said.items())
    return (
        f"Readings of the paper's selector with {leading}, against full fine-tuning (in the study, salf is the "
        f"observed deviation, the default of release 0.1.0): {'; '.join(parts)}. Claims of the abstract. {claims}"
    )


def balance(folder: Path, curves: pd.DataFrame) -> pd.DataFrame:
    """Return measured boundaries with their trace's benefits, points above full fine-tuning, and trained layers."""
    place = ["data_set", "model"]
    full = curves[curves["boundary"] == 0].set_index(place)["quality"]
    found = pd.read_csv(folder / "balance.csv").merge(curves, on=[*place, "boundary"])
    found["over_full"] = found["quality"] - full.reindex(pd.MultiIndex.from_frame(found[place])).to_numpy()
    return found.assign(trained=found["layers"] - found["boundary"])


def _correlations(points: pd.DataFrame) -> list[Json]:
    """Spearman's correlations of benefits, and of depth alone, with quality over boundaries between 0 and L."""
    inner, found = points[(points["boundary"] > 0) & (points["trained"] > 0)], []
    benefits = ["deviation_observed", "deviation_law", "loss_observed", "loss_law", "trained"]
    for (data_set, model), rows in inner.groupby(["data_set", "model"], sort=False):
        ranks = rows[benefits].corrwith(rows["over_full"], method="spearman")
        found.append({"data_set": data_set, "model": model, "boundaries": len(rows), **ranks})
    return records(pd.DataFrame(found))


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
            "seen": [(_over_full(case)[None], _over_full(case)[None]) for case in mine],
            "validation": [(_validated(case), _over_full(case)[None]) for case in mine],
        }
        for picked_by, curves in evidence.items():
            for aim, points in _AIMS:
                picked = [_picked(case, aim, points, *each) for case, each in zip(mine, curves, strict=True)]
                names = {"model": model, "picked_by": picked_by, "aim": f"{aim} {points:g}"}
                rows.append(names | _over_fixed_depth(mine, pd.DataFrame(picked)))
    return pd.DataFrame(rows)


def _over_full(case: Case) -> Floats:
    """Points of measured boundaries above full fine-tuning [B]."""
    return np.array([case.quality(method) - case.quality(FULL) for method in case.curve().values()])


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
    lost = pd.Series([-np.interp(depth, case.line.shares, _over_full(case)) for case in cases])
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


def recompute(folder: Path, resamples: int = 10000) -> tuple[Json, dict[str, pd.DataFrame]]:
    """Return what ``first_round.json`` holds, and the tables beside it."""
    drawn = read(folder, resamples)
    table, cases = choices(drawn), [one.drawn.case for one in drawn.values()]
    models = table.loc[table["unit"] == "points"].drop_duplicates(["data_set", "model"])["model"]
    leading = str(models.mode()[0])
    curves = pd.read_csv(folder / "curves.csv")
    rest, blind = table[~is_reading(table)], degenerate(table[~is_reading(table)], leading)
    scopes = {leading: rest[rest["model"] == leading], "all models": rest}
    compared = {
        scope: [row | {"degenerate": blind.get(row["rule"])} for row in compare(part, drawn)]
        for scope, part in scopes.items()
    }
    found: Json = {
        "selectors": compared,
        "interaction": records(interactions(cases)),
        "headroom": records(headroom(cases)),
    }
    said = [headline(scope, rows) for scope, rows in compared.items()]
    found["readings"] = None
    if is_reading(table).any():
        found["readings"] = summarise_readings(table, drawn, balance(folder, curves), leading, 0.6)
        said.append(readings_headline(found["readings"], leading))
    tables = {"table": table, **{name: pd.DataFrame(found[name]) for name in ("headroom", "interaction")}}
    return rounded({**found, "headline": " ".join(said)}), tables
