"""Block influence in the gain's place: the paper's rule without the answer's meaning.

Men et al. 2024 (ShortGPT, arXiv 2403.03853), §3.1: BI_k = 1 − mean over tokens of cos(h_{k−1}, h_k), how far layer k
turns the states. ShortGPT removes layers of low influence. A boundary is made of it as ``salf`` makes one of its gain:
the layer that changes most ends the frozen part. The two differ in what counts as a change alone, any turn of the
state here and a turn towards the answer there, so beside each other they tell what the semantic target is worth.
"""

from stages.common.params import Plan
from stages.plan.evidence import Evidence
from stages.plan.selectors.choice import Choice
from stages.plan.selectors.signal import MEASURED_ONCE, signal


def block_influence(evidence: Evidence, _params: Plan) -> Choice:
    """Freeze up to the layer of 2..L-1 that turns the states most (ShortGPT's block influence)."""
    values = signal(evidence, "block-influence", "block-influence")
    layers = range(2, evidence.layers)
    best = max(layers, key=lambda layer: (values[layer], layer))
    return Choice(
        boundary=best,
        reason=f"layer {best} has the largest block influence ({values[best]:.4g}) among layers 2 to {layers[-1]}",
        certainty=MEASURED_ONCE,
        scores=tuple(values[k] if k in layers else None for k in range(evidence.layers + 1)),
    )
