"""Direct feedback alignment: a negative control, not for real training.

Launay et al. 2020 (arXiv 2006.12878, "macro"), judged at scale by Filipovich et al. 2022 (arXiv 2210.14593). The error
e is the loss's gradient at the last layer's output, [M, hidden], before the final norm. Every trained layer gets, in
the place of the gradient of its output, e·B at the answer rows and 0 elsewhere; B ~ U[-1, 1)/√hidden is fixed and the
same for all layers. Inside a layer gradients are back-propagation's; norm and head get their true ones.

The authors' code stops gradients between layers. Here each layer's is replaced on its way, which gives the same
numbers, also with recomputed layers, and saves no FLOPs. Their layers norm after the sum and have no final norm.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from salf.engine.batches import Batch
from salf.engine.training.step import Job, Loss, backward


class DirectFeedback:
    """Gradient: the error, sent straight to every trained layer."""

    def __init__(self, job: Job) -> None:
        model, self.settings, width = job.trainable.model, job.settings.dfa, job.costs.shape.hidden
        self.layers = model.layers[job.trainable.scope.boundary :]
        drawn = torch.rand(width, width, generator=torch.Generator().manual_seed(job.seed))
        self.feedback = ((2 * drawn - 1) / width**0.5).to(model.device) if self.settings.feedback == "random" else None

    def __call__(self, loss: Loss, parts: Sequence[Batch]) -> Tensor:
        """See :data:`salf.engine.training.step.Gradient`."""
        replacements = [self._below] * (len(self.layers) - 1) + [self._at_last] * bool(self.layers)
        total = torch.zeros(())
        with ExitStack() as stack:
            for layer, replacement in zip(self.layers, replacements, strict=True):
                stack.enter_context(layer.register_forward_hook(partial(_replace, replacement)))
            for self.part in parts:
                total = total + backward(loss, [self.part])
        return total

    def _at_last(self, gradient: Tensor) -> Tensor:
        """In the place of the last layer's [1, M, hidden], which is the error: back-propagation comes here first."""
        error = gradient[0]
        exact = self.settings.last == "exact"
        if not exact or len(self.layers) > 1:
            self.sent = error if self.feedback is None else error @ self.feedback.to(error)  # [M, hidden]
            if self.settings.spread == "example":
                answers = self.part.rows.bincount()[:, None]  # [B, 1]
                sums = error.new_zeros(len(answers), error.shape[1]).index_add_(0, self.part.rows, self.sent)
                self.sent = (sums / answers)[self.part.rows]
        return gradient if exact else self.sent[None]

    def _below(self, gradient: Tensor) -> Tensor:
        """In the place of another layer's [1, P + N, hidden]: P rows of the shared prefix, N own ones."""
        replaced = torch.zeros_like(gradient)
        own = replaced[0, replaced.shape[1] - len(self.part.ids) :]  # [N, hidden]
        if self.settings.spread == "example":
            lengths = torch.tensor(self.part.lengths, device=own.device)
            firsts = self.part.rows.bincount().cumsum(0) - 1  # an answer row of each example, [B]
            own += self.sent[firsts].repeat_interleave(lengths, dim=0)
        else:
            own[self.part.answers] = self.sent
        return replaced


def _replace(replacement: Callable[[Tensor], Tensor], _layer: nn.Module, _inputs: Any, output: Any) -> None:
    """Be a layer's forward hook; some layers return their states as the first of a tuple."""
    states = output[0] if isinstance(output, tuple) else output
    if states.requires_grad:
        states.register_hook(replacement)
