"""A boundary that was found by measuring: what the other rules' regret is counted from."""

from salf.errors import UserError
from stages.common.params import Plan
from stages.plan.evidence import Evidence
from stages.plan.selectors.choice import AbsentEvidenceError, Choice


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
