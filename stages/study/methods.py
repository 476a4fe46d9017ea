"""What each method comes to: against tuned full fine-tuning, at which cost, and which one is the default by the rule.

A method is compared where it was measured, and the rule compares methods on their common datasets alone.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Final, Literal

import numpy as np
import pandas as pd

from salf.methods import RACE
from salf.rate_choice import Tried
from salf.rate_choice import choose as choose_rate
from stages.study.description import FULL, HALF, Budget
from stages.study.description import Case as Key
from stages.study.measured import Case, Study
from stages.study.resamples import Gap, Resamples, above_fixed_depth, above_full, estimate, group_means, over_groups
from stages.study.summary import DefaultChoice, Json, MethodSummary, RaceSummary, ScopeEffect
from stages.study.tables import Tables

ANSWER: Final = "full+answer"
PAPER: Final = "salf"  # the paper's selector, by the observed deviation
MARGIN: Final = -0.5  # points of mean difference that the default may lose
AIM: Final = {"mean_difference_points": -0.3, "cost_share": 0.3, "total_cost_share": 1.0}
_ARMS: Final = (HALF, "full+answer+lora")  # of a race by default: the better one's grid is what it is compared with
_AGAIN: Final = {"full-again": FULL, "half-again": HALF, "answer-again": ANSWER, "lora-again": "lora"}
_AT_OTHER_RATE: Final = {"full-at-half-rate": FULL, "half-at-full-rate": HALF}

Drawn = Mapping[Key, Resamples]
Cases = Sequence[Resamples]  # a model's, with accuracies
Methods = Mapping[str, MethodSummary]


def named(case: Case, method: str) -> str:
    """A method's name in the tables, which name half by its boundary."""
    return f"freeze-{case.layers // 2}" if method == HALF else method


def cases_of(drawn: Drawn, model: str) -> list[Resamples]:
    """A model's cases with accuracies."""
    return [one for one in drawn.values() if one.case.model == model and one.case.unit == "points"]


def summarise(cases: Cases) -> dict[str, MethodSummary]:
    """Return full fine-tuning, half, and every method without a boundary, in this order."""
    # Techniques, and the same methods again, at another rate or in another precision, are no methods of their own.
    own = {
        method: None
        for one in cases
        for method, _ in one.case.runs
        if not (method in one.case.boundaries or plain_of(method) or {"again", "at", "float32"} & _words(method))
    }
    found = {name: _measured(cases, name) for name in (FULL, HALF, *own)}
    return {name: _summary(cases, name, each) for name, each in found.items() if each}


def plain_of(method: str) -> str | None:
    """The method without its technique, the last word of its name; ``None`` where it has none."""
    plain, _, word = method.rpartition("+")
    return plain if plain and word not in ("answer", "lora") else None


def _measured(cases: Cases, name: str, budget: Budget = "epochs") -> list[tuple[Resamples, str]]:
    """The cases where a method was measured with seeds that full fine-tuning has."""
    pairs = [(one, named(one.case, name)) for one in cases]
    return [(one, method) for one, method in pairs if one.case.common_seeds(method, FULL, budget)]


def _summary(cases: Cases, name: str, measured: Sequence[tuple[Resamples, str]]) -> MethodSummary:
    def mean(values: Sequence[float]) -> float:
        return float(over_groups([(one.case.group, np.array(v)) for (one, _), v in zip(measured, values, strict=True)]))

    fixed, longer = above_fixed_depth(measured), _measured(cases, name, "compute")
    depth = estimate(fixed) if fixed and name not in (FULL, HALF) else None
    there = {one.case.data_set for one, _ in measured}
    seeds = [set(one.case.common_seeds(method, FULL)) for one, method in measured]
    return MethodSummary(
        **estimate(above_full(measured)).model_dump(),
        datasets=[one.case.data_set for one, _ in measured],
        missing=[one.case.data_set for one in cases if one.case.data_set not in there],
        groups=len({one.case.group for one, _ in measured}),
        seeds=sorted(set.union(*seeds)),
        fewest_seeds=min(map(len, seeds)),
        cost_share=mean([one.case.cost_share(method) for one, method in measured]),
        total_cost_share=mean([total_share(one.case, method) for one, method in measured]),
        points_above_fixed_depth=depth and depth.mean_difference_points,
        above_fixed_depth=depth,
        at_equal_flops=estimate(above_full(longer, "compute")) if longer else None,
        opened_by=opened_by(name),
    )


def _words(method: str) -> set[str]:
    return set(re.split("[+-]", method))


def opened_by(method: str) -> Literal["transformers", "PEFT", "salf"]:
    """What opens a method's result: of a race, whatever wins by default."""
    words = _words(method)
    if method == RACE or {"answer", "lora"} <= words:
        return "PEFT"
    return "salf" if "answer" in words else "transformers"


def total_share(case: Case, method: str) -> float:
    """FLOPs of tuning by the documented recipe, as a share of one full fine-tune at one learning rate.

    Every rate that was tried is one training and one pass over the validation split. What frozen layers (or the base,
    of prompts) give is computed once for all. Counted in passes: a step is three forward passes, two with adapters.
    """
    run, full, words = case.runs[method, "epochs"], case.runs[FULL, "epochs"], _words(method)
    if method == RACE:
        return run.flops / full.flops  # its record counts everything
    forward = full.flops / (3 * full.epochs)  # one pass over the training split
    cached = forward * (1.0 if "answer" in words else case.boundaries.get(method, 0) / case.layers)
    trained = run.flops - cached
    validated = run.validation * trained / ((2 if "lora" in words else 3) * run.epochs)
    return (cached * (1 + run.validation) + run.rates * (trained + validated)) / full.flops


def default_of(cases: Cases, methods: Methods) -> tuple[str, DefaultChoice]:
    """Return the default by the rule, chosen on all datasets, and what the rule comes to with groups left out."""
    groups = sorted({one.case.group for one in cases})
    opened = [name for name in methods if opened_by(name) != "salf"]
    measured = {name: [pair for pair in _measured(cases, name) if _with_all_seeds(*pair)] for name in opened}
    lacking = {name: sorted({*groups} - {one.case.group for one, _ in each}) for name, each in measured.items()}
    everywhere = [name for name, without in lacking.items() if not without]
    common = [one for one in cases if all((one, named(one.case, name)) in measured[name] for name in everywhere)]
    points = _by_group({name: above_full(_measured(common, name)) for name in everywhere})
    costs = _by_group({name: [_cost(*each) for each in _measured(common, name)] for name in everywhere})

    def choose(chosen: list[str]) -> str:
        good = points.loc[chosen].mean() >= MARGIN
        return str(costs.loc[chosen].mean()[good].idxmin())

    default = choose(groups)
    left: list[Json] = []
    for group in groups if len(groups) > 1 else ():
        chosen = choose([one for one in groups if one != group])
        left.append({"group": group, "chosen": chosen, "points": points.at[group, chosen]})
    said = {name: (float(points[name].mean()), float(costs[name].mean())) for name in everywhere}
    reached = dict(zip(AIM, (said[default][0], methods[default].cost_share, said[default][1]), strict=True))
    gaps = {name: (AIM[name] - value) * (1 if "points" in name else -1) for name, value in reached.items()}
    return default, DefaultChoice(
        datasets=[one.case.data_set for one in common],
        margin_points=MARGIN,
        candidates=said,
        not_everywhere={name: without for name, without in lacking.items() if without},
        left_out=left,
        points_left_out=float(np.mean([one["points"] for one in left])) if left else said[default][0],
        aim=AIM,
        missed={name: gap for name, gap in gaps.items() if gap > 0},
    )


def _with_all_seeds(one: Resamples, method: str) -> bool:
    """Whether a method was measured with every seed that full fine-tuning has on a case."""
    return one.case.common_seeds(method, FULL) == one.case.runs[FULL, "epochs"].seeds


def _by_group(gaps: Mapping[str, Sequence[Gap]]) -> pd.DataFrame:
    """The measured means [groups, methods]."""
    means = {name: group_means(each) for name, each in gaps.items()}
    return pd.DataFrame({name: {group: value.flat[0] for group, value in each.items()} for name, each in means.items()})


def _cost(one: Resamples, method: str) -> Gap:
    return one.case.group, np.array(total_share(one.case, method))


def race_of(cases: Cases, study: Study) -> RaceSummary | None:
    """Return what a race costs and how far it is below the tuned grid of the better of its arms' methods."""
    gaps, costs = list[Gap](), list[Gap]()
    there = [one for one, _ in _measured(cases, RACE)]
    for one in there:
        tried = {named(one.case, arm): one.case.runs.get((named(one.case, arm), "epochs")) for arm in _ARMS}
        runs = {method: run for method, run in tried.items() if run}
        if len(runs) < len(_ARMS):
            continue
        results = [Tried(n, run.validation_loss, run.validation_accuracy) for n, run in enumerate(runs.values())]
        rows = study.runs[(study.runs["data_set"] == one.case.data_set) & (study.runs["method"] == RACE)]
        best = list(runs)[int(choose_rate(results, int(rows["validation_examples"].max())).rate)]
        if (gap := one.over(RACE, best)) is not None:
            gaps.append((one.case.group, -gap))
            costs.append((one.case.group, np.array(one.case.cost_share(RACE))))
    if not gaps:
        return None
    below = estimate(gaps)
    return RaceSummary(
        datasets=[one.case.data_set for one in there],
        cost_share=float(over_groups(costs)),
        points_below_tuned_grid=below.mean_difference_points,
        below_tuned_grid=below,
        winners={one.case.data_set: winners(one.case, study) for one in there},
    )


def winners(case: Case, study: Study) -> list[str]:
    """The method that won each seed's race on a case, of the two that take part by default."""
    rows = study.runs[(study.runs["data_set"] == case.data_set) & (study.runs["model"] == case.model)]
    raced = rows[rows["method"] == RACE].sort_values("seed")
    return [_ARMS[0] if boundary else _ARMS[1] for boundary in raced["boundary"]]


def answer_side_of(methods: Methods) -> Json | None:
    """Return answer-side tuning's main figures."""
    names = {"datasets", "mean_difference_points", "cost_share", "points_above_fixed_depth"}
    return {"method": ANSWER, **methods[ANSWER].model_dump(include=names)} if ANSWER in methods else None


def orthogonal(cases: Cases, tables: Tables) -> list[ScopeEffect]:
    """Return the effect of scopes on weights and under LoRA, over the seeds that all four fine-tunes have."""
    chosen = tables.choices[tables.choices["rule"] == PAPER].set_index(["data_set", "model"])["boundary"].to_dict()
    found = []
    for scope in (HALF, PAPER):
        gaps: dict[str, list[Gap]] = {"weights": [], "lora": [], "lora_minus_weights": []}
        names = []
        for one in cases:
            weights = named(one.case, HALF) if scope == HALF else f"freeze-{chosen.get(one.case.key)}"
            four = (weights, FULL, f"{scope}+lora", "lora")
            runs = [one.case.runs.get((method, "epochs")) for method in four]
            if not (seeds := sorted(set.intersection(*(set(run.seeds if run else ()) for run in runs)))):
                continue
            frozen, full, frozen_lora, lora = (one.quality(method, "epochs", seeds) for method in four)
            names.append(one.case.data_set)
            effects = (frozen - full, frozen_lora - lora)
            for name, gap in zip(gaps, (*effects, effects[1] - effects[0]), strict=True):
                gaps[name].append((one.case.group, gap))
        if names:
            estimated = {name: estimate(each) for name, each in gaps.items()}
            found.append(ScopeEffect(scope=scope, datasets=names, **estimated))
    return found


def forgetting(tables: Tables, model: str) -> list[Json]:
    """Return perplexities on texts by method, geometric means over datasets and seeds; lower is better.

    ``in_use`` is that of reading as the model does in use: of answer-side models the base reads the text.
    """
    mine, found = tables.forgetting[tables.forgetting["model"] == model], []
    for (method, text), rows in mine.groupby(["method", "text"], sort=False):
        row = {name: float(np.exp(np.log(rows[name]).mean())) for name in ("before", "after")}
        row["in_use"] = row["before" if "answer" in _words(str(method)) else "after"]
        name = _AGAIN.get(str(method), method)
        found.append({"method": name, "text": text, "datasets": list(dict.fromkeys(rows["data_set"])), **row})
    return found


def weights_kept(tables: Tables, model: str) -> list[Json]:
    """Return by method the mean accuracy of other kept weights minus the last ones', of the same runs."""
    scores = tables.kept[tables.kept["model"] == model].pivot_table("test_accuracy", ["method", "data_set"], "keep")
    gains = 100 * scores.sub(scores["last"], axis=0).drop(columns="last") if len(scores) else scores
    return [
        {"method": _AGAIN.get(str(method), method), "keep": keep, "data_sets": len(each), "gain": each[keep].mean()}
        for method, each in gains.groupby("method")
        for keep in gains
    ]


def by_dataset(cases: Cases, methods: Methods) -> list[Json]:
    """Return full fine-tuning's accuracy on every dataset, and the other methods' differences from it."""
    rows = []
    for one in cases:
        row: Json = {"data_set": one.case.data_set, FULL: one.case.quality(FULL)}
        for name in methods:
            if name != FULL and (gap := one.over(named(one.case, name), FULL)) is not None:
                row |= {name: gap[0]}
        rows.append(row)
    return rows


def techniques(cases: Cases) -> list[Json]:
    """Return by technique and dataset its difference from the method without it, at equal epochs and equal FLOPs."""
    rows: dict[tuple[str, str], Json] = {}
    for one in cases:
        for method, budget in one.case.runs:
            plain = named(one.case, plain_of(method) or "")
            runs = [one.case.runs.get((name, budget)) for name in (method, plain)]
            if seeds := sorted(set.intersection(*(set(run.seeds if run else ()) for run in runs))):
                gap = one.quality(method, budget, seeds) - one.quality(plain, budget, seeds)
                row = {"data_set": one.case.data_set, "method": method, "plain": plain_of(method), "seeds": len(seeds)}
                rows.setdefault((method, one.case.data_set), row)[budget] = estimate([(one.case.group, gap)])
    return [rows[key] for key in sorted(rows)]


def sign(cases: Cases, study: Study) -> list[Json]:
    """Return by dataset how much better half is than answer-side adapters: in validation, on the test split, raced."""
    rows = []
    for one in cases:
        half, answer = (named(one.case, arm) for arm in _ARMS)
        if (gap := one.over(half, answer)) is None:
            continue
        runs = [one.case.runs[method, "epochs"] for method in (half, answer)]
        shown = estimate([(one.case.group, gap)])
        row: Json = {"data_set": one.case.data_set, "raced": ", ".join(winners(one.case, study)) or None}
        row |= {"validation": 100 * (runs[0].validation_accuracy - runs[1].validation_accuracy)}
        rows.append(row | {"test": gap[0], "interval": shown.interval_examples})
    return rows


def at_equal_rates(study: Study, model: str) -> pd.DataFrame:
    """Return full fine-tuning and half at every learning rate at which both were trained with the same seeds."""
    key = ["data_set", "learning_rate", "seed"]
    half = next(named(one, HALF) for one in study.cases if one.model == model)
    lost = study.rates[study.rates["point"].isin(study.runs["point"])].assign(kept=False)
    won = study.runs.rename(columns={"quality": "test_accuracy"}).assign(
        kept=~study.runs["method"].isin(_AT_OTHER_RATE)
    )
    known = (pd.concat([won, lost], join="inner") if len(lost) else won).query("budget == 'epochs'")
    known = known[known["model"] == model].dropna(subset=["test_accuracy", "validation_accuracy"])
    known["method"] = known["method"].replace({**_AT_OTHER_RATE, half: HALF})
    full, other = (known[known["method"] == method].drop_duplicates(key) for method in (FULL, HALF))
    grouped = full.merge(other, on=key, suffixes=("_full", "_half")).groupby(["data_set", "learning_rate"])
    values = [f"{split}_accuracy_{side}" for split in ("test", "validation") for side in ("full", "half")]
    found = (100 * grouped[values].mean()).assign(seeds=grouped.size())
    kept = grouped[["kept_full", "kept_half"]].any()
    found["kept"] = kept["kept_full"].map({True: "full", False: ""}) + kept["kept_half"].map({True: "half", False: ""})
    return found.replace({"kept": {"fullhalf": "both"}}).reset_index()
