"""What docs/method.md says of the study is what its tables say."""

import csv
import json
import re
from pathlib import Path

import pandas as pd
import pytest

from stages.common.command import UserError
from stages.study.curves import Point
from stages.study.page import update

PROJECT = Path(__file__).parents[2]
PAGE = PROJECT / "docs/method.md"


def points():
    """The committed study's."""
    kinds = {"boundary": int, "layers": int, "seeds": int, "data_set": str, "model": str, "unit": str}
    with (PROJECT / "reports/study/curves.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            yield Point(**{name: kinds.get(name, float)(value) if value else None for name, value in row.items()})


def summary():
    return json.loads((PROJECT / "reports/study/summary.json").read_text(encoding="utf-8"))


def test_the_page_quotes_the_study_as_it_is(tmp_path):
    copy = tmp_path / "page.md"
    copy.write_bytes(PAGE.read_bytes())
    update(copy, summary(), list(points()))
    assert copy.read_bytes() == PAGE.read_bytes()
    assert f"> {summary()['headline']}\n" in PAGE.read_text(encoding="utf-8")


def test_a_table_of_qualities_is_what_was_measured():
    """By the headings, against the rows of curves.csv."""
    text = PAGE.read_text(encoding="utf-8")
    by_place = {(one.data_set, one.model, one.boundary): one for one in points()}
    checked = 0
    for model, table in re.findall(r"<!-- study: quality of (\S+) -->\n(.*?)<!-- end -->", text, flags=re.DOTALL):
        head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.strip().splitlines()]
        for boundary, _, *cells in rows:
            for heading, cell in zip(head[2:], cells, strict=True):
                if cell:
                    one = by_place[heading.removesuffix(" (nats)"), model, int(boundary)]
                    assert float(cell) == pytest.approx(abs(one.quality), abs=0.05 if one.unit == "points" else 0.005)
                    checked += 1
    assert checked > 80


def test_a_part_that_there_is_none_of_is_one_line_and_changes_nothing(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# Title\n<!-- study: weather -->\nsunny\n<!-- end -->\n")
    with pytest.raises(UserError, match="no part 'weather' of the study; there are: headline, rules"):
        update(page, summary(), list(points()))
    assert "sunny" in page.read_text()
    open_ended = "<!-- study: headline -->\nlost\n\n# Title\n<!-- study: rules -->\n<!-- end -->"
    page.write_text(open_ended)
    with pytest.raises(UserError, match="a part of the study has no end"):
        update(page, summary(), list(points()))
    assert page.read_text() == open_ended
    with pytest.raises(UserError, match="no such file"):
        update(tmp_path / "none.md", summary(), [])


def test_every_figure_that_the_page_shows_is_there():
    text = PAGE.read_text(encoding="utf-8")
    figures = re.findall(r"!\[[^\]]+\]\(([^)]+\.svg)\)", text)
    assert len(figures) >= 4
    assert all((PROJECT / "docs" / figure).resolve().is_file() for figure in figures)


def test_the_outcomes_of_other_rates_belong_to_runs_and_hold_the_winners():
    """Web snippets at one rate: full and half differ by 0.2 points with seed 1, where the winners differ by 6.8."""
    runs, rates = (pd.read_csv(PROJECT / f"reports/study/{name}.csv") for name in ("runs", "rates"))
    both = rates.merge(runs, on="point", suffixes=("", "_kept"), validate="many_to_one")
    assert len(both) == len(rates) == len(rates.drop_duplicates(["point", "learning_rate"]))
    won = both[both["learning_rate"] == both["learning_rate_kept"]]
    assert set(won["point"]) == set(rates["point"])
    assert (won["validation_loss"] == won["validation_loss_kept"]).all()
    webss = rates[(rates["data_set"] == "webss") & (rates["model"] == "embedded") & (rates["seed"] == 1)]
    full = webss[webss["method"] == "full"].set_index("learning_rate")["test_accuracy"]
    half = runs.query("data_set == 'webss' and model == 'embedded' and seed == 1 and method == 'freeze-15'")
    assert dict(full) == pytest.approx({1e-4: 0.9, 2e-4: 0.88667, 4e-4: 0.83333}, abs=1e-5)
    assert dict(zip(half["learning_rate"], half["quality"], strict=True))[1e-4] == pytest.approx(0.90167, abs=1e-5)
