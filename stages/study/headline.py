"""What a study found, in words, with every number from its own tables."""

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import pandas as pd

from stages.study.comparisons import significant
from stages.study.measured import PAPER
from stages.study.resamples import POWER
from stages.study.tables import records

_ENDS: Final = {"": "on these datasets", "_elsewhere": "over datasets like these"}


class Scope(NamedTuple):
    """The study, or its part of one model.

    Attributes:
        named: in words.
        rules: each selector over its cases.
        over: comparisons by name, indexed by selector.
        degenerate: selectors that cannot show what looking at data or model is worth, and why.
    """

    named: str
    rules: pd.DataFrame
    over: dict[str, pd.DataFrame]
    degenerate: dict[str, str]


def finding(scope: Scope, default: str, confidence: float) -> str:
    """Return what the default, the paper's selector, and looking at data come to."""
    rules = {row["rule"]: row for row in records(scope.rules.reset_index(names="rule"))}
    one, over = rules[default], {row["rule"]: row for row in records(scope.over["over_full"])}
    deciding = f", and {one['deciding_share']:.0%} to decide," if one["deciding_share"] else ""
    text = (
        f"With {scope.named}, {default} costs {one['cost_share']:.0%} of full fine-tuning's FLOPs{deciding} and is "
        f"{_worse(one['behind_full'], 'points of accuracy ')} (mean over {one['groups']} datasets; worse on "
        f"{one['groups_behind']}, median {_worse(one['behind_full_median'])})."
    )
    if default in over:
        text += _against_full(over[default], confidence)
    if PAPER in rules and default != PAPER:
        paper = rules[PAPER]
        worse = _worse(paper["behind_full"], "points ")
        text += f" The paper's selector, {PAPER}, costs {paper['cost_share']:.0%} and is {worse}."
    looking = scope.over["over_constant"].drop(list(scope.degenerate), errors="ignore")
    if len(looking):
        better, worse = (_counted(looking, sign, confidence) for sign in (1, -1))
        text += (
            f" Of {len(looking)} selectors that look at the data or the model, {better} significantly better than a "
            f"fixed depth of the same cost, {worse} significantly worse (Holm's procedure, at {1 - confidence:.0%})."
        )
    return text


def _against_full(over: Mapping[str, Any], confidence: float) -> str:
    """Whether the difference from full fine-tuning is significant, on these datasets and over datasets like these."""
    ends = [end for end in _ENDS if over[f"low{end}"] is not None]
    bounds = [f"{_signed(over[f'low{end}'])} to {_signed(over[f'high{end}'])} {_ENDS[end]}" for end in ends]
    certain = [_ENDS[end] for end in ends if over[f"low{end}"] > 0 or over[f"high{end}"] < 0]
    least = " and ".join(f"{over[f'detectable{end}']:.1f}" for end in ends)
    return (
        f" The difference is {f'significant {certain[0]}' if certain else 'not significant'}"
        f"{f', not {_ENDS[ends[-1]]}' if len(certain) == 1 < len(ends) else ''}: {', '.join(bounds)} "
        f"({confidence:.0%} intervals); with {POWER:.0%} power {least} points would be detected."
    )


def _counted(over: pd.DataFrame, sign: int, confidence: float) -> str:
    """How many selectors differ in this direction on these datasets, which, and over datasets like these."""
    here, elsewhere = (sorted(over.index[significant(over, confidence, end) == sign]) for end in _ENDS)
    counts = [f"{len(rules)} ({', '.join(rules)})" if rules else "none" for rules in (here, elsewhere)]
    return f"{counts[0]} on these datasets and {counts[1]} over datasets like these {'are' if len(here) > 1 else 'is'}"


def _worse(points: float, unit: str = "") -> str:
    points = round(points, 2)
    return f"{abs(points):.2f} {unit}{'worse' if points >= 0 else 'better'}"


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "\N{MINUS SIGN}")
