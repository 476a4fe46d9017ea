"""The reversed freeze, a control: it tells whether it matters *which* layers train, or only how many."""

from salf.errors import UserError
from stages.common.params import Plan
from stages.plan.evidence import Evidence
from stages.plan.selectors.choice import Choice


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
