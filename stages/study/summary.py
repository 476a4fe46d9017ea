"""``summary.json``: the study in one file, its headline in words, every number from the study's own table."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import fmean
from typing import Any

import pandas as pd

from stages.common.artifacts import rounded
from stages.common.study_schema import SUMMARY_SCHEMA
from stages.study.comparisons import Comparison, compared
from stages.study.constant import over_constant
from stages.study.coverage import Coverage, Fits, fits
from stages.study.judging import LeftOut, Overall, choose, leave_one_out, overall
from stages.study.measured import FULL, PAPER, Study
from stages.study.resamples import Resamples, holm
from stages.study.sensitivity import sensitivity
from stages.study.verdicts import ORACLE, Verdict

Json = dict[str, Any]


def summarise(
    study: Study,
    verdicts: Sequence[Verdict],
    resamples: Mapping[tuple[str, str], Resamples],
    covered: Sequence[Coverage],
    cost_cap: float,
    confidence: float,
) -> Json:
    """The summary.

    Args:
        study: what was measured.
        verdicts: of every case.
        resamples: of every case, by data set and model.
        covered: of every case.
        cost_cap: largest mean share of full fine-tuning's cost of a rule that may be the default.
        confidence: of the intervals.
    """
    rules, default = overall(verdicts), choose(verdicts, cost_cap)
    left = leave_one_out(verdicts, cost_cap)
    chosen = next((one for one in rules if one.rule == default), None)
    beside = _beside(verdicts, resamples, default, confidence)
    against_full = next((one for one in beside["over_full"] if one.rule == default), None)
    found = {
        "schema": SUMMARY_SCHEMA,
        "headline": headline(
            chosen,
            against_full,
            left,
            next((one for one in rules if one.rule == PAPER), None),
            beside["over_constant"],
            confidence,
        ),
        "default_rule": default,
        "default_selector": next((v.selector for v in verdicts if v.rule == default), None),
        **_identity(study),
        **_figures(chosen),
        "differing": _differing([v for v in verdicts if v.rule == default], confidence),
        "leave_one_out": _left_out(left),
        "sensitivity": [asdict(one) for one in sensitivity(verdicts, default)],
        "rules": _rules(rules, beside),
        "alone": _alone(verdicts, resamples, default, confidence),
        "coverage": _coverage(covered, fits(study.intervals, study.cases)),
        "cost_cap": cost_cap,
        "confidence": confidence,
    }
    summary: Json = rounded(found)
    return summary


def _beside(
    verdicts: Sequence[Verdict],
    resamples: Mapping[tuple[str, str], Resamples],
    default: str | None,
    confidence: float,
) -> dict[str, list[Comparison]]:
    """Every rule held against what tells something of it."""
    return {
        f"over_{PAPER}": compared(verdicts, resamples, PAPER, confidence),
        "over_full": compared(verdicts, resamples, FULL, confidence),
        "equal_compute_over_full": compared(verdicts, resamples, FULL, confidence, "compute"),
        "over_constant": over_constant(verdicts, resamples, confidence),
        "over_default": compared(verdicts, resamples, default, confidence) if default else [],
    }


def _alone(
    verdicts: Sequence[Verdict],
    resamples: Mapping[tuple[str, str], Resamples],
    default: str | None,
    confidence: float,
) -> Json | None:
    """The same of the model with the most data sets alone; ``None``: there are no others."""
    data_sets = Counter(v.model for v in verdicts if v.unit == "points" and v.rule == ORACLE)
    if len(data_sets) < 2:
        return None
    model = max(data_sets, key=lambda name: data_sets[name])
    mine = [v for v in verdicts if v.model == model]
    beside = _beside(mine, resamples, default, confidence)
    return {"model": model, "rules": _rules(overall(mine), beside)}


def headline(
    chosen: Overall | None,
    over_full: Comparison | None,
    left: Sequence[LeftOut],
    paper: Overall | None,
    over_constants: Sequence[Comparison],
    confidence: float,
) -> str:
    """What the study found, in words, whatever it is.

    Args:
        chosen: the default rule.
        over_full: the default rule against full fine-tuning.
        left: the rules that were chosen without a data set, on that one.
        paper: the paper's rule.
        over_constants: rules against a fixed depth of the same price.
        confidence: of the intervals.
    """
    if chosen is None:
        return "No rule was measured on every data set within the cost cap: the study does not name a default."
    text = f"{chosen.rule} {_told(chosen)}"
    if over_full is not None:
        text += (
            f" Its difference from full fine-tuning is {_points(over_full.low)} to {_points(over_full.high)} points "
            f"({confidence:.0%} interval over test examples and seeds)"
        )
        if over_full.low_elsewhere is not None and over_full.high_elsewhere is not None:
            text += (
                f", {_points(over_full.low_elsewhere)} to {_points(over_full.high_elsewhere)} over data sets like these"
            )
        text += "."
    if left:
        at_cost, regret, cost = (
            fmean(getattr(one, name) for one in left) for name in ("regret_at_cost", "regret", "cost_share")
        )
        names = Counter(one.rule for one in left).most_common()
        chosen_as = " and ".join(f"{rule} ({times} of {len(left)} times)" for rule, times in names)
        between = sum(one.interpolated for one in left)
        if between:
            chosen_as += f", {between} of {sum(one.cases for one in left)} cases read between measured boundaries"
        text += (
            f" With the data set left out that a rule is judged on, the others choose {chosen_as}: at {cost:.0%} it is "
            f"{regret:.2f} points behind the best (at most {max(one.worst for one in left):.1f}) and {at_cost:.2f} "
            f"behind the best of its cost (at most {max(one.worst_at_cost for one in left):.1f})."
        )
    if paper is not None and paper.rule != chosen.rule:
        text += f" The paper's rule, {paper.rule}, {_told(paper)}"
    return text + _told_of_constants(over_constants, confidence)


def _told_of_constants(over: Sequence[Comparison], confidence: float) -> str:
    """Whether rules that look at data or model gain by it."""
    if not over:
        return ""
    sure = [one for one in over if one.p_holm < 1 - confidence]
    better, worse = ([one.rule for one in sure if sign * one.difference > 0] for sign in (1, -1))
    surely = f"Of {len(over)} rules that choose by what they see of data or model, {_counted(better)} surely better"
    return (
        f" {surely} than a fixed depth of the same price, {_counted(worse)} surely worse (Holm's procedure, at "
        f"{1 - confidence:.0%})."
    )


def _counted(rules: Sequence[str]) -> str:
    named = f" ({', '.join(sorted(rules))})" if rules else ""
    return f"{len(rules) or 'none'}{named} {'are' if len(rules) > 1 else 'is'}"


def _told(one: Overall) -> str:
    side = "behind" if one.behind_full >= 0 else "ahead of"
    deciding = f", and {one.deciding_share:.0%} to decide" if one.deciding_share else ""
    middle = "behind" if one.behind_full_median >= 0 else "ahead"
    fair = round(one.regret_at_cost_cross_fitted, 2)
    return (
        f"costs {one.cost_share:.0%} of full fine-tuning's operations{deciding}, and is {abs(one.behind_full):.2f} "
        f"points of accuracy {side} it, mean over {one.groups} data sets (behind on {one.groups_behind}, median "
        f"{abs(one.behind_full_median):.2f} {middle}). It is {one.regret:.2f} behind the best measured boundary (at "
        f"most {one.worst:.1f}, {one.worst_on}), {one.regret_at_cost:.2f} behind the best of equal or lower cost (at "
        f"most {one.worst_at_cost:.1f}, {one.worst_at_cost_on}), and {abs(fair):.2f} "
        f"{'behind' if fair >= 0 else 'ahead of'} the one that other seeds and examples call the best of these."
    )


def _points(value: float) -> str:
    return f"{value:+.2f}".replace("-", "\N{MINUS SIGN}")


def _identity(study: Study) -> Json:
    """What was studied, and on which machines."""
    runs = study.runs
    return {
        "data_sets": list(dict.fromkeys(case.data_set for case in study.cases)),
        "models": list(dict.fromkeys(case.model for case in study.cases)),
        "groups": sorted({case.group for case in study.cases if case.unit == "points"}),
        "seeds": sorted(int(seed) for seed in runs["seed"].unique()),
        "seeds_each": {f"{case.data_set}, {case.model}": len(case.runs[FULL, "epochs"].seeds) for case in study.cases},
        "fine_tunes": len(runs),
        "fine_tunes_measured": study.measured,
        **_tuned(runs),
        "machines": sorted({_machine(row) for row in runs[["machine", "device", "dtype"]].to_dict("records")}),
        "code_versions": int(runs["code"].nunique()),
    }


def _tuned(runs: pd.DataFrame) -> Json:
    """Learning rates that a grid decided, and those of them beyond which nothing was tried."""
    grids = [[float(rate) for rate in rates.split()] for rates in runs["rates"]]
    tuned = [(grid, rate) for grid, rate in zip(grids, runs["learning_rate"], strict=True) if len(grid) > 1]
    return {
        "tuned_rates": len(tuned),
        "tuned_rates_at_an_end": sum(rate in (min(grid), max(grid)) for grid, rate in tuned),
    }


def _machine(row: Mapping[Any, Any]) -> str:
    """A GPU is machine and device in one."""
    return ", ".join(dict.fromkeys(map(str, row.values())))


def _figures(chosen: Overall | None) -> Json:
    """The default rule's figures; null where there is no default. Regret is that at equal or lower cost.

    What deciding costs is in the share.
    """
    names = {
        "mean_regret_points": "regret_at_cost",
        "max_regret_points": "worst_at_cost",
        "cost_share": "price",
        "mean_regret_any_cost_points": "regret",
        "max_regret_any_cost_points": "worst",
        "mean_regret_cross_fitted_points": "regret_cross_fitted",
        "mean_regret_at_cost_cross_fitted_points": "regret_at_cost_cross_fitted",
        "mean_behind_full_points": "behind_full",
    }
    return {name: getattr(chosen, attribute) if chosen else None for name, attribute in names.items()}


def _differing(verdicts: Sequence[Verdict], confidence: float) -> Json:
    """The pairs of data set and model where one rule surely differs from full fine-tuning, adjusted over all its pairs.

    The column ``p_holm`` of ``table.csv`` adjusts over the rules of a pair instead.
    """
    own = {f"{v.data_set}, {v.model}": v for v in verdicts if v.p is not None}
    adjusted = holm({pair: v.p for pair, v in own.items() if v.p is not None})
    sure = [pair for pair, p in adjusted.items() if p < 1 - confidence]
    return {
        "pairs": len(own),
        "behind": [pair for pair in sure if (own[pair].behind_full or 0.0) > 0],
        "ahead": [pair for pair in sure if (own[pair].behind_full or 0.0) < 0],
    }


def _left_out(left: Sequence[LeftOut]) -> Json | None:
    if not left:
        return None
    return {
        "mean_regret_points": fmean(one.regret_at_cost for one in left),
        "max_regret_points": max(one.worst_at_cost for one in left),
        "mean_regret_any_cost_points": fmean(one.regret for one in left),
        "max_regret_any_cost_points": max(one.worst for one in left),
        "mean_regret_cross_fitted_points": fmean(one.regret_cross_fitted for one in left),
        "mean_regret_at_cost_cross_fitted_points": fmean(one.regret_at_cost_cross_fitted for one in left),
        "mean_behind_full_points": fmean(one.behind_full for one in left),
        "cost_share": fmean(one.cost_share for one in left),
        "groups": [asdict(one) for one in left],
    }


def _rules(rules: Sequence[Overall], beside: Mapping[str, Sequence[Comparison]]) -> Json:
    """By name, with their ``rank``: a JSON object has no order of its own."""
    return {one.rule: {**_rule(one, beside), "rank": rank} for rank, one in enumerate(rules)}


def _rule(one: Overall, beside: Mapping[str, Sequence[Comparison]]) -> Json:
    """A rule's figures, and how it compares; null where it was not measured beside the other."""
    found = {name: next((asdict(c) for c in every if c.rule == one.rule), None) for name, every in beside.items()}
    return {**asdict(one), **found}


def _coverage(covered: Sequence[Coverage], fitting: Mapping[str, Fits]) -> list[Json]:
    """By source, over all cases."""
    found = []
    for source in sorted({one.source for one in covered}):
        mine = [one for one in covered if one.source == source]
        places = sum(one.places for one in mine)
        share = sum(one.covered for one in mine) / places
        nominal, fit = mine[0].nominal, fitting[source]
        found.append(
            {
                "source": source,
                "fitted": fit.fitted,
                "asked": fit.asked,
                "laws": dict(fit.laws),
                "cases": len(mine),
                "places": places,
                "covered": share,
                "nominal": nominal,
            }
        )
    return found
