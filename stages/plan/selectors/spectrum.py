"""Signal in the weights: train the layers whose matrices hold most of it.

Hartford et al. 2024 (Spectrum, arXiv 2406.06623) train the quarter or half of each kind of matrix with the best
signal-to-noise ratio, wherever they lie. A boundary keeps what lies above it: see ``excess``.
"""

from stages.common.params import Plan
from stages.plan.evidence import Evidence
from stages.plan.selectors.choice import Choice
from stages.plan.selectors.excess import most_excess
from stages.plan.selectors.signal import signal


def spectrum(evidence: Evidence, _params: Plan) -> Choice:
    """Freeze where the retained signal-to-noise ratio of the weights most exceeds the share of the cost (Spectrum)."""
    return most_excess(evidence, signal(evidence, "spectrum", "spectrum"), "the weights' signal-to-noise ratios")
