"""``summary.json``: the study in one file, its headline in words, every number from the study's own table."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import fmean
from typing import Any, Final

from stages.common.artifacts import significant
from stages.study.coverage import Coverage
from stages.study.judging import Comparison, LeftOut, Overall, choose, compared, leave_one_out, overall
from stages.study.measured import FULL, Study
from stages.study.resamples import Resamples
from stages.study.verdicts import Verdict

PAPER: Final = "salf"  # the rule of this name is the paper's, and what the others are compared with
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
    beside = compared(verdicts, resamples, PAPER, confidence)
    found = {
        "schema": 1,
        "headline": headline(chosen, left, next((one for one in rules if one.rule == PAPER), None)),
        "default_rule": default,
        "default_selector": next((v.selector for v in verdicts if v.rule == default), None),
        **_identity(study),
        **_figures(chosen),
        "leave_one_out": _left_out(left),
        "rules": {one.rule: _rule(one, beside) for one in rules},
        "coverage": _coverage(covered),
        "cost_cap": cost_cap,
        "confidence": confidence,
    }
    rounded: Json = _rounded(found)
    return rounded


def headline(chosen: Overall | None, left: Sequence[LeftOut], paper: Overall | None) -> str:
    """What the study found, in words, whatever it is."""
    if chosen is None:
        return "No rule was measured on every data set within the cost cap: the study does not name a default."
    text = f"{chosen.rule}: {_told(chosen)}."
    if left:
        at_cost, regret, cost = (
            fmean(getattr(one, name) for one in left) for name in ("regret_at_cost", "regret", "cost_share")
        )
        text += (
            " Chosen each time without the data set that it is judged on, the best rule stays "
            f"{at_cost:.2f} points behind at its cost and {regret:.2f} at any, at {cost:.0%}, at most "
            f"{max(one.regret_at_cost for one in left):.1f} and {max(one.regret for one in left):.1f}."
        )
    if paper is not None and paper.rule != chosen.rule:
        text += f" The paper's rule, {paper.rule}: {_told(paper)}."
    return text


def _told(one: Overall) -> str:
    full = f"{abs(one.behind_full):.2f} {'behind' if one.behind_full >= 0 else 'ahead of'} full fine-tuning"
    return (
        f"{one.regret_at_cost:.2f} points of accuracy behind the best measured boundary of equal or lower cost (at "
        f"most {one.worst_at_cost:.1f}, {one.worst_at_cost_on}), {one.regret:.2f} behind the best at any cost (at "
        f"most {one.worst:.1f}, {one.worst_on}) and {full}, at {one.cost_share:.0%} of its operations, mean over "
        f"{one.groups} data sets"
    )


def _identity(study: Study) -> Json:
    """What was studied, and on which machines."""
    runs = study.runs
    return {
        "data_sets": list(dict.fromkeys(case.data_set for case in study.cases)),
        "models": list(dict.fromkeys(case.model for case in study.cases)),
        "seeds": sorted(int(seed) for seed in runs["seed"].unique()),
        "seeds_each": {f"{case.data_set}, {case.model}": len(case.runs[FULL, "epochs"].seeds) for case in study.cases},
        "fine_tunes": len(runs),
        "fine_tunes_measured": study.measured,
        "machines": sorted({_machine(row) for row in runs[["machine", "device", "dtype"]].to_dict("records")}),
        "code_versions": int(runs["code"].nunique()),
    }


def _machine(row: Mapping[Any, Any]) -> str:
    """A GPU is machine and device in one."""
    return ", ".join(dict.fromkeys(map(str, row.values())))


def _figures(chosen: Overall | None) -> Json:
    """The default rule's figures; null where there is no default. Regret is that at equal or lower cost."""
    names = {
        "mean_regret_points": "regret_at_cost",
        "max_regret_points": "worst_at_cost",
        "cost_share": "cost_share",
        "mean_regret_any_cost_points": "regret",
        "max_regret_any_cost_points": "worst",
        "mean_regret_cross_fitted_points": "regret_cross_fitted",
        "mean_behind_full_points": "behind_full",
    }
    return {name: getattr(chosen, attribute) if chosen else None for name, attribute in names.items()}


def _left_out(left: Sequence[LeftOut]) -> Json | None:
    if not left:
        return None
    return {
        "mean_regret_points": fmean(one.regret_at_cost for one in left),
        "max_regret_points": max(one.regret_at_cost for one in left),
        "mean_regret_any_cost_points": fmean(one.regret for one in left),
        "max_regret_any_cost_points": max(one.regret for one in left),
        "mean_regret_cross_fitted_points": fmean(one.regret_cross_fitted for one in left),
        "mean_behind_full_points": fmean(one.behind_full for one in left),
        "cost_share": fmean(one.cost_share for one in left),
        "groups": [asdict(one) for one in left],
    }


def _rule(one: Overall, beside: Sequence[Comparison]) -> Json:
    match = next((asdict(c) for c in beside if c.rule == one.rule), {})
    return {**asdict(one), f"over_{PAPER}": {key: match[key] for key in match if key not in ("rule", "other")} or None}


def _coverage(covered: Sequence[Coverage]) -> list[Json]:
    """By source, over all cases."""
    found = []
    for source in sorted({one.source for one in covered}):
        mine = [one for one in covered if one.source == source]
        places = sum(one.places for one in mine)
        share = sum(one.covered for one in mine) / places
        nominal = mine[0].nominal
        found.append({"source": source, "cases": len(mine), "places": places, "covered": share, "nominal": nominal})
    return found


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return significant(value)
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    return [_rounded(inner) for inner in value] if isinstance(value, list) else value
