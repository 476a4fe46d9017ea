"""As much training as the budget pays for.

Training above boundary k includes training above k+1: with enough data and steps it can do no worse. So where nothing
is known of the task but the price, the boundary is the shallowest that ``plan.budget`` pays for. What it predicts of a
boundary is what it costs.
"""

from stages.common.params import Plan
from stages.plan.evidence import Evidence
from stages.plan.frontier import within_budget
from stages.plan.selectors.choice import Choice


def affordable(evidence: Evidence, params: Plan) -> Choice:
    """Freeze as few layers as ``plan.budget`` allows.

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
