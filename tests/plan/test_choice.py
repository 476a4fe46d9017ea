"""Which boundary is chosen, why and how surely: the stage from its files to its plan."""

import json
import re
from collections import Counter
from typing import get_args

import pytest

from salf.errors import UserError
from salf.evidence import Evidence
from salf.plan import FreezePlan
from salf.selectors import SELECTORS, GainName, Quantity
from stages.common.params import Plan
from stages.plan.choice import choose
from tests.plan.conftest import shipped_params


def params(**changes):
    values = {
        "selector": "salf",
        "quantity": "deviation",
        "gain": "observed",
        "budget": 1.0,
        "last_n": 2,
        "first_n": 2,
        "tolerance": 1.0,
        "oracle": None,
        "seed": 1,
    }
    return Plan(**{**values, **changes})


def test_salf_freezes_up_to_the_layer_with_the_largest_gain_and_says_how_sure(workspace):
    plan = workspace.plan()
    assert plan.boundary == 5  # layer 1's gain is the embedding step's, and layer 6 is the last
    assert plan.frozen_layers == [1, 2, 3, 4, 5]
    assert plan.trained_layers == [6]
    assert plan.certainty.words == "unsure: layer 5 wins 43% of resamples"
    assert plan.certainty.win_share == 0.43
    assert (plan.certainty.low, plan.certainty.high) == (0.11, 0.13)
    assert [(r.boundary, r.win_share) for r in plan.runners_up] == [(4, 0.2), (3, 0.05), (2, 0.0)]
    assert plan.fallback is None
    assert "layer 5" in plan.reason


@pytest.mark.parametrize(("gain", "boundary", "share"), [("ratio", 4, "90%"), ("local", 5, "95%")])
def test_the_gain_asked_for_decides(workspace, gain, boundary, share):
    plan = workspace.plan(gain=gain)
    assert (plan.boundary, plan.gain) == (boundary, gain)
    assert plan.certainty.words == f"sure: layer {boundary} wins {share} of resamples"


@pytest.mark.parametrize("quantity", get_args(Quantity))
@pytest.mark.parametrize("gain", get_args(GainName))
def test_a_named_gain_is_what_salf_does_when_asked_for_it(workspace, quantity, gain):
    named, asked = workspace.plan(selector="full"), workspace.plan(quantity=quantity, gain=gain)
    name = f"salf-{quantity}-{gain}"
    if asked.fallback is None:
        assert named.boundaries[name] == asked.boundaries["salf"]
    else:
        assert named.absent[name] in asked.fallback
    assert (name in named.boundaries) == (asked.fallback is None)


@pytest.mark.parametrize("law", [{"fits": False}, {"power": False}])
def test_a_named_gain_has_nothing_in_its_place_where_its_law_does_not_fit(workspace, law):
    """Both gains are computed from the power law over the whole depth: another law that fits does not help them."""
    workspace.rewrite_law(**law)
    plan = workspace.plan()
    assert "no power law over the whole depth fits the deviation" in plan.absent["salf-deviation-ratio"]
    assert plan.boundaries["salf-deviation-observed"].boundary == 5
    with pytest.raises(UserError, match="salf-deviation-ratio: no power law over the whole depth fits"):
        workspace.plan(selector="salf-deviation-ratio")


def test_the_law_decides_with_an_interval_and_warns_where_it_does_not_fit(workspace, capsys):
    """Shares of resamples by layer: 2 %, 8 %, 84 %, 6 % for layers 2 to 5; no plan is refused."""
    chosen = workspace.plan().boundaries["salf-law"]
    assert (chosen.boundary, chosen.interval, chosen.warning) == (4, [3, 5], None)
    assert "Warning" not in capsys.readouterr().out
    workspace.rewrite_law(fits=False)
    plan = workspace.plan(selector="salf-law")
    assert (plan.boundary, plan.fallback) == (4, None)
    assert plan.boundaries["salf-law"].warning in (printed := capsys.readouterr().out)
    assert "from space 3 on does not fit: r² 0.50 is below 0.9" in printed
    assert plan.boundaries["salf-loss-observed"].warning is None


def test_the_shipped_reading_is_the_loss_by_the_law_beside_the_observed_deviation(workspace):
    shipped = {name: shipped_params()["plan"][name] for name in ("quantity", "gain")}
    assert shipped == {"quantity": "loss", "gain": "law"}
    plan = workspace.plan(**shipped)
    assert plan.boundaries["salf"] == plan.boundaries["salf-law"] == plan.boundaries["salf-loss-law"]
    assert plan.boundaries["salf-deviation-observed"] == workspace.plan().boundaries["salf"] != plan.boundaries["salf"]
    workspace.rewrite_law(quantities=("deviation",))
    workspace.rewrite_gains(only=("deviation",))
    alone = workspace.plan(**shipped)
    assert (alone.quantity, alone.gain, alone.boundary) == ("deviation", "law", 4)
    assert "trace.losses is 0" in alone.fallback


def test_a_plan_made_before_intervals_and_warnings_is_read(workspace):
    plan = workspace.plan().model_dump(mode="json")
    for chosen in plan["boundaries"].values():
        del chosen["interval"], chosen["warning"]
    path = workspace.root / "old.json"
    path.write_text(json.dumps(plan))
    assert FreezePlan.load(path).boundaries["salf-law"].warning is None


def test_a_law_made_before_there_was_one_from_the_peak_on_has_no_such_boundary(workspace):
    law = json.loads(workspace.law.read_text())
    for each in law["quantities"].values():
        del each["falling"]
    workspace.law.write_text(json.dumps(law))
    rows = [row for row in workspace.gains.read_text().splitlines() if ",law," not in row]
    workspace.gains.write_text("\n".join(rows))
    assert "run again: dvc repro fit" in workspace.plan().absent["salf-law"]


def test_a_named_gain_of_losses_that_were_not_traced_is_absent(workspace):
    workspace.rewrite_law(quantities=("deviation",))
    workspace.rewrite_gains(only=("deviation",))
    assert "trace.losses" in workspace.plan().absent["salf-loss-observed"]


@pytest.mark.parametrize("gain", ["ratio", "marginal"])
def test_a_law_that_does_not_fit_falls_back_visibly_to_observed_gains(workspace, gain, capsys):
    workspace.rewrite_law(fits=False)
    plan = workspace.plan(gain=gain)
    assert (plan.boundary, plan.gain, plan.quantity) == (5, "observed", "deviation")
    assert plan.fallback is not None
    assert "no law fits" in plan.fallback
    assert plan.fallback in capsys.readouterr().out


@pytest.mark.parametrize("selector", ["budget", "tolerance"])
def test_rules_that_weigh_predictions_say_how_sure_and_when_no_law_predicts(workspace, selector):
    sure = workspace.plan(selector=selector)
    assert sure.fallback is None
    assert sure.certainty.low <= sure.certainty.value <= sure.certainty.high
    assert sure.certainty.words.endswith("by the law")
    workspace.rewrite_law(fits=False)
    plan = workspace.plan(selector=selector)
    assert "no law fits the deviation" in plan.fallback
    assert "by the law" not in plan.reason


def test_gains_that_need_no_law_do_not_fall_back_without_one(workspace):
    workspace.rewrite_law(fits=False)
    plan = workspace.plan(gain="local")
    assert (plan.gain, plan.fallback) == ("local", None)


def test_a_gain_that_was_not_computed_falls_back(workspace):
    plan = workspace.plan(gain="marginal")
    assert (plan.gain, plan.boundary) == ("observed", 5)
    assert "no layer has a marginal gain" in plan.fallback


def test_losses_that_were_not_traced_fall_back_to_the_deviation(workspace):
    workspace.rewrite_law(quantities=("deviation",))
    workspace.rewrite_gains(only=("deviation",))
    plan = workspace.plan(quantity="loss")
    assert (plan.quantity, plan.boundary) == ("deviation", 5)
    assert "loss was not traced" in plan.fallback


def test_the_last_layer_is_never_the_boundary_although_its_gain_is_the_largest(workspace):
    plan = workspace.plan(quantity="loss")
    assert (plan.boundary, plan.trained_layers) == (5, [6])
    assert "among layers 2 to 5" in plan.reason


@pytest.mark.parametrize(("selector", "boundary"), [("full", 0), ("none", 6), ("last-n", 4), ("half", 3)])
def test_fixed_rules(workspace, selector, boundary):
    plan = workspace.plan(selector=selector)
    assert plan.boundary == boundary
    assert plan.certainty.win_share is None
    assert plan.runners_up == []


def test_every_plan_holds_the_boundary_of_every_selector_that_has_evidence(workspace):
    rules = ["salf", "full", "none", "last-n", "random", "budget", "tolerance"]
    plans = [workspace.plan(selector=name) for name in rules]
    assert all(plan.boundaries == plans[0].boundaries for plan in plans)
    assert set(plans[0].boundaries) | set(plans[0].absent) == set(SELECTORS)
    assert all(plan.boundary == plan.boundary_of(plan.selector) for plan in plans)


def test_last_n_of_too_many_layers_never_becomes_full_fine_tuning(workspace):
    plan = workspace.plan(selector="last-n", last_n=40)
    assert plan.boundary == 1
    assert "plan.last_n is 40" in plan.reason


def test_random_is_uniform_over_the_inner_boundaries_and_repeats_with_its_seed():
    evidence = Evidence(layers=6, laws={}, gains={})
    draws = [choose(SELECTORS["random"], evidence, params(seed=seed)).boundary for seed in range(2000)]
    counts = Counter(draws)
    assert sorted(counts) == [1, 2, 3, 4, 5]
    # A fair draw of 2000 out of five: 400 each, standard deviation 18.
    assert all(abs(count - 400) < 90 for count in counts.values())
    assert draws[7] == choose(SELECTORS["random"], evidence, params(seed=7)).boundary


DEEPEST = {"salf", "probe", "salf-deviation-observed"}  # rest on evidence; the trace's and the signal's name boundary 5


@pytest.mark.parametrize("own", ["full", "half", "salf", "probe"])
def test_a_budget_moves_what_rests_on_evidence_and_never_a_fixed_depth(workspace, own):
    workspace.rewrite_signals(probe=[0.5] * 7, probe_pooled=[0, 0, 0, 0, 0, 1, 1], probe_error=[0.01] * 7)
    free = workspace.plan(selector=own)
    plan = workspace.plan(selector=own, budget=free.frontier[6].flops_share)
    for name, before in free.boundaries.items():
        after = plan.boundaries[name]
        assert before.before_budget is None
        if name in ("full", "half", "last-n", "none", "random", "first-n"):
            assert after == before
        elif name in DEEPEST:
            assert (after.boundary, after.before_budget, after.reason) == (6, 5, before.reason)
        else:
            assert after.boundary == 6
    assert plan.boundary == plan.boundary_of(own)
    moved = "boundary 5 would cost" in plan.reason and "the next one within it is 6" in plan.reason
    assert moved == (own in DEEPEST)
    assert ("a fixed depth is not moved" in plan.reason) == (own not in DEEPEST)
    assert ";" not in free.reason


@pytest.mark.parametrize("epochs", [1, 2, 10])
def test_half_is_half_of_the_layers_at_any_number_of_epochs(workspace, epochs):
    for own in ("salf", "half", "last-n"):
        plan = workspace.plan({"epochs": epochs}, selector=own, budget=0.4)
        assert (plan.boundary_of("half"), plan.boundary_of("last-n"), plan.boundary_of("full")) == (3, 4, 0)


def test_a_cost_just_above_the_budget_is_told_from_it(workspace):
    share = workspace.plan(selector="half").frontier[3].flops_share
    reason = workspace.plan(selector="half", budget=share - 1e-5).reason
    cost, budget = re.findall(r"[\d.]+%", reason)
    assert cost != budget
    assert float(cost[:-1]) == pytest.approx(100 * share, abs=1e-3)


@pytest.mark.parametrize(("allowed", "boundary"), [(0, 0), (2, 2), (3, 3), (6, 6)])
def test_what_the_budget_pays_for_is_trained(workspace, allowed, boundary):
    share = workspace.plan().frontier[allowed].flops_share
    plan = workspace.plan(selector="affordable", budget=share)
    assert plan.boundary == boundary
    assert f"pays for all layers above {boundary}" in plan.reason
    assert plan.boundaries["affordable"].scores == [point.flops_share for point in plan.frontier]
    assert workspace.plan(selector="affordable").boundary == 0  # the whole budget


def test_a_budget_that_nothing_fits_is_refused_with_what_is_allowed(workspace):
    for selector in ("salf", "affordable"):
        with pytest.raises(UserError, match=r"plan\.budget = 0\.01: .* allowed here: 0\.\d+ to 1"):
            workspace.plan(selector=selector, budget=0.01)


def test_gains_without_any_layer_are_refused(workspace):
    header = workspace.gains.read_text().splitlines()[0]
    workspace.gains.write_text(header + "\n")
    with pytest.raises(UserError, match="no layer has an observed gain"):
        workspace.plan()


def test_the_certainty_names_a_layer_that_wins_more_often(workspace):
    text = workspace.gains.read_text().replace(",0.2,False", ",0.48,False", 1)
    workspace.gains.write_text(text)
    assert workspace.plan().certainty.words == "unsure: layer 5 wins 43% of resamples, layer 4 48%"
