"""Builds the tables that a study shows, and writes them into pages."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import pandas as pd
from ruamel.yaml import YAML

from salf.errors import UserError
from salf.files import write_text
from stages.common.study_page import Cell, StudyPage, StudyTable
from stages.study.description import FULL, HALF

Json = Mapping[str, Any]
_PART: Final = re.compile(r"<!-- study: (?P<name>[^>]+?) -->\n(?:(?!<!-- study:).)*?<!-- end -->", flags=re.DOTALL)
_FEW: Final = 3  # a boundary that fewer datasets were measured at has no row


def page(summary: Json, curves: pd.DataFrame) -> StudyPage:
    """Return the headline and all tables, those of the report first."""
    described = YAML(typ="safe", pure=True).load(Path(__file__).with_suffix(".yaml").read_text("utf-8"))
    leading, first = summary["leading"], summary["first_round"] or {"selectors": {}, "headroom": [], "interaction": []}
    readings = first.get("readings") or {}
    order = sorted(summary["methods"], key=lambda name: (name != FULL, name != HALF, name))
    records = {
        "methods": [{"method": name, **summary["methods"][name]} for name in order],
        "default left out": summary["default"]["left_out"],
        "sign": summary["sign"],
        "techniques": summary["techniques"],
        "scope and LoRA": summary["orthogonal"],
        "forgetting": summary["forgetting"],
        "kept weights": summary["weights_kept"],
        "equal rates": summary["equal_rates"],
        "selectors": first["selectors"].get(leading, []),
        "interaction": first["interaction"],
        "headroom": _crossed(first["headroom"], leading),
        "claims": readings.get("claims", []),
        "readings": readings.get("scopes", {}).get(leading, []),
        "readings left out": readings.get("left_out", []),
        "rank correlations": [one for one in readings.get("correlations", []) if one["model"] == leading],
    }
    tables = {name: _table(described[name], rows) for name, rows in records.items()}
    tables["methods by dataset"] = _by_dataset(summary["by_dataset"], order)
    report = [name for name, one in tables.items() if one.rows]
    tables["quality"] = _quality(curves[curves["model"] == leading])
    return StudyPage(headline=summary["headline"], scope=_scope(summary["study"]), tables=tables, report=report)


def update(path: Path, shown: StudyPage) -> None:
    """Rewrite a Markdown page's parts between ``<!-- study: NAME -->`` and ``<!-- end -->``.

    Raises:
        UserError: the page is missing, a part has no end, or there is none of its name.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file")
    text = path.read_text(encoding="utf-8")
    parts = {"headline": f"> {shown.headline}", **{name: _markdown(one) for name, one in shown.tables.items()}}
    if len(_PART.findall(text)) != text.count("<!-- study:"):
        raise UserError(f"{path}: a part of the study has no end; put <!-- end --> after every <!-- study: NAME -->")
    unknown = [found["name"] for found in _PART.finditer(text) if found["name"] not in parts]
    if unknown:
        raise UserError(f"{path}: no part {unknown[0]!r} of the study; there are: {', '.join(parts)}")
    marked = "<!-- study: {} -->\n{}\n<!-- end -->"
    write_text(path, _PART.sub(lambda found: marked.format(found["name"], parts[found["name"]]), text))


def _crossed(headroom: Sequence[Json], model: str) -> list[Json]:
    """A model's headroom, cross-fitted, with the gains of the other ways to pick."""
    mine = [one for one in headroom if one["model"] == model]
    gains = {(one["picked_by"], one["aim"]): one["gain"] for one in mine}
    return [
        {**one, **{name: gains[name, one["aim"]] for name in ("seen", "validation")}}
        for one in mine
        if one["picked_by"] == "cross-fitted"
    ]


def _table(described: Json, records: Sequence[Json]) -> StudyTable:
    columns = [(heading, key, form[0] if form else None) for heading, key, *form in described["columns"]]
    rows = [[_cell(one, key, form) for _, key, form in columns] for one in records]
    return StudyTable(caption=described["caption"], headings=[heading for heading, *_ in columns], rows=rows)


def _cell(record: Json, key: str, form: Any) -> Cell:
    """A cell in one of the formats that ``shown.yaml`` names; ``key`` may lead into a part of the record."""
    value: Any = record
    for name in key.split(".") if key != "." else ():
        value = value and value.get(name)
    if value is None or value == [] or form is None:
        return "" if value is None or value == [] else str(value)
    if form == "list":
        return ", ".join(map(str, value))
    if form == "interval":
        return " to ".join(_digits(one, 2) for one in value)
    if form == "points":
        low, high = (_digits(end, 2) for end in value["interval_examples"])
        mean = value["mean_difference_points"]
        return mean, f"{_digits(mean, 2)} [{low}, {high}]"
    if form == "rule":
        return f"`{value}`" + "*" * bool(record.get("degenerate"))
    if form in ("%", "cost"):
        deciding = form == "cost" and record["deciding_share"]
        return value, _percent(value) + (f" + {_percent(deciding)}" if deciding else "")
    return value, _digits(value, form)


def _by_dataset(rows: Sequence[Json], methods: Sequence[str]) -> StudyTable:
    """Full fine-tuning's accuracy on every dataset, and the other methods' differences from it."""
    shown = [name for name in methods if any(name in row for row in rows)]
    columns = [("dataset", "data_set"), *((f"`{name}`", name, 1) for name in shown)]
    caption = "Accuracy of full fine-tuning in %, and the other methods' points above it."
    return _table({"caption": caption, "columns": columns}, rows)


def _quality(curves: pd.DataFrame) -> StudyTable:
    """One model's test quality by boundary and dataset: points as they are, losses without their minus."""
    units = curves.drop_duplicates("data_set").set_index("data_set")["unit"]
    quality, places = curves.set_index(["boundary", "data_set"])["quality"], curves.groupby("boundary")
    rows: list[list[Cell]] = []
    for boundary, cost in places["cost_share"].mean()[places.size() >= min(_FEW, len(units))].items():
        found = [(quality.get((boundary, name)), 1 if unit == "points" else 2) for name, unit in units.items()]
        cells: list[Cell] = ["" if value is None else (value, f"{abs(value):.{digits}f}") for value, digits in found]
        rows.append([str(boundary), (cost, _percent(cost)), *cells])
    names = [name if unit == "points" else f"{name} ({unit})" for name, unit in units.items()]
    return StudyTable(caption="", headings=["last frozen layer", "FLOPs", *names], rows=rows)


def _scope(summary: Json) -> str:
    return (
        f"{summary['fine_tunes']} of {summary['fine_tunes_measured']} fine-tunes of {', '.join(summary['models'])} on "
        f"{', '.join(summary['data_sets'])}. Measured on {'; '.join(summary['machines'])}."
    )


def _markdown(table: StudyTable) -> str:
    rows = [[cell if isinstance(cell, str) else cell[1] for cell in row] for row in table.rows]
    lines = [table.headings, ["---"] * len(table.headings), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _digits(value: float, digits: int) -> str:
    return f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "\N{MINUS SIGN}")  # no minus zero


def _percent(value: float) -> str:
    return f"{value:.0%}".replace("%", " %")
