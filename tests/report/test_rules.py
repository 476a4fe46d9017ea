"""What the page says of the rules: all that the plan holds, and nothing else."""

import json
import re

from salf.plan import FreezePlan
from stages.report.rules import rules_section
from tests.report.conftest import BOUNDARY


def plan_of(chain, **changes) -> FreezePlan:
    path = chain.root / "data/plan/freeze_plan.json"
    plan = json.loads(path.read_text())
    plan["boundaries"] |= changes.get("boundaries", {})
    plan["absent"] |= changes.get("absent", {})
    aside = chain.root / "data/plan/other.json"
    aside.write_text(json.dumps(plan))
    try:
        return FreezePlan.load(aside)
    finally:
        aside.unlink()


def test_every_rule_stands_at_its_boundary_with_its_cost_and_reason(pages):
    plan = plan_of(pages["good"][0])
    section = rules_section(plan)
    (table,) = section.tables
    rows = {row[0].text: row for row in table.rows}
    for name, chosen in plan.boundaries.items():
        boundary, cost, reason = rows[name][1:]
        assert (boundary.value, reason.text) == (chosen.boundary, chosen.reason)
        assert cost.value == plan.frontier[chosen.boundary].flops_share
    assert [row[1].value for row in table.rows] == sorted(b.boundary for b in plan.boundaries.values())
    assert [name for name, row in rows.items() if row[0].mark] == ["salf"]
    assert section.figures == []


def test_rules_that_say_the_same_share_a_row(pages):
    plan = plan_of(pages["good"][0])
    salf = plan.boundaries["salf"].model_dump()
    table = rules_section(plan_of(pages["good"][0], boundaries={"salf-deviation-observed": salf})).tables[0]
    (row,) = [row for row in table.rows if row[0].mark]
    assert row[0].text == "salf and salf-deviation-observed"


def test_a_boundary_that_the_budget_moved_shows_both(pages):
    chain = pages["good"][0]
    moved = plan_of(chain).boundaries["salf"].model_dump() | {"before_budget": 18}
    rows = {row[0].text: row[1] for row in rules_section(plan_of(chain, boundaries={"salf": moved})).tables[0].rows}
    assert (rows["salf"].value, rows["salf"].note) == (BOUNDARY, "before the budget: 18")
    assert rows["full"].note == ""


def test_what_a_rule_predicts_is_drawn_and_absent_rules_say_what_they_take(pages):
    layers = plan_of(pages["good"][0]).model.layers
    scores = [0.1 * k for k in range(layers)] + [None]
    probe = {"boundary": layers - 1, "reason": "rises", "scores": scores}
    plan = plan_of(pages["good"][0], boundaries={"probe": probe}, absent={"pilot": "set pilot.enabled to true"})
    section = rules_section(plan)
    (figure,) = section.figures
    assert figure.title == f"probe: boundary {layers - 1}"
    assert re.search(r"<desc[^>]*>[^<]*which the selector chooses", figure.svg)
    absent = section.tables[1]
    assert [[cell.text for cell in row] for row in absent.rows] == [["pilot", "set pilot.enabled to true"]]


def test_the_section_is_on_the_page(pages):
    assert 'id="rules"' in pages["good"][1]


def test_the_control_without_a_boundary_is_left_out(pages):
    plan = plan_of(pages["good"][0], boundaries={"first-n": {"boundary": 0, "reason": "control", "scores": None}})
    assert "first-n" not in [row[0].text for row in rules_section(plan).tables[0].rows]
