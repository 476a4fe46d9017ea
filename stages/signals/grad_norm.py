"""Relative gradient norms: how strongly the task pulls at every layer.

Lee et al. 2023 (Surgical Fine-Tuning, arXiv 2210.11466), §4 (Auto-RGN): a layer's gradient norm over the norm of its
parameters, ‖g‖/‖θ‖. Here the gradient is that of the sample's mean loss, in one pass before any training.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from salf.engine.answers import Embeddings, training_logits
from salf.engine.batches import Batch, Example, inference_batches
from salf.engine.models.adapter import CausalModel
from salf.engine.progress import progress
from salf.engine.runtime import Runtime
from salf.errors import UserError


def gradient_norms(
    model: CausalModel, runtime: Runtime, examples: Sequence[Example], shared: int, batch_tokens: int
) -> NDArray[np.float64]:
    """‖g‖/‖θ‖ of the layers 1..L, [L]; the model is left without gradients.

    Args:
        model: the model; embeddings, final norm and head get no gradients.
        runtime: device and precision.
        examples: they share their first ``shared`` tokens.
        shared: P.
        batch_tokens: tokens per pass; the result does not depend on it, but for rounding.

    Raises:
        UserError: a gradient is not finite.
    """
    answers = sum(len(example.answer_ids) for example in examples)
    model.layers.requires_grad_(True)
    start = Embeddings.behind(model, examples[0].prompt_ids[:shared])
    with progress("gradients", len(examples), "examples") as advance:
        for picks in inference_batches([len(example.inputs) - shared for example in examples], batch_tokens):
            batch = Batch.of(examples, picks, shared).to(model.device)
            with runtime.autocast():
                logits = training_logits(model, start, batch)
            loss = nn.functional.cross_entropy(logits.float(), batch.targets, reduction="sum") / answers
            loss.backward()
            advance(len(picks), "")
    norms = np.array([_relative(list(layer.parameters())) for layer in model.layers])
    model.layers.requires_grad_(False)
    model.network.zero_grad(set_to_none=True)
    if not np.isfinite(norms).all():
        where = int(np.flatnonzero(~np.isfinite(norms))[0]) + 1
        raise UserError(
            f"signals.kinds: grad-norm: the gradient of layer {where} is not a number; set device.dtype to float32"
        )
    return norms


def _relative(parameters: Sequence[Tensor]) -> float:
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    weights = [parameter.detach() for parameter in parameters]
    total = torch.nn.utils.get_total_norm
    return float(total([each.double() for each in gradients]) / total([each.double() for each in weights]))
