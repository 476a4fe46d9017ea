"""Deviation and loss of latent states: pure functions of tensors (DESIGN §2)."""

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor, nn

_HEAD_ROWS: Final = 256  # states read off at a time: bounds the logits held at once


def deviations(states: Tensor, targets: Tensor) -> Tensor:
    """δ = 1 − cos(state, target), in [0, 2].

    Args:
        states: latent states, [..., N, H], normed or raw.
        targets: the bases they are measured against, [N, H] or [..., N, H].

    Returns:
        [..., N] in float32.
    """
    return 1 - nn.functional.cosine_similarity(states.float(), targets.float(), dim=-1)


def losses(read: Callable[[Tensor], Tensor], states: Tensor, tokens: Tensor) -> Tensor:
    """ℓ = −log softmax(read(state))_token in nats.

    Args:
        read: normed states to logits: the LM head, with its bias, soft cap or scale where it has one.
        states: latent states as the head reads them (normed), [N, H].
        tokens: answer tokens, [N].

    Returns:
        [N] in float32.
    """
    parts = [
        nn.functional.cross_entropy(read(some).float(), wanted, reduction="none")
        for some, wanted in zip(states.split(_HEAD_ROWS), tokens.split(_HEAD_ROWS), strict=True)
    ]
    return torch.cat(parts)


def virtual_targets(inputs: Tensor, outputs: Tensor, shares: Tensor) -> Tensor:
    """The points ``shares`` = k/L of the way from the input-side basis to the output-side basis, [K, N, H].

    The virtual transition of the paper's first version. The input-side basis is the embedding row
    of the token at the position that predicts, [N, H]; the output-side basis is s_y, [N, H]; shares: [K, 1, 1].
    """
    return torch.lerp(inputs.float(), outputs.float(), shares)
