"""Sparse increments (SIFT; Song et al. 2024, arXiv 2312.11875): a few entries of every matrix train.

The full gradient of a matrix exists only until its chosen entries are gathered, and the optimizer holds state for these
alone. The published code (github.com/song-wx/SIFT) throws the batch away that it selects by, applies increments one
step late, never applies the last one, and decays increments instead of weights. Here the first batch trains, nothing
lags, and the entries themselves are AdamW's parameters, so that they decay.
"""

from collections.abc import Callable
from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from salf.engine.batches import Batch
from salf.engine.models.adapter import CausalModel
from salf.engine.training.checkpoint import Training
from salf.engine.training.costs import epoch_batches
from salf.engine.training.forms import Form
from salf.engine.training.scope import Scope
from salf.engine.training.step import Job
from salf.settings import Finetune


class Sift(Form):
    """The entries of the layers' matrices with the largest gradients in the first batch; nothing else trains."""

    def __init__(self, model: CausalModel, scope: Scope, settings: Finetune, seed: int) -> None:
        self.network, self.select = model.network.requires_grad_(False), settings.sift.select
        self.matrices: dict[str, _Entries] = {}  # by their names
        generator = torch.Generator().manual_seed(seed)
        paths = tuple(f"{model.family.layers}.{number - 1}." for number in scope.layers)
        for name, weight in list(model.network.named_parameters()):
            if not name.startswith(paths) or weight.ndim < 2:
                continue
            self.matrices[name] = entries = _Entries(weight, settings.sift.share)
            if self.select == "random":
                entries.choose(torch.rand(weight.numel(), generator=generator).to(weight.device))
            elif self.select == "magnitude":
                entries.choose(weight)
            parametrize.register_parametrization(*self._place(name), entries)

    def decided(self) -> dict[str, Tensor]:
        """The chosen entries of each matrix."""
        return {name: entries.index for name, entries in self.matrices.items()}

    def begin(self, job: Job, loss: Callable[[Batch], Tensor], done: Training) -> None:
        """Choose by the gradients of the whole first batch, all parts and processes summed, which it then trains on.

        One whole gradient of the matrices exists until then; the optimizer has no state yet.
        """
        if self.select != "gradient":
            return
        first = next(next(epoch_batches(job.training, job.settings, job.seed, job.processes.count)))
        for entries in self.matrices.values():
            entries.values.requires_grad_(False)
            entries.weight.requires_grad_().grad = torch.zeros_like(entries.weight)
        for part in job.processes.share(first):
            loss(part.to(job.runtime.device)).backward()
        largest = whole = 0.0
        for entries in self.matrices.values():
            gradient = job.processes.add_up(entries.weight.grad)
            entries.weight.requires_grad_(False).grad = None
            entries.choose(gradient)
            entries.values.requires_grad_()
            squares = gradient.float().flatten().square()
            largest += float(squares.topk(max(1, len(squares) // 100)).values.sum())
            whole += float(squares.sum())
        cost = job.costs.step(first).total
        done.flops, done.flops_before = done.flops + cost, done.flops_before + cost
        done.observed["gradient norm in the top 1% of entries"] = sqrt(largest / whole)

    def fold(self) -> set[str]:
        """Leave the trained entries in their places in the matrices."""
        for name, entries in self.matrices.items():
            entries.forward(entries.weight)
            parametrize.remove_parametrizations(*self._place(name), leave_parametrized=False)
        return set(self.matrices)

    def _place(self, name: str) -> tuple[nn.Module, str]:
        """The module that holds a matrix, and the matrix's name there."""
        path, _, own = name.rpartition(".")
        return self.network.get_submodule(path), own


class _Entries(nn.Module):
    """The trained entries of a matrix, written into it whenever it is used."""

    index: Tensor  # their places in the flattened matrix, ascending [n]
    weight: Any  # the matrix, which is no parameter of this module's own

    def __init__(self, weight: nn.Parameter, share: float) -> None:
        super().__init__()
        vars(self)["weight"] = weight
        count = min(weight.numel(), int(share * weight.numel()) + 1)
        places = torch.int32 if weight.numel() < 2**31 else torch.int64
        self.register_buffer("index", torch.arange(count, dtype=places, device=weight.device), persistent=False)
        # A matrix of one row, which decays like the matrix that it belongs to.
        self.values = nn.Parameter(weight.detach().flatten()[:count][None].clone())

    @torch.no_grad()
    def choose(self, scores: Tensor) -> None:
        """Take the entries with the largest absolute scores; of equal ones, the first."""
        order = scores.flatten().abs().argsort(descending=True, stable=True)
        self.index.copy_(order[: len(self.index)].sort().values)
        self.values.copy_(self.weight.flatten()[self.index])

    def forward(self, weight: Tensor) -> Tensor:
        """The matrix."""
        return _Written.apply(weight, self.values, self.index)


class _Written(torch.autograd.Function):
    """A matrix after entries were written into it in place; back-propagation keeps the gradients of these alone."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, values: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        weight.data.view(-1)[index] = values[0]  # idempotent, so that a pass may run again before going backward
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (index,), (whole,) = ctx.saved_tensors, gradients
        return whole if ctx.needs_input_grad[0] else None, whole.flatten()[index][None], None
