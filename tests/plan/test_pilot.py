"""The rule that takes the deepest boundary which pilots cannot tell from the best."""

import json

import pytest

from salf.errors import UserError

LOSSES = [1.00, 0.99, 1.00, 1.02, 1.10, 1.50, 3.00]
ERRORS = [0.02, 0.00, 0.02, 0.02, 0.05, 0.10, 0.00]


def runs(*boundaries):
    facts = {"examples": 9, "learning_rate": 0.1, "validation_loss": 1.0, "flops": 1, "kept": True}
    return [{"boundary": boundary, **facts} for boundary in boundaries]


def write_pilot(workspace, losses=LOSSES, errors=ERRORS, *, holds=True, **changes):
    rows = [
        {"boundary": k, "loss": x, "low": x - 0.1, "high": x + 0.1, "excess": x - min(losses), "excess_error": e}
        for k, (x, e) in enumerate(zip(losses, errors, strict=True))
    ]
    verdict = "The loss falls." if holds else "No joint law holds: it does not fall."
    law = {"holds": holds, "verdict": verdict, "name": "joint", "formula": "E", "parameters": {}, "intervals": None}
    law |= {"residual": 0.1, "left_out": {"boundaries": None, "largest_size": {"law": 0.1, "without": 0.2}}}
    flops = dict.fromkeys(("frozen", "training", "reading", "total", "full_fine_tune"), 1)
    found = {
        "schema": 1,
        "enabled": True,
        "layers": len(losses) - 1,
        "predictions": rows,
        "law": law,
        "epochs": 1,
        "examples": 9,
        "validation_examples": 9,
        "confidence": 0.9,
        "base_sha256": "ab" * 32,
        "data_sha256": {},
        "untrained_loss": 3.0,
        "pilots": runs(0, 5),
        "flops": {**flops, "share": 0.83},
        **changes,
    }
    workspace.pilot = workspace.root / "pilot.json"
    workspace.pilot.write_text(json.dumps(found))


@pytest.fixture
def piloted(workspace):
    argv = workspace.argv
    workspace.argv = lambda: [*argv(), "--pilot", str(workspace.pilot)]
    write_pilot(workspace)
    return workspace


@pytest.mark.parametrize(("tolerance", "boundary"), [(0.0, 1), (1.0, 2), (2.0, 3), (3.0, 4), (99.0, 5)])
def test_the_deepest_boundary_within_so_many_standard_errors_of_the_best(piloted, tolerance, boundary):
    plan = piloted.plan(selector="pilot", tolerance=tolerance)
    assert plan.boundary == boundary  # the last boundary trains no layer and is never chosen
    assert plan.fallback is None


def test_the_choice_names_the_losses_the_cost_of_the_pilots_and_the_interval(piloted):
    plan = piloted.plan(selector="pilot")
    assert "within 1 standard errors (0.02) of the best (0.99)" in plan.reason
    assert "the pilots cost 0.83 times one full fine-tune" in plan.reason
    assert plan.certainty.words == "validation loss 0.9 to 1.1 by the law of all pilots"
    assert plan.boundaries["pilot"].scores == [-x for x in LOSSES]
    assert plan.evidence.pilot_sha256


def test_what_pilots_predict_is_what_budget_and_tolerance_weigh(piloted):
    """Intervals are 0.1 wide on both sides, and full fine-tuning's loss is 1.00."""
    plan = piloted.plan(tolerance=1.1)
    assert plan.boundary_of("budget") == 1
    assert plan.boundary_of("tolerance") == 4
    assert piloted.plan(budget=plan.frontier[3].flops_share).boundary_of("budget") == 3
    assert plan.boundaries["tolerance"].scores == [-x for x in LOSSES]
    assert "negative validation loss, by pilots" in plan.boundaries["budget"].reason


FALLING = [1.30, 1.25, 1.20, 1.10, 1.00, 0.90, 3.00]  # deeper is better, as of small data it often seems


@pytest.mark.parametrize("name", ["pilot", "budget", "tolerance"])
def test_no_rule_goes_behind_the_deepest_pilot(piloted, name):
    """What is predicted there is extrapolated."""
    write_pilot(piloted, FALLING, pilots=runs(0, 3, 2))
    plan = piloted.plan()
    assert plan.boundary_of(name) == 3
    if name == "pilot":
        assert "of the best (1.1), of those up to the deepest pilot, 3;" in plan.boundaries["pilot"].reason


def test_a_budget_behind_the_deepest_pilot_takes_the_shallowest_that_it_pays_for(piloted):
    write_pilot(piloted, FALLING, pilots=runs(0, 2))
    points = piloted.plan().frontier
    assert piloted.plan(budget=points[4].flops_share).boundary_of("budget") == 4


def test_without_a_law_the_plan_says_what_decided_instead(piloted):
    write_pilot(piloted, holds=False)
    plan = piloted.plan(selector="pilot")
    assert plan.fallback == "No joint law holds: it does not fall"
    assert "the largest pilots, interpolated" in plan.certainty.words


@pytest.mark.parametrize("name", ["budget", "tolerance"])
def test_without_a_law_of_pilots_whoever_weighs_them_says_so(piloted, name):
    write_pilot(piloted, holds=False)
    assert piloted.plan(selector=name).fallback == "No joint law holds: it does not fall"


def test_without_pilots_the_rule_is_absent_and_asking_for_it_names_the_parameter(piloted):
    piloted.pilot.write_text('{"schema": 1, "enabled": false}')
    plan = piloted.plan()
    assert plan.absent["pilot"] == "set pilot.enabled to true"
    assert "pilot" not in plan.boundaries
    with pytest.raises(UserError, match=r"plan\.selector = pilot: set pilot\.enabled to true"):
        piloted.plan(selector="pilot")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda w: w.pilot.unlink(), r"pilot\.json: no such file.*dvc repro signals"),
        (lambda w: w.pilot.write_text("{}"), "pilot.json: layers: Field required; run again: dvc repro signals"),
        (lambda w: write_pilot(w, [1.0] * 5, [0.1] * 5), "pilots of 4 layers, the base model has 6"),
        (lambda w: write_pilot(w, base_sha256="cd" * 32), "made of other weights than the base model's"),
    ],
)
def test_bad_pilots_are_one_line(piloted, spoil, message):
    spoil(piloted)
    with pytest.raises(UserError, match=message):
        piloted.plan()
