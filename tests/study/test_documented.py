"""What docs/method.md says of the study is what its tables say."""

import csv
import json
import re
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]


def tables():
    """Every table of the page: its headings, and its rows."""
    text = (PROJECT / "docs/method.md").read_text(encoding="utf-8")
    for block in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
        head, _, *rows = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in block.splitlines()]
        yield head, rows


def rows_of(name):
    with (PROJECT / "reports/study" / name).open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def written(value, like):
    """A value rounded as it is written."""
    digits = len(like.partition(".")[2])
    return f"{value:.{digits}f}"


@pytest.fixture(scope="module")
def measured():
    return {(row["data_set"], row["model"], int(row["boundary"])): row for row in rows_of("curves.csv")}


DATA_SETS = {
    "docstrings": "docstrings",
    "TREC": "trec",
    "TREC, bare": "trec-bare",
    "SST-5": "sst5",
    "SUBJ": "subj",
    "web snippets": "webss",
    "MRPC": "mrpc",
    "CoLA": "cola",
    "CoLA, other books": "cola-out-of-domain",
    "Banking77": "banking77",
    "AG News": "ag-news",
    "GSM8K, loss": "gsm8k",
}


def shown(row):
    """Points as they are, losses without their minus."""
    return float(row["quality"]) if row["unit"] == "points" else -float(row["quality"])


def test_the_tables_of_accuracies_are_those_that_were_measured(measured):
    checked = 0
    for head, rows in tables():
        if head[0] not in ("last frozen layer", "model"):
            continue
        for cells in rows:
            named = dict(zip(head, cells, strict=True))
            model = named.get("model", "embedded")
            boundary = int(re.match(r"\d+", named["last frozen layer"])[0])
            for heading, cell in named.items():
                row = measured.get((DATA_SETS.get(heading), model, boundary))
                if heading in DATA_SETS and cell:
                    assert cell == written(shown(row), cell), (model, boundary, heading)
                    checked += 1
                if heading == "operations":
                    of_model = [float(r["cost_share"]) for k, r in measured.items() if k[1:] == (model, boundary)]
                    assert cell == f"{sum(of_model) / len(of_model):.0%}".replace("%", " %"), (model, boundary)
    assert checked > 80


def test_the_page_quotes_the_headline():
    summary = json.loads((PROJECT / "reports/study/summary.json").read_text(encoding="utf-8"))
    assert f"> {summary['headline']}\n" in (PROJECT / "docs/method.md").read_text(encoding="utf-8")


def test_every_figure_that_the_page_shows_is_there():
    text = (PROJECT / "docs/method.md").read_text(encoding="utf-8")
    figures = re.findall(r"!\[[^\]]+\]\(([^)]+\.svg)\)", text)
    assert len(figures) >= 4
    assert all((PROJECT / "docs" / figure).resolve().is_file() for figure in figures)
