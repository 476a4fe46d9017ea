"""A page's tables from the study's: what stands between ``<!-- study: NAME -->`` and ``<!-- end -->``."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from stages.common.artifacts import write_text
from stages.common.command import UserError
from stages.study.curves import Point

Json = Mapping[str, Any]
_PART: Final = re.compile(r"<!-- study: (?P<name>[^>]+?) -->\n(?:(?!<!-- study:).)*?<!-- end -->", flags=re.DOTALL)
_FEW: Final = 3  # a boundary that fewer data sets were measured at has no row
_MINUS: Final = "\N{MINUS SIGN}"
_REGRETS: Final = ("regret", "regret_cross_fitted", "regret_at_cost", "regret_at_cost_cross_fitted")


def update(page: Path, summary: Json, points: Sequence[Point]) -> None:
    """Write a page's parts anew; all else stays.

    Args:
        page: a Markdown file.
        summary: the study's.
        points: every measured boundary.

    Raises:
        UserError: the page is missing, a part has no end, or there is none of its name.
    """
    try:
        text = page.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{page}: no such file") from None
    parts = _parts(summary, points)
    if len(_PART.findall(text)) != text.count("<!-- study:"):
        raise UserError(f"{page}: a part of the study has no end; put <!-- end --> behind every <!-- study: NAME -->")
    unknown = [found["name"] for found in _PART.finditer(text) if found["name"] not in parts]
    if unknown:
        raise UserError(f"{page}: no part {unknown[0]!r} of the study; there are: {', '.join(parts)}")
    write_text(page, _PART.sub(lambda found: _marked(found["name"], parts[found["name"]]), text))


def _marked(name: str, content: str) -> str:
    return f"<!-- study: {name} -->\n{content}\n<!-- end -->"


def _parts(summary: Json, points: Sequence[Point]) -> dict[str, str]:
    """The parts by name; quality by boundary has one per model."""
    models = list(dict.fromkeys(point.model for point in points))
    alone = summary["alone"]
    return {
        "headline": f"> {summary['headline']}",
        "rules": _rules(summary["rules"]),
        **({f"rules of {alone['model']}": _rules(alone["rules"])} if alone else {}),
        **{f"quality of {model}": _quality([one for one in points if one.model == model]) for model in models},
    }


def _rules(rules: Json) -> str:
    headings = [
        *("rule", "data sets", "operations", "behind full", "ahead of a fixed depth of its price"),
        *("regret at any cost", "cross-fitted", "at its cost", "cross-fitted"),
    ]
    return _table(headings, [_rule(one) for one in sorted(rules.values(), key=lambda one: one["rank"])])


def _rule(one: Json) -> list[str]:
    deciding = f" + {one['deciding_share']:.0%}" if one["deciding_share"] else ""
    return [
        f"`{one['rule']}`",
        str(one["groups"]),
        f"{one['cost_share']:.0%}{deciding}".replace("%", " %"),
        _interval(one["behind_full"], one["over_full"], -1),
        _interval(None, one["over_constant"], 1),
        *(_number(one[name], 2) for name in _REGRETS),
    ]


def _interval(mean: float | None, over: Json | None, sign: int) -> str:
    """A mean, or the difference itself, with the interval of that difference, whose sign may have to be turned."""
    if over is None:
        return "" if mean is None else _number(mean, 2)
    low, high = sorted(sign * over[name] for name in ("low", "high"))
    return f"{_number(over['difference'] if mean is None else mean, 2)} [{_number(low, 2)}, {_number(high, 2)}]"


def _quality(points: Sequence[Point]) -> str:
    """Test quality by boundary and data set: points as they are, losses without their minus."""
    data_sets = list(dict.fromkeys(point.data_set for point in points))
    units = {point.data_set: point.unit for point in points}
    found = {(point.boundary, point.data_set): point for point in points}
    rows = []
    for boundary in sorted({point.boundary for point in points}):
        there = [found.get((boundary, data_set)) for data_set in data_sets]
        costs = [point.cost_share for point in there if point]
        if len(costs) >= min(_FEW, len(data_sets)):
            share = f"{sum(costs) / len(costs):.0%}".replace("%", " %")
            rows.append([str(boundary), share, *(_shown(point) if point else "" for point in there)])
    headings = [name if units[name] == "points" else f"{name} ({units[name]})" for name in data_sets]
    return _table(["last frozen layer", "operations", *headings], rows)


def _shown(point: Point) -> str:
    return f"{point.quality:.1f}" if point.unit == "points" else f"{-point.quality:.2f}"


def _number(value: float, digits: int) -> str:
    return f"{value:.{digits}f}".replace("-", _MINUS)


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
