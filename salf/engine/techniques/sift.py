"""Sparse increments (SIFT; Song et al. 2024, arXiv 2312.11875): a few entries of every matrix train.

The full gradient of a matrix exists only until its chosen entries are gathered, and the optimizer holds state for these
alone. The published code (github.com/song-wx/SIFT) throws the batch away that it selects by, applies increments one
step late, never applies the last one, and decays increments instead of weights. Here the first batch trains, nothing
lags, and the entries themselves are AdamW's parameters, so that they decay.
"""

from collections.abc import Callable, Collection
from math import sqrt

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

_OBSERVED_SHARE = 0.01  # of the entries with the largest gradients, in the published premise


class Sift(Form):
    """The entries of the layers' matrices with the largest gradients in the first batch; nothing else trains."""

    def __init__(
        self, model: CausalModel, _scope: Scope, layers: Collection[int], settings: Finetune, seed: int
    ) -> None:
        model.network.requires_grad_(False)
        self.select, generator = settings.sift.select, torch.Generator().manual_seed(seed)
        self.matrices: dict[str, _Entries] = {}  # by name
        self.owners: list[tuple[nn.Module, str]] = []  # the modules that hold them, and their names there
        for number in layers:
            layer = model.layers[number - 1]
            for name, weight in list(layer.named_parameters()):
                if weight.ndim < 2:
                    continue
                at, _, own = name.rpartition(".")
                entries = _Entries(weight, settings.sift.share)
                if self.select == "random":
                    entries.choose(weight, torch.rand(weight.numel(), generator=generator).to(weight.device))
                elif self.select == "magnitude":
                    entries.choose(weight, weight)
                parametrize.register_parametrization(layer.get_submodule(at), own, entries)
                self.owners.append((layer.get_submodule(at), own))
                self.matrices[f"{model.family.layers}.{number - 1}.{name}"] = entries

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
        weights = [getattr(owner.parametrizations, own).original for owner, own in self.owners]
        for weight, entries in zip(weights, self.matrices.values(), strict=True):
            weight.grad = torch.zeros_like(weight)
            weight.requires_grad_()
            entries.values.requires_grad_(False)
        for part in job.processes.share(first):
            loss(part.to(job.runtime.device)).backward()
        largest = whole = 0.0
        for weight, entries in zip(weights, self.matrices.values(), strict=True):
            gradient = job.processes.add_up(weight.grad)
            weight.requires_grad_(False)
            weight.grad = None
            entries.choose(weight, gradient)
            entries.values.requires_grad_()
            squares = gradient.float().flatten().square()
            largest += float(squares.topk(_count(_OBSERVED_SHARE, len(squares))).values.sum())
            whole += float(squares.sum())
        cost = job.costs.step(first)
        done.flops, done.flops_before = done.flops + cost.total, done.flops_before + cost.total
        done.observed["gradient norm in the top 1% of entries"] = sqrt(largest / whole)

    @torch.no_grad()
    def fold(self) -> set[str]:
        """Leave the trained entries in their places in the matrices."""
        for owner, own in self.owners:
            getattr(owner, own)  # writes them
            parametrize.remove_parametrizations(owner, own, leave_parametrized=False)
        return set(self.matrices)


class _Entries(nn.Module):
    """The trained entries of a matrix, written into it whenever it is used."""

    index: Tensor  # their places in the flattened matrix, ascending [n]

    def __init__(self, weight: Tensor, share: float) -> None:
        super().__init__()
        count = _count(share, weight.numel())
        places = torch.int32 if weight.numel() < 2**31 else torch.int64
        self.register_buffer("index", torch.arange(count, dtype=places, device=weight.device), persistent=False)
        # A matrix of one row, which decays like the matrix that it belongs to.
        self.values = nn.Parameter(weight.detach().flatten()[:count][None].clone())

    @torch.no_grad()
    def choose(self, weight: Tensor, scores: Tensor) -> None:
        """Take the entries with the largest absolute scores; of equal ones, the first."""
        order = scores.flatten().abs().argsort(descending=True, stable=True)
        self.index.copy_(order[: len(self.index)].sort().values)
        self.values.copy_(weight.flatten()[self.index])

    def forward(self, weight: Tensor) -> Tensor:
        """The matrix."""
        written: Tensor = _Written.apply(weight, self.values, self.index)
        return written


class _Written(torch.autograd.Function):
    """A matrix after entries were written into it in place; back-propagation keeps the gradients of these alone."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, weight: Tensor, values: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        weight.data.view(-1)[index] = values[0]  # idempotent, so that a pass may run again before going backward
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, Tensor, None]:
        (index,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return gradient if ctx.needs_input_grad[0] else None, gradient.flatten()[index][None], None  # type: ignore


def _count(share: float, entries: int) -> int:
    """The entries that a share of a matrix trains: one more than the whole number below, at most all."""
    return min(entries, int(share * entries) + 1)
