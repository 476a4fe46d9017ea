"""A page's tables from the study's: what stands between ``<!-- study: NAME -->`` and ``<!-- end -->``."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from salf.errors import UserError
from salf.files import write_text
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
        "headroom": _headroom(summary),
        "interaction": _records(summary["interaction"], _INTERACTION),
        "natural label frequencies": _records(summary["natural"], _NATURAL),
        "equal rates": _records(summary["equal_rates"], _EQUAL_RATES),
        **{f"quality of {model}": _quality([one for one in points if one.model == model]) for model in models},
    }


def _rules(rules: Json) -> str:
    headings = [
        *("selector", "datasets", "FLOPs", "worse than full", "better than a fixed depth of its cost"),
        *("p (Holm), these datasets", "p (Holm), datasets like these"),
        *("regret at any cost", "cross-fitted", "at its cost", "cross-fitted"),
    ]
    return _table(headings, [_rule(one) for one in sorted(rules.values(), key=lambda one: one["rank"])])


def _rule(one: Json) -> list[str]:
    deciding = f" + {_share(one['deciding_share'])}" if one["deciding_share"] else ""
    fixed = one["over_constant"] or {}
    return [
        f"`{one['rule']}`" + ("*" if one["degenerate"] else ""),
        str(one["groups"]),
        f"{_share(one['cost_share'])}{deciding}",
        _interval(one["behind_full"], one["over_full"], -1),
        _interval(None, one["over_constant"], 1),
        *(_number(fixed.get(name), 3) for name in ("p_holm", "p_holm_elsewhere")),
        *(_number(one[name], 2) for name in _REGRETS),
    ]


def _headroom(summary: Json) -> str:
    """Of the leading model: a row per aim, cross-fitted; the other ways to pick with their gains alone."""
    found = {(one["picked_by"], one["aim"]): one for one in summary["headroom"] if one["model"] == summary["leading"]}
    headings = [
        *("aim", "FLOPs", "worse than full", "a fixed depth of its cost", "gain (standard error)"),
        *("without the group it owes most to", "gain, seen", "gain, by validation"),
    ]
    rows = [
        [
            *(
                aim,
                _share(one["cost_share"]),
                *(_number(one[name], 2) for name in ("behind_full", "fixed_behind_full")),
            ),
            f"{_number(one['gain'], 2)} ({_number(one['gain_error'], 2)})" if one["gain_error"] is not None else "",
            _number(one["least_gain"], 2),
            *(_number(found[other, aim]["gain"], 2) for other in ("seen", "validation")),
        ]
        for (picked_by, aim), one in found.items()
        if picked_by == "cross-fitted"
    ]
    return _table(headings, rows)


_INTERACTION: Final = (
    *(("model", "model", None), ("datasets", "data_sets", 0), ("boundaries", "boundaries", None)),
    *(("observed", "observed", 2), ("noise", "noise", 2), ("noise, 95 %", "noise_high", 2), ("p", "p", 4)),
    ("beyond noise (points)", "excess", 1),
)
_NATURAL: Final = (
    *(("dataset", "data_set", None), ("majority label, as drawn", "chance", 1), ("natural", "majority", 1)),
    *(("full, as drawn", "full", 1), ("natural", "full_natural", 1)),
    *(("half, as drawn", "half", 1), ("natural", "half_natural", 1)),
)
_EQUAL_RATES: Final = (
    *(("dataset", "data_set", None), ("learning rate", "learning_rate", None), ("kept by", "kept", None)),
    *(("seeds", "seeds", 0), ("full", "test_accuracy_full", 1), ("half", "test_accuracy_half", 1)),
    *(("full, validation", "validation_accuracy_full", 1), ("half, validation", "validation_accuracy_half", 1)),
)


def _records(found: Sequence[Json], columns: Sequence[tuple[str, str, int | None]]) -> str:
    """A row per record; of every column its heading, its key and a number's digits."""
    rows = [[str(one[key]) if n is None else _number(one[key], n) for _, key, n in columns] for one in found]
    return _table([heading for heading, _, _ in columns], rows)


def _share(value: float) -> str:
    return f"{value:.0%}".replace("%", " %")


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
            rows.append(
                [str(boundary), _share(sum(costs) / len(costs)), *(_shown(point) if point else "" for point in there)]
            )
    headings = [name if units[name] == "points" else f"{name} ({units[name]})" for name in data_sets]
    return _table(["last frozen layer", "FLOPs", *headings], rows)


def _shown(point: Point) -> str:
    return f"{point.quality:.1f}" if point.unit == "points" else f"{-point.quality:.2f}"


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{round(value, digits) + 0.0:.{digits}f}".replace("-", _MINUS)  # no minus zero


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
