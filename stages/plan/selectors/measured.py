"""Selectors that read a signal of the stage ``signals``."""

import math
from typing import Final

from salf.files import significant
from salf.plan import Certainty
from stages.common.params import Plan
from stages.plan.evidence import Evidence, Signal
from stages.plan.selectors.choice import MEASURED_ONCE, AbsentEvidenceError, Choice, signal

_LEAST_ERROR: Final = 1e-3


def most_excess(evidence: Evidence, weights: Signal, what: str) -> Choice:
    """The boundary of 0..L-1 whose share of the weights of layers 1..L exceeds its share of the cost most.

    Training above boundary k keeps the share Σ_{l>k} w_l / Σ_l w_l of the layers' weights w (gradient, signal) and
    costs a share of full fine-tuning's FLOPs. The boundary is where the first exceeds the second most: the point of
    a cumulative curve that lies farthest above its diagonal (the statistic of a CUSUM test for one change, and
    Youden's J). Where the weights lie evenly over the depth, or early, nothing exceeds and full fine-tuning is what
    the rule says.

    Args:
        evidence: for the costs.
        weights: non-negative, by layer; index 0 is not read.
        what: names the weights in the reason.
    """
    total = sum(weights[1:])
    kept = [sum(weights[boundary + 1 :]) / total if total else 0.0 for boundary in range(evidence.layers + 1)]
    scores = tuple(keeps - point.flops_share for keeps, point in zip(kept, evidence.frontier, strict=True))
    best = max(range(evidence.layers), key=lambda boundary: (scores[boundary], boundary))
    cost = evidence.frontier[best].flops_share
    return Choice(
        boundary=best,
        reason=f"the layers above {best} hold {kept[best]:.0%} of {what} for {cost:.0%} of the cost",
        certainty=MEASURED_ONCE,
        scores=scores,
    )


def block_influence(evidence: Evidence, _params: Plan) -> Choice:
    """Freeze up to the layer of 2..L-1 that turns the states most (ShortGPT's block influence).

    Men et al. 2024 (ShortGPT, arXiv 2403.03853), §3.1: BI_k = 1 − mean over tokens of cos(h_{k−1}, h_k), how far
    layer k turns the states. ShortGPT removes layers of low influence. A boundary is made of it as ``salf`` makes
    one of its gain: the layer that changes most ends the frozen part. The two differ in what counts as a change
    alone, any turn of the state here and a turn towards the answer there, so beside each other they tell what the
    semantic target is worth.
    """
    values = signal(evidence, "block-influence", "block-influence")
    layers = range(2, evidence.layers)
    best = max(layers, key=lambda layer: (values[layer], layer))
    return Choice(
        boundary=best,
        reason=f"layer {best} has the largest block influence ({values[best]:.4g}) among layers 2 to {layers[-1]}",
        certainty=MEASURED_ONCE,
        scores=tuple(values[k] if k in layers else None for k in range(evidence.layers + 1)),
    )


def variability(evidence: Evidence, _params: Plan) -> Choice:
    """Freeze up to the space of 1..L-1 that separates the classes best (hidden-state variability).

    Xie et al. 2022 (arXiv 2210.10041): a space is well specialised where the states of a class spread little beside
    the distance of the classes (ν low, see ``stages/signals/variability.py``); they put a classifier on the space of
    the lowest ν and drop the layers above. A causal language model answers with its own head and needs those layers,
    so here they are what trains.

    Raises:
        AbsentEvidenceError: it was not measured, or no space tells any class from another.
    """
    values = signal(evidence, "variability", "variability")
    known = [space for space in range(1, evidence.layers) if math.isfinite(values[space])]
    if not known:
        raise AbsentEvidenceError("no space tells one class from another; raise signals.sample in params.yaml")
    best = min(known, key=lambda space: (values[space], -space))
    return Choice(
        boundary=best,
        reason=f"at space {best} classes spread least beside their distance (variability {values[best]:.4g})",
        certainty=MEASURED_ONCE,
        scores=tuple(-value if math.isfinite(value) else None for value in values),
    )


def probe(evidence: Evidence, _params: Plan) -> Choice:
    """Freeze up to the first space of 1..L-1 whose prompt states predict the task as well as the best space's.

    A ridge classifier on the mean of the prompt's states tells what the sequence holds of the task at a space,
    wherever in the sequence it lies (``stages/signals/probe.py``). Where that no longer grows with depth, the layers
    below have computed what there is; the layers above bring it to the position that answers and turn it into words,
    and that is what fine-tuning has to change. So the boundary is the first space that knows as much as the best
    one.

    "As much": within one standard error of the difference, counted over the held-out examples, which both spaces are
    asked about: the rule by which Breiman et al. (1984, §3.4.3) choose the size of a tree.

    What it predicts of a boundary is what lies in the sequence there and not yet at the position that answers: what
    the layers above can still bring.
    """
    answer, pooled, errors = (signal(evidence, name, "probe") for name in ("probe", "probe-pooled", "probe-error"))
    short = [max(pooled) - known for known in pooled]
    inner = range(1, evidence.layers)
    best = next((space for space in inner if short[space] <= errors[space]), min(inner, key=short.__getitem__))
    words_alone = "; so do the embeddings: the task needs no layer to be told, and this says little of depth"
    return Choice(
        boundary=best,
        reason=f"space {best} is the first whose prompt states know the task as well as any space's: they tell "
        f"{pooled[best]:.0%} of the held-out examples right, the best {max(pooled):.0%}"
        f"{words_alone if short[0] <= errors[0] else ''}",
        certainty=_certainty(short[best], errors[best]),
        scores=tuple(held - arrived for held, arrived in zip(pooled, answer, strict=True)),
    )


def _certainty(short: float, error: float) -> Certainty:
    low, high = short - error, short + error
    words = f"one standard error: the best space is {low:+.1%} to {high:+.1%} ahead"
    return Certainty(
        win_share=None, value=significant(short), low=significant(low), high=significant(high), words=words
    )


def arrival(evidence: Evidence, _params: Plan) -> Choice:
    """Freeze up to the layer of 2..L-1 that removes most errors of a classifier at the answer's position.

    This is the paper's selector with the task as its target. The paper freezes up to the layer that brings the
    states most of the way to the answer's word. A word is chosen late; what the word is chosen by may have been
    there long before. So the gain of a layer is taken from what a ridge classifier reads of the task off the raw
    state at the position that answers (``stages/signals/probe.py``): the share of its errors, as a logarithm, that
    the layer takes away. The layer that takes away most is where the task's information arrives at that position;
    layers above it make use of it, and those are trained.

    An error of 0 would make any gain infinite: errors count as at least a thousandth, less than a sample of some
    hundred examples tells.
    """
    errors = [max(1 - known, _LEAST_ERROR) for known in signal(evidence, "probe", "probe")]
    layers = range(2, evidence.layers)
    gains = {layer: math.log(errors[layer - 1] / errors[layer]) for layer in layers}
    best = max(layers, key=lambda layer: (gains[layer], layer))
    return Choice(
        boundary=best,
        reason=f"layer {best} takes most away from what a classifier at the answer's position gets wrong: "
        f"{errors[best - 1]:.0%} before it, {errors[best]:.0%} behind it",
        certainty=MEASURED_ONCE,
        scores=tuple(significant(gains[k]) if k in gains else None for k in range(evidence.layers + 1)),
    )


def grad_norm(evidence: Evidence, _params: Plan) -> Choice:
    """Freeze where the retained share of gradient norms most exceeds the share of the cost (surgical fine-tuning).

    Lee et al. 2023 (Surgical Fine-Tuning, arXiv 2210.11466), §4 (Auto-RGN) scale each layer's learning rate by its
    gradient's norm over its parameters'. A freeze is a rate of zero below a boundary: see :func:`most_excess`.
    """
    return most_excess(evidence, signal(evidence, "grad-norm", "grad-norm"), "the relative gradient norms")


def spectrum(evidence: Evidence, _params: Plan) -> Choice:
    """Freeze where the retained signal-to-noise ratio of the weights most exceeds the share of the cost (Spectrum).

    Hartford et al. 2024 (Spectrum, arXiv 2406.06623) train the quarter or half of each kind of matrix with the best
    signal-to-noise ratio, wherever they lie. A boundary keeps what lies above it: see :func:`most_excess`.
    """
    return most_excess(evidence, signal(evidence, "spectrum", "spectrum"), "the weights' signal-to-noise ratios")
