"""What a study found, in words, with every number from its own tables."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from stages.study.comparisons import significant
from stages.study.measured import PAPER, Case
from stages.study.resamples import POWER

if TYPE_CHECKING:
    from stages.study.analysis import Scope


def headline(scopes: Sequence["Scope"], default: str | None, left: pd.DataFrame, confidence: float) -> str:
    """Return the study's findings: the leading model first, then all.

    Args:
        scopes: all models, and the leading one alone where there are others.
        default: the default selector.
        left: the selectors that were chosen without a group of datasets, on that group.
        confidence: of the intervals.
    """
    if default is None:
        return "No selector was measured on every dataset within the cost cap: the study does not name a default."
    parts = [_told(scope, default, confidence) for scope in reversed(scopes)]
    return " ".join([*parts, *([_left_out(left)] if len(left) else [])])


def all_models(cases: Mapping[str, Sequence[Case]], leading: str) -> str:
    """Return all models in words; toy models have fewer than half of the leading one's layers."""
    layers = {model: mine[0].layers for model, mine in cases.items()}
    toys = sorted(depth for depth in layers.values() if 2 * depth < layers[leading])
    if len(layers) == 1:
        return f"the {leading} model"
    if not toys:
        return f"all {len(layers)} models"
    depths = f"{toys[0]} to {toys[-1]}" if toys[0] < toys[-1] else f"{toys[0]}"
    return f"all {len(layers)} models, {len(toys)} of them toy models of {depths} layers"


def _told(scope: "Scope", default: str, confidence: float) -> str:
    """What the default, the paper's selector, and looking at data come to."""
    one, over = scope.rules.loc[default], scope.over["over_full"]
    deciding = f", and {one['deciding_share']:.0%} to decide," if one["deciding_share"] else ""
    text = (
        f"With {scope.named}, {default} costs {one['cost_share']:.0%} of full fine-tuning's FLOPs{deciding} and is "
        f"{_worse(one['behind_full'], 'points of accuracy ')} (mean over {one['groups']} datasets; worse on "
        f"{one['groups_behind']}, median {_worse(one['behind_full_median'])})."
    )
    if default in over.index:
        text += _against_full(over.loc[default], confidence)
    text += (
        f" It is {_worse(one['regret'], 'points ')} than the best measured boundary and "
        f"{_worse(one['regret_at_cost'])} than the best of equal or lower cost."
    )
    if PAPER in scope.rules.index and default != PAPER:
        paper = scope.rules.loc[PAPER]
        worse = _worse(paper["behind_full"], "points ")
        text += f" The paper's selector, {PAPER}, costs {paper['cost_share']:.0%} and is {worse}."
    return text + _against_constants(scope, confidence)


def _against_full(over: "pd.Series[Any]", confidence: float) -> str:
    """Whether the difference from full fine-tuning is significant, on these datasets and over datasets like these."""
    ends = {"": "on these datasets", "_elsewhere": "over datasets like these"}
    spans = [
        (over[f"low{end}"], over[f"high{end}"], over[f"detectable{end}"], where)
        for end, where in ends.items()
        if pd.notna(over[f"low{end}"])
    ]
    certain = [where for low, high, _, where in spans if low > 0 or high < 0]
    bounds = ", ".join(f"{_signed(low)} to {_signed(high)} {where}" for low, high, _, where in spans)
    least = " and ".join(f"{size:.1f}" for _, _, size, _ in spans)
    words = f"significant {certain[0]}" if certain else "not significant"
    words += f", not {spans[-1][-1]}" if len(certain) == 1 < len(spans) else ""
    return (
        f" The difference is {words}: {bounds} ({confidence:.0%} intervals); with {POWER:.0%} power {least} points "
        "would be detected."
    )


def _against_constants(scope: "Scope", confidence: float) -> str:
    """Whether selectors that look at the data or the model gain by it."""
    over = scope.over["over_constant"].drop(list(scope.degenerate), errors="ignore")
    if over.empty:
        return ""
    better, worse = (_counted(over, sign, confidence) for sign in (1, -1))
    text = (
        f" Of {len(over)} selectors that look at the data or the model, {better} significantly better than a fixed "
        f"depth of the same cost, {worse} significantly worse (Holm's procedure, at {1 - confidence:.0%})."
    )
    left_aside = [f"{rule} ({why})" for rule, why in sorted(scope.degenerate.items())]
    return text + (f" Not counted, since they cannot show it: {', '.join(left_aside)}." if left_aside else "")


def _counted(over: pd.DataFrame, sign: int, confidence: float) -> str:
    """How many selectors differ in this direction on these datasets, which, and over datasets like these."""
    here, elsewhere = (
        sorted(over.index[significant(over, confidence, elsewhere=where) == sign]) for where in (False, True)
    )
    counts = [f"{len(rules)} ({', '.join(rules)})" if rules else "none" for rules in (here, elsewhere)]
    return f"{counts[0]} on these datasets and {counts[1]} over datasets like these {'are' if len(here) > 1 else 'is'}"


def _left_out(left: pd.DataFrame) -> str:
    chosen = " and ".join(f"{rule} ({n} of {len(left)} times)" for rule, n in left["rule"].value_counts().items())
    between, cases = left["interpolated"].sum(), left["cases"].sum()
    read = f", {between} of {cases} cases interpolated" if between else ""
    at_cost, regret, cost = left[["regret_at_cost", "regret", "price"]].mean()
    return (
        f"Chosen without the dataset that it is judged on, the default is {chosen}{read}: at {cost:.0%} it is "
        f"{regret:.2f} points worse than the best (at most {left['worst'].max():.1f}) and {at_cost:.2f} "
        f"worse than the best of its cost (at most {left['worst_at_cost'].max():.1f})."
    )


def _worse(points: float, unit: str = "") -> str:
    points = round(points, 2)
    return f"{abs(points):.2f} {unit}{'worse' if points >= 0 else 'better'}"


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "\N{MINUS SIGN}")
