"""Signals of the stored weights: relative gradient norms, and signal-to-noise ratios.

**Relative gradient norms.** Lee et al. 2023 (Surgical Fine-Tuning, arXiv 2210.11466), §4 (Auto-RGN): a layer's
gradient norm over the norm of its parameters, ‖g‖/‖θ‖. Here the gradient is that of the sample's mean loss, in one
pass before any training (ours).

**Signal-to-noise ratio**, of weights alone. Hartford et al. 2024 (Spectrum, arXiv 2406.06623), §3: singular values
above the Marchenko-Pastur edge are signal, the others noise, and a matrix scores the ratio of their sums divided by
its largest singular value; scale and edge as in the authors' program. A layer's value is the mean over its matrices of
the score over the mean score of their kind (ours).
"""

from collections import defaultdict
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from salf.engine.answers import Embeddings, training_logits
from salf.engine.batches import inference_batches
from salf.engine.progress import progress
from salf.errors import UserError
from stages.signals.sample import Sample

_NORMAL_QUARTILES: Final = 1.349  # interquartile range of a normal distribution of standard deviation 1


def gradient_norm(sample: Sample) -> tuple[NDArray[np.float64]]:
    """‖g‖/‖θ‖ of the layers 1..L, [L]; the model is left without gradients."""
    model, split = sample.model, sample.split
    answers = sum(len(example.answer_ids) for example in split.examples)
    model.layers.requires_grad_(True)
    start = Embeddings.after(model, split.prefix)
    with progress("gradients", len(split), "examples") as advance:
        for picks in inference_batches(split.lengths, sample.params.batch_tokens):
            batch = split.batch(picks).to(model.device)
            with sample.runtime.autocast():
                logits = training_logits(model, start, batch)  # [M, V] of M answer tokens
            loss = nn.functional.cross_entropy(logits.float(), batch.targets, reduction="sum") / answers
            loss.backward()
            advance(len(picks), "")
    norms = np.array([_relative(layer) for layer in model.layers])
    model.layers.requires_grad_(False)
    model.network.zero_grad(set_to_none=True)
    if not np.isfinite(norms).all():
        where = int(np.flatnonzero(~np.isfinite(norms))[0]) + 1
        raise UserError(
            f"signals.kinds: grad-norm: the gradient of layer {where} is not a number; set device.dtype to float32"
        )
    return (norms,)


def _relative(layer: nn.Module) -> float:
    total, parameters = nn.utils.get_total_norm, list(layer.parameters())
    gradients = [parameter.grad.double() for parameter in parameters if parameter.grad is not None]
    return float(total(gradients) / total([parameter.detach().double() for parameter in parameters]))


def spectrum(sample: Sample) -> tuple[NDArray[np.float64]]:
    """Relative signal-to-noise ratio of the layers 1..L, [L]."""
    depth = sample.model.depth
    by_kind: dict[str, list[float]] = defaultdict(lambda: [float("nan")] * depth)
    for index, layer in enumerate(sample.model.layers):
        for kind, weight in layer.named_parameters():
            if weight.ndim > 1 and min(weight.shape[-2:]) > 1:
                by_kind[kind][index] = _mean_ratio(weight)
    scores = np.array(list(by_kind.values())).reshape(-1, depth)  # [kinds, L]
    scores = scores[np.isfinite(scores).any(axis=1)]
    scores = scores[np.nanmean(scores, axis=1) > 0]  # a kind without any signal tells no layer from another
    relative = scores / np.nanmean(scores, axis=1, keepdims=True)
    if without := np.flatnonzero(~np.isfinite(relative).any(axis=0)).tolist():
        raise UserError(f"signals.kinds: spectrum: layer {without[0] + 1} has no weight matrix with signal and noise")
    return (np.nanmean(relative, axis=0),)


def signal_to_noise(values: NDArray[np.float64], shape: tuple[int, int]) -> float:
    """Spectrum's score of a matrix [m, n] by its singular values; NaN where none of them is noise."""
    low, high = np.quantile(values, [0.25, 0.75])
    edge = (high - low) / _NORMAL_QUARTILES * (1 + np.sqrt(min(shape) / max(shape)))
    noise = values[values <= edge].sum()
    return float(values[values > edge].sum() / noise / values.max()) if noise > 0 else float("nan")


def _mean_ratio(weight: Tensor) -> float:
    """The score of a matrix, or the mean score of a stack of matrices (a mixture's experts)."""
    stack = weight.detach().reshape(-1, *weight.shape[-2:])
    shape = (stack.shape[1], stack.shape[2])
    values = [torch.linalg.svdvals(matrix.float()).double().cpu().numpy() for matrix in stack]
    return float(np.mean([signal_to_noise(each, shape) for each in values]))
