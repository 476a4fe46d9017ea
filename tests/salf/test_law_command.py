"""``salf law``: tables of runs, and the worked example of the documentation."""

import re
import shlex

import pytest

from salf.cli import main
from tests.conftest import PROJECT
from tests.docs_blocks import blocks

COLUMNS = "method,rank,examples,loss"


def table(tmp_path, rows, columns=COLUMNS):
    path = tmp_path / "runs.csv"
    path.write_text("\n".join([columns, *(",".join(map(str, row)) for row in rows)]) + "\n")
    return str(path)


def planted(e=0.3, a=4.0, alpha=0.2, beta=0.4, method="weights", ranks=(4, 8, 16, 32)):
    return [(method, x, d, e + a * x**-alpha * d**-beta) for x in ranks for d in (64, 128, 256)]


def test_a_table_of_two_methods_tells_their_laws_and_where_they_meet(tmp_path, capsys):
    """With equal floors: (a₁/a₂)^(1/(β₁−β₂)) examples at every rank."""
    rows = [*planted(), *planted(a=1.2, beta=0.2, method="lora")]
    rows += [(*rows[0][:3], rows[0][3] * 1.001), (*rows[0][:3], rows[0][3] * 0.999)]  # draws of one run
    assert main(["law", table(tmp_path, rows), "--factor", "rank", "--at", "100"]) == 0
    told = capsys.readouterr().out
    assert "weights: E + A·X^−α·D^−β (X: rank, D: examples): E 0.3, A 4, alpha 0.2, beta 0.4" in told
    assert "lora: E + A·X^−α·D^−β (X: rank, D: examples): E 0.3, A 1.2, alpha 0.2, beta 0.2" in told
    crossing = (1.2 / 4.0) ** (1 / (0.2 - 0.4))
    assert f"critical size at level 4: lora up to {crossing:.0f} examples (" in told
    line = next(line for line in told.splitlines() if line.split()[:2] == ["4", "200"])
    assert f"{0.3 + 4 * 4**-0.2 * 200**-0.4:.4g} (" in line


def test_a_table_without_methods_is_one_method(tmp_path, capsys):
    rows = [row[1:] for row in planted()]
    assert main(["law", table(tmp_path, rows, "rank,examples,loss"), "--factor", "rank"]) == 0
    told = capsys.readouterr().out
    assert told.startswith("all runs: ")
    assert "critical" not in told


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        (planted(ranks=(4, 8, 16)), "runs.csv: weights has 3 values of rank; a law needs at least 4"),
        ([row for row in planted() if row[2] < 256], "weights has 2 values of examples; a law needs at least 3"),
        ([*planted(), ("weights", 4, 64, "low")], "runs.csv: line 14: loss = 'low': "),
        ([*planted(), ("weights", 0, 64, 0.5)], "runs.csv: line 14: rank = '0': "),
        ([*planted(), ("weights", 4, 64, "nan")], "runs.csv: line 14: loss = 'nan': "),
        ([], "runs.csv: no runs"),
    ],
)
def test_bad_tables_are_one_line(tmp_path, capsys, rows, why):
    assert main(["law", table(tmp_path, rows), "--factor", "rank"]) == 2
    told = capsys.readouterr()
    assert why in told.err
    assert len(told.err.splitlines()) == 1
    assert not told.out


def test_a_missing_table_or_column_is_named(tmp_path, capsys):
    assert main(["law", str(tmp_path / "none.csv"), "--factor", "rank"]) == 2
    assert "none.csv" in capsys.readouterr().err
    assert main(["law", table(tmp_path, planted()), "--factor", "parameters"]) == 2
    assert "runs.csv: no column parameters" in capsys.readouterr().err


NUMBER = re.compile(r"\d+\.?\d*(?:e\+\d+)?")


def test_the_worked_example_prints_what_the_page_shows(monkeypatch, capsys):
    """The same words, and the same forecasts within 3 %: the last digits are the machine's."""
    monkeypatch.chdir(PROJECT)
    monkeypatch.setenv("COLUMNS", "120")
    *_, (_, command), (_, shown) = blocks("tuning.md", section="Which method at my data size")
    assert main(shlex.split(command)[1:]) == 0
    told = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert [NUMBER.sub("#", " ".join(line.split())) for line in told] == [
        NUMBER.sub("#", " ".join(line.split())) for line in shown.splitlines()
    ]
    for one, other in zip(told, shown.splitlines(), strict=True):
        if re.match(r"\d", one):
            found, expected = ([float(number) for number in NUMBER.findall(line)] for line in (one, other))
            assert found == pytest.approx(expected, rel=0.03)
