"""Measures a latent state: deviation from a semantic basis, and loss.

**Basis** (the authors' earlier paper, Gu et al., arXiv 2401.16184, §3.1): the latent vector that means exactly one
token. At the output side s_y = W⁺(e_y − b), the least-squares solution of W·s + b = e_y for the LM head W [V, H] with
bias b. A well-conditioned tall head solves the normal equations (WᵀW)s = W_y − Wᵀb by one Cholesky factorisation in
float64. If squaring the condition number would cost more than half of float64's digits, or the head is wide (V < H) or
rank-deficient, singular values decide, with the tolerance of ``numpy.linalg.pinv(rtol=max(V, H)·eps)`` and the eps of
the type that W is stored in, float32's for 16 bits: what rounding to that type put there is noise.

**With the final norm** (``trace.basis: head-and-norm``, the authors' later public code). The norm is n(h) = g ⊙ ĥ + c
with ĥ the normalised state, so the logits are W·diag(g)·ĥ + W·c + b: the basis is pinv(W·diag(g))·(e_y − W·c − b),
and ĥ is what it is compared with. A tied head is the embedding matrix, and is folded like any other.
"""

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, Self

import torch
from torch import Tensor, nn

_ROWS: Final = 8192  # rows of the head converted to float64 at a time
_TOKENS: Final = 4096  # bases solved at a time
_WORST_CONDITION: Final = 1e12  # of WᵀW, for the normal equations
_HEAD_ROWS: Final = 256  # states read off at a time: bounds the logits held at once


def deviations(states: Tensor, targets: Tensor) -> Tensor:
    """δ = 1 − cos(state, target), in [0, 2], [..., N] in float32 (abstract: deviation of transition traces).

    States [..., N, H] are normed (ours) or raw; targets are the bases [N, H] or [..., N, H].
    """
    return 1 - nn.functional.cosine_similarity(states.float(), targets.float(), dim=-1)


def losses(read: Callable[[Tensor], Tensor], states: Tensor, tokens: Tensor) -> Tensor:
    """ℓ = −log softmax(read(state))_token in nats, [N] in float32 (abstract: loss of transition traces).

    ``read`` turns normed states [N, H] into logits: the LM head, with its bias, soft cap or scale if it has one.
    """
    parts = [
        nn.functional.cross_entropy(read(some).float(), wanted, reduction="none")
        for some, wanted in zip(states.split(_HEAD_ROWS), tokens.split(_HEAD_ROWS), strict=True)
    ]
    return torch.cat(parts)


class Affine(NamedTuple):
    """The affine part of a final norm: gain g [H] and shift c [H]."""

    gain: Tensor
    shift: Tensor

    @classmethod
    def of(cls, norm: Callable[[Tensor], Tensor], like: Tensor) -> Self:
        """Read both off the norm: RMSNorm and LayerNorm keep a vector of ±1 in turn, whose mean is 0 and variance 1.

        So it holds whether there is a weight (Gemma's counts from one) and a bias; H is even, ``like`` is W [V, H].
        """
        signs = torch.ones(like.shape[1], device=like.device)
        signs[1::2] = -1
        plus, minus = (norm(vector).float() for vector in (signs, -signs))
        return cls((plus - minus) / 2 * signs, (plus + minus) / 2)

    def folded(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The head's W·diag(g) [V, H] and b + W·c [V]."""
        if not self.shift.any():
            return weight * self.gain, bias
        more = weight.float() @ self.shift
        return weight * self.gain, more if bias is None else more + bias

    def undone(self, normed: Tensor) -> Tensor:
        """The normalised states ĥ [..., H] of normed ones; zero where the gain is."""
        return torch.where(self.gain == 0, 0.0, (normed.float() - self.shift) / self.gain)


def semantic_bases(weight: Tensor, bias: Tensor | None, tokens: Sequence[int]) -> Tensor:
    """Solve for the bases of n tokens, [n, H] in float64, by the LM head's W [V, H] and b [V] (the earlier paper).

    They are on the head's device, or on the CPU where that device has no float64.
    """
    if weight.device.type == "mps":
        weight, bias = weight.cpu(), None if bias is None else bias.cpu()
    weight = weight.detach()
    index = torch.tensor(list(tokens), device=weight.device)
    factor = _factor(weight) if weight.shape[0] >= weight.shape[1] else None
    if factor is None:
        return _by_singular_values(weight, bias, index)
    shift = weight.new_zeros(weight.shape[1], dtype=torch.float64)  # Wᵀb, [H]
    if bias is not None:
        for rows, part in zip(weight.split(_ROWS), bias.detach().split(_ROWS), strict=True):
            shift += rows.double().T @ part.double()
    solved = torch.empty(len(index), weight.shape[1], dtype=torch.float64, device=weight.device)
    for some, place in zip(index.split(_TOKENS), solved.split(_TOKENS), strict=True):
        place.copy_(torch.cholesky_solve((weight[some].double() - shift).T, factor).T)
    return solved


def _factor(weight: Tensor) -> Tensor | None:
    """The lower Cholesky factor of WᵀW, [H, H]; ``None`` if the normal equations would lose too much."""
    gram = weight.new_zeros(weight.shape[1], weight.shape[1], dtype=torch.float64)
    for block in weight.split(_ROWS):
        rows = block.double()
        gram.addmm_(rows.T, rows)
    values = torch.linalg.eigvalsh(gram)  # ascending
    return torch.linalg.cholesky(gram) if values[0] * _WORST_CONDITION > values[-1] else None


def _by_singular_values(weight: Tensor, bias: Tensor | None, index: Tensor) -> Tensor:
    """W⁺(e_y − b) = V Σ⁺ (Uᵀe_y − Uᵀb), rank-revealing: [n, H]."""
    matrix = weight.double()
    if matrix.shape[0] > matrix.shape[1]:
        orthogonal, triangle = torch.linalg.qr(matrix)
        inner, values, right = torch.linalg.svd(triangle, full_matrices=False)
        left = orthogonal @ inner
    else:
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    # By the eps of 16 bits, max(V, H)·eps would exceed 1: all singular values would be dropped.
    eps = min(torch.finfo(weight.dtype).eps, torch.finfo(torch.float32).eps)
    tolerance = max(matrix.shape) * eps * values[0]
    inverse = torch.where(values > tolerance, values.reciprocal(), torch.zeros_like(values))
    targets = left[index]
    if bias is not None:
        targets = targets - bias.detach().double() @ left
    return (targets * inverse) @ right
