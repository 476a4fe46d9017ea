"""Selectors that see no evidence but the price: fixed depths, chance, a control, and what a budget pays for."""

import random

from salf.errors import UserError
from stages.common.params import Plan
from stages.plan.evidence import Evidence
from stages.plan.frontier import within_budget
from stages.plan.selectors.choice import AbsentEvidenceError, Choice


def full(_evidence: Evidence, _params: Plan) -> Choice:
    """Freeze nothing."""
    return Choice(0, "full fine-tuning: nothing is frozen")


def none(evidence: Evidence, _params: Plan) -> Choice:
    """Freeze every layer: only the final norm trains, and an untied head."""
    return Choice(evidence.layers, "every layer is frozen: only what follows the last layer trains")


def half(evidence: Evidence, _params: Plan) -> Choice:
    """Freeze the lower half of the layers, whatever the task."""
    return Choice(boundary=evidence.layers // 2, reason="the lower half of the layers is frozen")


def last_n(evidence: Evidence, params: Plan) -> Choice:
    """Train the last ``plan.last_n`` layers."""
    trained = min(params.last_n, evidence.layers - 1)
    cut = "" if trained == params.last_n else f" (plan.last_n is {params.last_n}; all layers would be full fine-tuning)"
    return Choice(evidence.layers - trained, f"the last {trained} layers train{cut}")


def first_n(_evidence: Evidence, params: Plan) -> Choice:
    """Train the first ``plan.first_n`` layers, or as many as the plan, and the embeddings: a control, and no plan.

    Its boundary is 0: gradients pass through every layer on their way to the first ones.

    Raises:
        UserError: it is asked for as the plan's own rule, and a plan trains the last layers.
    """
    if params.selector == "first-n":
        raise UserError(
            "params.yaml: plan.selector = first-n: a plan freezes the first layers, and this control the last; "
            "compare it as a method: add first-n to compare.methods"
        )
    trained = (
        "the first layers, as many as the plan trains," if params.first_n is None else f"layers 1 to {params.first_n}"
    )
    return Choice(0, f"{trained} and the embeddings train: gradients pass through all layers")


def draw(evidence: Evidence, params: Plan) -> Choice:
    """Draw a boundary uniformly from 1..L-1."""
    boundary = random.Random(params.seed).randint(1, evidence.layers - 1)
    return Choice(boundary, f"drawn at random from 1..{evidence.layers - 1} with seed {params.seed}")


def affordable(evidence: Evidence, params: Plan) -> Choice:
    """Freeze as few layers as ``plan.budget`` allows.

    Training above boundary k includes training above k+1: with enough data and steps it can do no worse. So where
    nothing is known of the task but the price, the boundary is the shallowest that ``plan.budget`` pays for. What it
    predicts of a boundary is what it costs.

    Raises:
        UserError: not even training nothing but the final norm is within the budget.
    """
    boundary = within_budget(0, evidence.frontier, params.budget)
    share = evidence.frontier[boundary].flops_share
    return Choice(
        boundary=boundary,
        reason=f"a budget of {params.budget:.0%} of full fine-tuning's operations pays for all layers above {boundary} "
        f"({share:.0%})",
        scores=tuple(point.flops_share for point in evidence.frontier),
    )


def oracle(evidence: Evidence, params: Plan) -> Choice:
    """Take the boundary ``plan.oracle``, which was measured to be the best.

    Raises:
        AbsentEvidenceError: none is given.
        UserError: the model has no such boundary.
    """
    if params.oracle is None:
        raise AbsentEvidenceError("set plan.oracle to the boundary that was measured to be the best")
    if params.oracle > evidence.layers:
        raise UserError(f"params.yaml: plan.oracle = {params.oracle}: allowed for this model: 0 to {evidence.layers}")
    return Choice(params.oracle, f"plan.oracle says that boundary {params.oracle} was measured to be the best")
