"""Direct feedback alignment: a negative control, with which nobody should train.

Launay et al. 2020 (arXiv 2006.12878, "macro"), judged at scale by Filipovich et al. 2022 (arXiv 2210.14593). The error
e is the loss's gradient at the last layer's output, [M, hidden], before the final norm. Every trained layer gets, in
the place of the gradient of its output, e·B at the answer rows and 0 elsewhere; B ~ U[-1, 1)/√hidden is fixed and the
same for all layers. Inside a layer gradients are back-propagation's; norm and head get their true ones.

The authors' code stops gradients between layers. Here each layer's is replaced on its way, which gives the same
numbers, also with recomputed layers, and saves no FLOPs. Their layers norm after the sum and have no final norm.
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from salf.engine.batches import Batch
from salf.engine.training.step import Job, Loss, backward
from salf.settings import Dfa


class DirectFeedback:
    """Gradient: the error, sent straight to every trained layer."""

    def __init__(self, job: Job) -> None:
        model, self.settings = job.trainable.model, job.settings.dfa
        self.layers = model.layers[job.trainable.scope.boundary :]
        self.feedback: Tensor | None = None
        if self.settings.feedback == "random":
            width = job.costs.shape.hidden
            drawn = torch.rand(width, width, generator=torch.Generator().manual_seed(job.seed))
            self.feedback = ((2 * drawn - 1) / width**0.5).to(model.device)

    def __call__(self, loss: Loss, parts: Sequence[Batch]) -> Tensor:
        """See :data:`salf.engine.training.step.Gradient`."""
        total = torch.zeros(())
        for part in parts:
            feedback = _OfPart(part, self.settings, self.feedback)
            hooks = [layer.register_forward_hook(_replacing(feedback.below)) for layer in self.layers[:-1]]
            hooks += [layer.register_forward_hook(_replacing(feedback.at_last)) for layer in self.layers[-1:]]
            try:
                total = total + backward(loss, [part])
            finally:
                for hook in hooks:
                    hook.remove()
        return total


class _OfPart:
    """The gradients that layers get in a part's back-propagation, which comes to the last layer first."""

    def __init__(self, part: Batch, settings: Dfa, feedback: Tensor | None) -> None:
        self.part, self.settings, self.feedback = part, settings, feedback
        self.error = torch.empty(0)  # [M, hidden]

    @cached_property
    def signal(self) -> Tensor:
        """What is sent, [M, hidden], or its mean for every example, [B, hidden]."""
        sent = self.error if self.feedback is None else self.error @ self.feedback.to(self.error)
        if self.settings.spread == "none":
            return sent
        answers = self.part.rows.bincount()  # [B]
        return sent.new_zeros(len(answers), sent.shape[1]).index_add_(0, self.part.rows, sent) / answers[:, None]

    def at_last(self, gradient: Tensor) -> Tensor:
        """In the place of the last layer's [1, M, hidden], which is the error."""
        self.error = gradient[0]
        if self.settings.last == "exact":
            return gradient
        return (self.signal if self.settings.spread == "none" else self.signal[self.part.rows])[None]

    def below(self, gradient: Tensor) -> Tensor:
        """In the place of another layer's [1, P + N, hidden]: P rows of the shared prefix, N own ones."""
        sent = torch.zeros_like(gradient)
        own = sent[0, sent.shape[1] - len(self.part.ids) :]  # [N, hidden]
        if self.settings.spread == "none":
            own[self.part.answers] = self.signal
        else:
            own += self.signal.repeat_interleave(torch.tensor(self.part.lengths, device=own.device), dim=0)
        return sent


class _Replaced(torch.autograd.Function):
    """States as they are, whose gradient is replaced."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, replacement: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.replacement = replacement
        return states.view_as(states)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return ctx.replacement(gradients[0]), None


def _replacing(replacement: Callable[[Tensor], Tensor]) -> Callable[[nn.Module, Any, Any], Any]:
    """A layer's forward hook; some layers return their states as the first of a tuple."""

    def hook(_layer: nn.Module, _inputs: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (_Replaced.apply(output[0], replacement), *output[1:])
        return _Replaced.apply(output, replacement)

    return hook
