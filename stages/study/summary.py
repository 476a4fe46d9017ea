"""``summary.json``: the study in one file, its headline in words, every number from the study's own table."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

import pandas as pd

from salf.files import rounded
from stages.common.study_schema import SUMMARY_SCHEMA
from stages.study.comparisons import Comparison, compared
from stages.study.constant import over_constant
from stages.study.coverage import Coverage, Fits, fits
from stages.study.headroom import headroom, interaction, several_seeds
from stages.study.judging import Overall, choose, degenerate, leave_one_out, overall
from stages.study.measured import FULL, PAPER, Case, Study
from stages.study.rates import at_equal_rates
from stages.study.resamples import POWER, Resamples, holm
from stages.study.sensitivity import sensitivity
from stages.study.verdicts import ORACLE, Verdict

Json = dict[str, Any]
Drawn = Mapping[tuple[str, str], Resamples]  # of every case, by data set and model


@dataclass(frozen=True)
class Scope:
    """The study, or its part of one model: every rule's figures, and how it compares.

    Attributes:
        named: in words, for the headline.
        rules: over its cases.
        beside: comparisons by name, every rule against what says something about it.
        degenerate: rules that cannot say what looking at data or model is worth, and why.
    """

    named: str
    rules: list[Overall]
    beside: dict[str, list[Comparison]]
    degenerate: Mapping[str, str]

    @classmethod
    def of(
        cls,
        named: str,
        verdicts: Sequence[Verdict],
        resamples: Drawn,
        default: str | None,
        leading: str,
        confidence: float,
    ) -> "Scope":
        """Of these verdicts; ``leading`` is the model whose choices say which rules are degenerate."""
        beside = {
            f"over_{PAPER}": compared(verdicts, resamples, PAPER, confidence),
            "over_full": compared(verdicts, resamples, FULL, confidence),
            "equal_compute_over_full": compared(verdicts, resamples, FULL, confidence, "compute"),
            "over_constant": over_constant(verdicts, resamples, confidence),
            "over_default": compared(verdicts, resamples, default, confidence) if default else [],
        }
        return cls(named, overall(verdicts), beside, degenerate(verdicts, leading))

    def json(self) -> Json:
        """By rule, with its ``rank``, since a JSON object has no order; null where it was not compared."""
        return {one.rule: {**self._rule(one), "rank": rank} for rank, one in enumerate(self.rules)}

    def _rule(self, one: Overall) -> Json:
        found = {
            name: next((asdict(c) for c in every if c.rule == one.rule), None) for name, every in self.beside.items()
        }
        return {**asdict(one), **found, "degenerate": self.degenerate.get(one.rule)}


def summarise(
    study: Study,
    verdicts: Sequence[Verdict],
    resamples: Drawn,
    covered: Sequence[Coverage],
    cost_cap: float,
    confidence: float,
    seed: int,
) -> Json:
    """The summary.

    Args:
        study: what was measured.
        verdicts: of every case.
        resamples: of every case, by data set and model.
        covered: of every case.
        cost_cap: largest mean share of full fine-tuning's cost of a rule that may be the default.
        confidence: of the intervals.
        seed: of what is simulated.
    """
    default = choose(verdicts, cost_cap)
    left = leave_one_out(verdicts, cost_cap)
    cases = {case.model: [one for one in study.cases if one.model == case.model] for case in study.cases}
    data_sets = Counter(v.model for v in verdicts if v.unit == "points" and v.rule == ORACLE)
    leading = max(data_sets or cases, key=lambda model: data_sets[model])
    scopes = [Scope.of(_all_models(cases, leading), verdicts, resamples, default, leading, confidence)]
    if len(data_sets) > 1:
        mine = [v for v in verdicts if v.model == leading]
        scopes.append(Scope.of(f"the {leading} model", mine, resamples, default, leading, confidence))
    chosen = next((one for one in scopes[0].rules if one.rule == default), None)
    several = several_seeds(study.cases)
    half = f"freeze-{cases[leading][0].layers // 2}"
    found = {
        "schema": SUMMARY_SCHEMA,
        "headline": headline(scopes, default, left, confidence),
        "default_rule": default,
        "default_selector": next((v.selector for v in verdicts if v.rule == default), None),
        **_identity(study),
        **_figures(chosen),
        "differing": _differing([v for v in verdicts if v.rule == default], confidence),
        "leave_one_out": _left_out(left),
        "sensitivity": [
            {"what": what, **asdict(one), "cost_share": one.price} for what, one in sensitivity(verdicts, default)
        ],
        "rules": scopes[0].json(),
        "alone": {"model": leading, "rules": scopes[1].json()} if scopes[1:] else None,
        "leading": leading,
        "coverage": _coverage(covered, fits(study.intervals, study.cases)),
        "interaction": [
            asdict(one) for model, mine in several.items() if (one := interaction(model, mine, seed, confidence))
        ],
        "headroom": [asdict(one) for model, mine in several.items() for one in headroom(model, mine, seed)],
        "natural": _natural(cases[leading], half),
        "equal_rates": at_equal_rates(study, leading, half).to_dict("records"),
        "cost_cap": cost_cap,
        "confidence": confidence,
    }
    summary: Json = rounded(found)
    return summary


def headline(
    scopes: Sequence[Scope], default: str | None, left: Sequence[tuple[str, Overall]], confidence: float
) -> str:
    """What the study found, in words, whatever it is: the leading model first, then all.

    Args:
        scopes: all models, and the leading one alone where there are others.
        default: the default rule.
        left: the rules that were chosen without a group of datasets, on that group.
        confidence: of the intervals.
    """
    if default is None:
        return "No selector was measured on every dataset within the cost cap: the study does not name a default."
    parts = [_told(scope, default, confidence) for scope in reversed(scopes)]
    return " ".join([*parts, *([_told_left_out(left)] if left else [])])


def _all_models(cases: Mapping[str, Sequence[Case]], leading: str) -> str:
    """All models in words; toy models have fewer than half of the leading one's layers."""
    layers = {model: mine[0].layers for model, mine in cases.items()}
    toys = sorted(depth for depth in layers.values() if 2 * depth < layers[leading])
    if len(layers) == 1:
        return f"the {leading} model"
    if not toys:
        return f"all {len(layers)} models"
    depths = f"{toys[0]} to {toys[-1]}" if toys[0] < toys[-1] else f"{toys[0]}"
    return f"all {len(layers)} models, {len(toys)} of them toy models of {depths} layers"


def _told(scope: Scope, default: str, confidence: float) -> str:
    """What the default, the paper's rule and looking at data come to."""
    rules = {one.rule: one for one in scope.rules}
    one = rules[default]
    deciding = f", and {one.deciding_share:.0%} to decide," if one.deciding_share else ""
    text = (
        f"With {scope.named}, {default} costs {one.cost_share:.0%} of full fine-tuning's FLOPs{deciding} and is "
        f"{_worse(one.behind_full, 'points of accuracy ')} (mean over {one.groups} datasets; worse on "
        f"{one.groups_behind}, median {_worse(one.behind_full_median)})."
    )
    text += "".join(_told_against_full(over, confidence) for over in scope.beside["over_full"] if over.rule == default)
    text += (
        f" It is {_worse(one.regret, 'points ')} than the best measured boundary and {_worse(one.regret_at_cost)} than "
        "the best of equal or lower cost."
    )
    if PAPER in rules and default != PAPER:
        paper = rules[PAPER]
        worse = _worse(paper.behind_full, "points ")
        text += f" The paper's selector, {PAPER}, costs {paper.cost_share:.0%} and is {worse}."
    return text + _told_of_constants(scope, confidence)


def _told_against_full(over: Comparison, confidence: float) -> str:
    """Whether the difference from full fine-tuning is significant, on these datasets and over datasets like these."""
    spans = [(over.low, over.high, over.detectable, "on these datasets")]
    if over.low_elsewhere is not None and over.high_elsewhere is not None and over.detectable_elsewhere is not None:
        spans.append((over.low_elsewhere, over.high_elsewhere, over.detectable_elsewhere, "over datasets like these"))
    certain = [where for low, high, _, where in spans if low > 0 or high < 0]
    bounds = ", ".join(f"{_signed(low)} to {_signed(high)} {where}" for low, high, _, where in spans)
    least = " and ".join(f"{size:.1f}" for _, _, size, _ in spans)
    words = f"significant {certain[0]}" if certain else "not significant"
    words += f", not {spans[-1][-1]}" if len(certain) == 1 < len(spans) else ""
    return (
        f" The difference is {words}: {bounds} ({confidence:.0%} intervals); with {POWER:.0%} power {least} points "
        "would be detected."
    )


def _told_of_constants(scope: Scope, confidence: float) -> str:
    """Whether selectors that look at the data or the model gain by it."""
    over = [one for one in scope.beside["over_constant"] if one.rule not in scope.degenerate]
    if not over:
        return ""
    better, worse = (_counted(over, sign, confidence) for sign in (1, -1))
    text = (
        f" Of {len(over)} selectors that look at the data or the model, {better} significantly better than a fixed "
        f"depth of the same cost, {worse} significantly worse (Holm's procedure, at {1 - confidence:.0%})."
    )
    left_aside = [f"{rule} ({why})" for rule, why in sorted(scope.degenerate.items())]
    return text + (f" Not counted, since they cannot show it: {', '.join(left_aside)}." if left_aside else "")


def _counted(over: Sequence[Comparison], sign: int, confidence: float) -> str:
    """How many rules differ in this direction on these datasets, which, and how many over datasets like these."""
    here, elsewhere = (
        sorted(one.rule for one in over if one.significant(confidence, elsewhere=where) == sign)
        for where in (False, True)
    )
    counts = [
        " ".join([str(len(rules) or "none"), *([f"({', '.join(rules)})"] * bool(rules))]) for rules in (here, elsewhere)
    ]
    return f"{counts[0]} on these datasets and {counts[1]} over datasets like these {'are' if len(here) > 1 else 'is'}"


def _told_left_out(left: Sequence[tuple[str, Overall]]) -> str:
    rules = [one for _, one in left]
    at_cost, regret, cost = (
        fmean(getattr(one, name) for one in rules) for name in ("regret_at_cost", "regret", "price")
    )
    names = Counter(one.rule for one in rules).most_common()
    chosen = " and ".join(f"{rule} ({times} of {len(left)} times)" for rule, times in names)
    between = sum(one.interpolated for one in rules)
    read = f", {between} of {sum(one.cases for one in rules)} cases interpolated" if between else ""
    return (
        f"Chosen without the dataset that it is judged on, the default is {chosen}{read}: at {cost:.0%} it is "
        f"{regret:.2f} points worse than the best (at most {max(one.worst for one in rules):.1f}) and {at_cost:.2f} "
        f"worse than the best of its cost (at most {max(one.worst_at_cost for one in rules):.1f})."
    )


def _worse(points: float, unit: str = "") -> str:
    points = round(points, 2)
    return f"{abs(points):.2f} {unit}{'worse' if points >= 0 else 'better'}"


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "\N{MINUS SIGN}")


def _natural(cases: Sequence[Case], half: str) -> list[Json]:
    """Full fine-tuning and half by dataset: labels as the study draws them, and as the dataset's test file has them."""
    return [
        {
            "data_set": case.data_set,
            "majority": 100 * case.natural_chance,
            "chance": 100 * (case.chance or 0.0),
            **{name: case.quality(method) for name, method in (("full", FULL), ("half", half))},
            **{f"{name}_natural": case.natural_quality(method) for name, method in (("full", FULL), ("half", half))},
        }
        for case in cases
        if case.natural_chance is not None and (half, "epochs") in case.runs
    ]


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


def _left_out(left: Sequence[tuple[str, Overall]]) -> Json | None:
    if not left:
        return None
    means = {
        "mean_regret_points": "regret_at_cost",
        "mean_regret_any_cost_points": "regret",
        "mean_regret_cross_fitted_points": "regret_cross_fitted",
        "mean_regret_at_cost_cross_fitted_points": "regret_at_cost_cross_fitted",
        "mean_behind_full_points": "behind_full",
        "cost_share": "price",
    }
    return {
        **{name: fmean(getattr(one, attribute) for _, one in left) for name, attribute in means.items()},
        "max_regret_points": max(one.worst_at_cost for _, one in left),
        "max_regret_any_cost_points": max(one.worst for _, one in left),
        "groups": [{"group": group, **asdict(one), "cost_share": one.price} for group, one in left],
    }


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
