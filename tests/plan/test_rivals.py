"""The rival rules on hand-built evidence: six layers, boundaries 0..6."""

from itertools import product
from typing import get_args

import numpy as np
import pytest

from salf.errors import UserError
from salf.selectors import GainName, Quantity
from tests.plan.conftest import DEVIATION

# By space 0..6: what the prompt knows grows up to space 4, within an error up to 3; the answer's position follows.
PROBE = {
    "probe": [0.2, 0.4, 0.5, 0.55, 0.69, 0.72, 0.9],
    "probe_pooled": [0.6, 0.7, 0.72, 0.78, 0.8, 0.7, 0.75],
    "probe_error": [0.05, 0.04, 0.03, 0.03, 0.0, 0.03, 0.03],
}
RULES = ["block-influence", "variability", "arrival", "probe", "grad-norm", "spectrum", "oracle"]


def chosen(plan, name):
    return plan.boundaries[name]


def test_a_rule_without_evidence_is_left_out_and_the_plan_says_what_it_takes(workspace):
    plan = workspace.plan()
    ours = {f"salf-{quantity}-{gain}" for quantity, gain in product(get_args(Quantity), get_args(GainName))}
    assert set(plan.absent) - ours == {*RULES, "pilot"}
    assert not set(plan.absent) & set(plan.boundaries)
    assert plan.absent["grad-norm"].startswith(
        "its signal was not measured; add grad-norm to signals.kinds in params.yaml (where it is there already, "
    )
    assert "set plan.oracle" in plan.absent["oracle"]


@pytest.mark.parametrize("rule", RULES)
def test_asking_for_a_rule_without_evidence_is_one_line_that_names_the_parameter(workspace, rule):
    kind = "probe" if rule == "arrival" else rule
    needed = "plan.oracle" if rule == "oracle" else f"add {kind} to signals.kinds"
    with pytest.raises(UserError, match=f"plan.selector = {rule}: .*{needed}") as fault:
        workspace.plan(selector=rule)
    assert "\n" not in str(fault.value)


def test_the_paper_s_rule_scores_the_boundaries_that_it_may_choose(workspace):
    plan = workspace.plan()
    assert chosen(plan, "salf").scores == [None, None, -0.01, 0.02, 0.06, 0.12, None]
    assert chosen(plan, "full").scores is None


def test_block_influence_ends_the_freeze_at_the_layer_that_turns_the_states_most(workspace):
    workspace.rewrite_signals(block_influence=[0.9, 0.2, 0.4, 0.1, 0.4, 0.8])  # layers 1 and 6 may not be chosen
    plan = workspace.plan(selector="block-influence")
    assert plan.boundary == 5  # of the equals at 3 and 5 the deeper, as the paper's rule does
    assert chosen(plan, "block-influence").scores == [None, None, 0.2, 0.4, 0.1, 0.4, None]
    assert "without an interval" in plan.certainty.words


def test_arrival_is_the_layer_that_takes_away_most_of_the_errors(workspace):
    """Layer 5 halves what is wrong; layer 1, which takes more, may not be chosen, nor may the last."""
    workspace.rewrite_signals(**{**PROBE, "probe": [0.0, 0.5, 0.6, 0.58, 0.6, 0.8, 1.0]})
    plan = workspace.plan(selector="arrival")
    assert plan.boundary == 5
    scores = plan.boundaries["arrival"].scores
    np.testing.assert_allclose(scores[2:6], np.log([0.5 / 0.4, 0.4 / 0.42, 0.42 / 0.4, 0.4 / 0.2]), rtol=1e-5)
    assert [scores[0], scores[1], scores[6]] == [None, None, None]
    assert "40% before it, 20% after it" in plan.reason


def test_arrival_counts_no_errors_as_few(workspace):
    workspace.rewrite_signals(**{**PROBE, "probe": [0.0, 0.5, 0.9, 1.0, 1.0, 1.0, 1.0]})
    plan = workspace.plan(selector="arrival")
    assert plan.boundary == 3
    assert plan.boundaries["arrival"].scores[4:6] == [0.0, 0.0]


def test_variability_freezes_up_to_the_space_that_tells_classes_apart_best(workspace):
    workspace.rewrite_signals(variability=[None, 9.0, 4.0, 2.0, 2.5, 3.0, 1.0])
    plan = workspace.plan(selector="variability")
    assert plan.boundary == 3  # behind space 6 no layer is left to train
    assert chosen(plan, "variability").scores == [None, -9, -4, -2, -2.5, -3, -1]


def test_variability_that_no_space_has_is_absent(workspace):
    workspace.rewrite_signals(variability=[None] * 7)
    assert "no space separates the classes" in workspace.plan().absent["variability"]


@pytest.mark.parametrize("rule", ["grad-norm", "spectrum"])
def test_weights_are_kept_where_their_share_exceeds_the_cost_s_most(workspace, rule):
    workspace.rewrite_signals(**{rule: [1.0, 1.0, 1.0, 1.0, 10.0, 6.0]})
    plan = workspace.plan(selector=rule)
    kept = np.array([20, 19, 18, 17, 16, 6, 0]) / 20
    shares = np.array([point.flops_share for point in plan.frontier])
    assert plan.boundary == 4
    np.testing.assert_allclose(chosen(plan, rule).scores, kept - shares)
    assert "the layers above 4 hold 80% of" in plan.reason


@pytest.mark.parametrize("rule", ["grad-norm", "spectrum"])
def test_weights_that_lie_early_ask_for_full_fine_tuning(workspace, rule):
    workspace.rewrite_signals(**{rule: [60.0, 20.0, 8.0, 4.0, 2.0, 1.0]})
    assert workspace.plan(selector=rule).boundary == 0


def test_a_probe_freezes_up_to_where_the_prompt_knows_as_much_as_anywhere(workspace):
    workspace.rewrite_signals(**PROBE)
    plan = workspace.plan(selector="probe")
    assert plan.boundary == 3
    assert (plan.certainty.value, plan.certainty.low, plan.certainty.high) == (0.02, -0.01, 0.05)
    ahead = np.array(PROBE["probe_pooled"]) - PROBE["probe"]
    np.testing.assert_allclose(chosen(plan, "probe").scores, ahead)


def test_a_task_that_the_words_alone_tell_is_said_to_be_one(workspace):
    workspace.rewrite_signals(**{**PROBE, "probe_pooled": [0.8, 0.79, 0.78, 0.79, 0.8, 0.8, 0.8]})
    plan = workspace.plan(selector="probe")
    assert plan.boundary == 1
    assert "this says little about depth" in plan.reason
    workspace.rewrite_signals(**PROBE)
    assert "little about depth" not in workspace.plan(selector="probe").reason


def test_where_only_the_ends_know_best_a_probe_takes_the_inner_space_that_comes_nearest(workspace):
    workspace.rewrite_signals(**{**PROBE, "probe_pooled": [0.95, 0.7, 0.72, 0.71, 0.8, 0.7, 0.95]})
    assert workspace.plan(selector="probe").boundary == 4


def test_a_budget_buys_the_largest_predicted_reduction(workspace):
    costs = [point.flops_share for point in workspace.plan().frontier]
    for boundary in (2, 3, 5):
        plan = workspace.plan(selector="budget", budget=costs[boundary])
        assert plan.boundary == boundary
    # The law's curve where it reaches, from space 3 on, else the mean.
    fitted = [*DEVIATION[:3], *(x + 0.001 for x in DEVIATION[3:])]
    expected = [fitted[max(k, 1)] - fitted[6] for k in range(7)]
    np.testing.assert_allclose(chosen(plan, "budget").scores, expected, atol=1e-12)
    assert workspace.plan(selector="budget").boundary == 2  # the largest of all: space 2 lies above space 1


@pytest.mark.parametrize(("tolerance", "boundary"), [(0.0, 2), (1.0, 3), (4.0, 4), (100.0, 5)])
def test_a_tolerance_takes_the_deepest_boundary_that_is_predicted_to_be_as_good(workspace, tolerance, boundary):
    """Half-widths are 2 % of the mean, about 0.02; full's curve starts at 0.97."""
    plan = workspace.plan(selector="tolerance", tolerance=tolerance)
    assert plan.boundary == boundary
    assert f"within {tolerance:g} half-widths" in plan.reason


def test_the_oracle_is_what_was_measured(workspace):
    plan = workspace.plan(selector="oracle", oracle=3)
    assert plan.boundary == 3
    with pytest.raises(UserError, match=r"plan\.oracle = 7: allowed for this model: 0 to 6"):
        workspace.plan(oracle=7)


def test_the_reversed_freeze_is_a_control_and_no_plan(workspace):
    plan = workspace.plan(first_n=2)
    assert plan.boundary_of("first-n") == 0
    assert "layers 1 to 2" in chosen(plan, "first-n").reason
    assert "as many as the plan trains" in chosen(workspace.plan(first_n=None), "first-n").reason
    with pytest.raises(UserError, match=r"plan\.selector = first-n: .*compare\.methods"):
        workspace.plan(selector="first-n")
