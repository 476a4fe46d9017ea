"""What the page says of the selectors: all that the plan holds, and nothing else."""

import json
from types import SimpleNamespace

from salf.plan import FreezePlan
from salf.plan_records import Certainty
from stages.report.choice import certainty_section, selectors_section
from stages.report.parts import Section
from tests.report.conftest import BOUNDARY


def section_of(plan: FreezePlan) -> Section:
    return selectors_section(SimpleNamespace(plan=plan))


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


def test_every_selector_has_its_boundary_with_its_cost_and_reason(pages):
    plan = plan_of(pages["good"][0])
    section = section_of(plan)
    (table,) = section.tables
    rows = {row[0].text: row for row in table.body}
    for name, chosen in plan.boundaries.items():
        boundary, cost, backward, reason = rows[name][1:]
        assert (boundary.value, reason.text) == (chosen.boundary, chosen.reason)
        assert cost.value == plan.frontier[chosen.boundary].flops_share
        assert backward.value == plan.frontier[chosen.boundary].flops_backward_share
    assert [row[1].value for row in table.body] == sorted(b.boundary for b in plan.boundaries.values())
    assert [name for name, row in rows.items() if row[0].mark] == ["salf"]


def test_selectors_that_agree_share_a_row(pages):
    plan = plan_of(pages["good"][0])
    salf = plan.boundaries["salf"].model_dump()
    table = section_of(plan_of(pages["good"][0], boundaries={"salf-deviation-observed": salf})).tables[0]
    (row,) = [row for row in table.body if row[0].mark]
    assert row[0].text == "salf and salf-deviation-observed"


def test_a_boundary_that_the_budget_moved_shows_both(pages):
    chain = pages["good"][0]
    moved = plan_of(chain).boundaries["salf"].model_dump() | {"before_budget": 18}
    rows = {row[0].text: row[1] for row in section_of(plan_of(chain, boundaries={"salf": moved})).tables[0].body}
    assert (rows["salf"].value, rows["salf"].note) == (BOUNDARY, "before the budget: 18")
    assert rows["full"].note == ""


def test_absent_selectors_say_what_they_need(pages):
    plan = plan_of(pages["good"][0], absent={"pilot": "set pilot.enabled to true"})
    absent = section_of(plan).tables[1]
    assert [[cell.text for cell in row] for row in absent.body] == [["pilot", "set pilot.enabled to true"]]


def test_the_section_is_on_the_page(pages):
    assert 'id="selectors"' in pages["good"][1]


def test_the_control_without_a_boundary_is_left_out(pages):
    plan = plan_of(pages["good"][0], boundaries={"first-n": {"boundary": 0, "reason": "control", "scores": None}})
    assert "first-n" not in [row[0].text for row in section_of(plan).tables[0].body]


def test_a_fixed_depth_has_its_reason_in_sentences_and_no_table_of_gains(pages):
    plan = plan_of(pages["good"][0])
    fixed = {"win_share": None, "value": None, "low": None, "high": None, "words": "nothing is estimated"}
    changes = {"reason": "half is frozen", "certainty": Certainty(**fixed), "runners_up": []}
    section = certainty_section(SimpleNamespace(plan=plan.model_copy(update=changes)))
    assert section.sentences == ["Half is frozen.", "Nothing is estimated."]
    assert section.tables == []
