"""Selectors that read what stage ``signals`` measured."""

import math
from collections.abc import Sequence
from typing import Final

from salf.evidence import Evidence
from stages.common.params import Plan
from stages.plan.choice import AbsentEvidenceError, Choice, certainty

_MEASURED_ONCE: Final = certainty("measured on one sample, without an interval")
_LEAST_ERROR: Final = 1e-3


def block_influence(evidence: Evidence, _params: Plan) -> Choice:
    """Freeze up to the layer of 2..L-1 that turns the states most.

    Men et al. 2024 (ShortGPT, arXiv 2403.03853), §3.1: BI_k = 1 − mean over tokens of cos(h_{k−1}, h_k). ShortGPT
    removes layers of low influence; making a boundary of it is ours.
    """
    values = evidence.signals["block-influence"]
    layers = range(2, evidence.layers)
    best = max(layers, key=lambda layer: (values[layer], layer))
    return Choice(
        best,
        f"layer {best} has the largest block influence ({values[best]:.4g}) among layers 2 to {layers[-1]}",
        _MEASURED_ONCE,
        scores=tuple(values[k] if k in layers else None for k in range(evidence.layers + 1)),
    )


def variability(evidence: Evidence, _params: Plan) -> Choice:
    """Freeze up to the space of 1..L-1 that separates the classes best (lowest hidden-state variability ν).

    Xie et al. 2022 (arXiv 2210.10041) put a classifier on that space and drop the layers above. A causal language
    model answers with its own head and needs those layers, so here they train.
    """
    values = evidence.signals["variability"]
    known = [space for space in range(1, evidence.layers) if math.isfinite(values[space])]
    if not known:
        raise AbsentEvidenceError("no space separates the classes; raise signals.sample in params.yaml")
    best = min(known, key=lambda space: (values[space], -space))
    return Choice(
        best,
        f"at space {best} classes spread least relative to their distance (variability {values[best]:.4g})",
        _MEASURED_ONCE,
        scores=tuple(-value if math.isfinite(value) else None for value in values),
    )


def probe(evidence: Evidence, _params: Plan) -> Choice:
    """Freeze up to the first space of 1..L-1 whose prompt states predict the task as well as the best space's (ours).

    Where what a ridge classifier reads off the mean of the prompt's states no longer grows with depth, the layers above
    bring it to the position that answers. "As well": within one standard error of the paired difference over held-out
    examples (Breiman et al. 1984, §3.4.3). A boundary's score is what the answer's position does not hold yet.
    """
    answer, pooled, errors = (evidence.signals[name] for name in ("probe", "probe-pooled", "probe-error"))
    short = [max(pooled) - known for known in pooled]
    inner = range(1, evidence.layers)
    best = next((space for space in inner if short[space] <= errors[space]), min(inner, key=short.__getitem__))
    words_alone = "; so do the embeddings: the words alone decide, and this says little about depth"
    low, high = short[best] - errors[best], short[best] + errors[best]
    return Choice(
        best,
        f"space {best} is the first whose prompt states separate the classes as well as the best space's: they "
        f"classify {pooled[best]:.0%} of the held-out examples correctly, the best {max(pooled):.0%}"
        f"{words_alone if short[0] <= errors[0] else ''}",
        certainty(f"one standard error: the best space is {low:+.1%} to {high:+.1%} ahead", short[best], low, high),
        scores=tuple(held - arrived for held, arrived in zip(pooled, answer, strict=True)),
    )


def arrival(evidence: Evidence, _params: Plan) -> Choice:
    """Freeze up to the layer of 2..L-1 that removes most errors of a classifier at the answer's position (ours).

    The gain of a layer is the logarithm of the share of errors that it removes. Errors count as at least a thousandth,
    less than a sample of some hundred examples resolves.
    """
    errors = [max(1 - known, _LEAST_ERROR) for known in evidence.signals["probe"]]
    layers = range(2, evidence.layers)
    gains = {layer: math.log(errors[layer - 1] / errors[layer]) for layer in layers}
    best = max(layers, key=lambda layer: (gains[layer], layer))
    return Choice(
        best,
        f"layer {best} removes the largest share of a classifier's errors at the answer's position: "
        f"{errors[best - 1]:.0%} before it, {errors[best]:.0%} after it",
        _MEASURED_ONCE,
        scores=tuple(gains.get(k) for k in range(evidence.layers + 1)),
    )


def grad_norm(evidence: Evidence, _params: Plan) -> Choice:
    """Freeze where the retained share of gradient norms most exceeds the share of the cost.

    Lee et al. 2023 (Surgical Fine-Tuning, arXiv 2210.11466), §4 (Auto-RGN) scale each layer's learning rate by its
    gradient's norm over its parameters'. A freeze is a rate of zero below a boundary; the balance with cost is ours.
    """
    return _most_excess(evidence, evidence.signals["grad-norm"], "the relative gradient norms")


def spectrum(evidence: Evidence, _params: Plan) -> Choice:
    """Freeze where the retained signal-to-noise ratio of the weights most exceeds the share of the cost.

    Hartford et al. 2024 (Spectrum, arXiv 2406.06623) train the matrices with the best ratio, wherever they are. A
    boundary keeps those above it; the balance with cost is ours.
    """
    return _most_excess(evidence, evidence.signals["spectrum"], "the weights' signal-to-noise ratios")


def _most_excess(evidence: Evidence, weights: Sequence[float], what: str) -> Choice:
    """The boundary of 0..L-1 whose share of the layers' weights exceeds its share of the cost most.

    Training above boundary k keeps the share Σ_{l>k} w_l / Σ_l w_l. The boundary is where the cumulative curve lies
    farthest above its diagonal (a CUSUM test's statistic, Youden's J). If the weights are even over depth, or early,
    nothing exceeds and the choice is full fine-tuning. Weights [L+1] are non-negative; index 0 is not read.
    """
    total = sum(weights[1:])
    kept = [sum(weights[boundary + 1 :]) / total if total else 0.0 for boundary in range(evidence.layers + 1)]
    scores = tuple(keeps - point.flops_share for keeps, point in zip(kept, evidence.frontier, strict=True))
    best = max(range(evidence.layers), key=lambda boundary: (scores[boundary], boundary))
    cost = evidence.frontier[best].flops_share
    return Choice(
        best,
        f"the layers above {best} hold {kept[best]:.0%} of {what} for {cost:.0%} of the cost",
        _MEASURED_ONCE,
        scores=scores,
    )
