"""Relative gradient norms: train where the task pulls.

Lee et al. 2023 (Surgical Fine-Tuning, arXiv 2210.11466), §4 (Auto-RGN) scale each layer's learning rate by its
gradient's norm over its parameters'. A freeze is a rate of zero below a boundary: see ``excess``.
"""

from stages.common.params import Plan
from stages.plan.evidence import Evidence
from stages.plan.selectors.choice import Choice
from stages.plan.selectors.excess import most_excess
from stages.plan.selectors.signal import signal


def grad_norm(evidence: Evidence, _params: Plan) -> Choice:
    """Freeze where the retained share of gradient norms most exceeds the share of the cost (surgical fine-tuning)."""
    return most_excess(evidence, signal(evidence, "grad-norm", "grad-norm"), "the relative gradient norms")
