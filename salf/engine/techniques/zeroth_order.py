"""Zeroth-order training: two forward passes per step along a random direction; no graph, no gradients, no moments.

Of the loss F at the trained parameters θ, a direction D and a radius ε, a step computes the slope along D (Spall 1992),
c = (F(θ + εD) − F(θ − εD)) / 2ε, both on the same batch and without dropout, and moves θ against c·D, whose expectation
is the gradient. Until then no weight changes: modules compute as if theirs were moved.

- ``mezo`` (Malladi et al. 2023, arXiv 2305.17333), the baseline: D is normal.
- ``lozo`` (Chen et al. 2025, arXiv 2410.07698): of a matrix [m, n], D = U Vᵀ with normal U [m, r] drawn for every step
  and V [n, r] drawn for every ``interval`` steps, and W moves by −η (c/r · U Vᵀ + decay · W). All else gets a normal D.
- ``lozo-m`` keeps the mean N ← β N + (1 − β) c U and moves W by −η N Vᵀ/r; a new V projects it, N (V_oldᵀ V_new)/n.

The authors' code (github.com/optsuite/LOZO, commit 66bd55f) differs from this, the paper's algorithm: without 1/r, its
rates are r times the paper's; where V is new, it moves along another U than it tried; N begins without (1 − β), and
with an ``interval`` of 1 is never projected; weights moved in place and back keep rounding errors. Here seed, step and
parameter decide a direction: processes and resumed runs draw the same one, and none is held.

The learning rate is constant, whatever the schedule. A step's loss is the mean of its two.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from salf.engine.models.causal_model import in_eval_mode
from salf.engine.training.step import Gradient, Job, decayed, seed_of
from salf.errors import UserError

_SIDE_PATHS: Final = (nn.Linear, Conv1D, nn.Embedding)  # no subclasses: they may do more than multiply


def forward_only(_job: Job) -> Gradient:
    """Gradient: none, the loss alone."""
    return lambda loss, parts: sum(map(loss, parts), torch.zeros(()))


@dataclass(frozen=True)
class Directions:
    """The directions of one step, drawn again wherever they are needed."""

    places: dict[nn.Parameter, int]  # every trained parameter, and its place among them
    seed: int
    number: int  # of the step, from 0
    rank: int  # 0: dense
    interval: int = 1  # steps that a V lasts

    def rank_of(self, parameter: Tensor) -> int:
        """r, at most a matrix's smaller side; 0 where the direction is dense."""
        return min(self.rank, *parameter.shape) if parameter.ndim == 2 else 0

    def left(self, parameter: nn.Parameter) -> Tensor:
        """U [m, r], or all of a dense direction."""
        rank = self.rank_of(parameter)
        return self._normal(parameter, (len(parameter), rank) if rank else parameter.shape, 0, self.number)

    def right(self, parameter: nn.Parameter, *, before: bool = False) -> Tensor:
        """V [n, r]; ``before``: that of the interval before."""
        shape = (parameter.shape[1], self.rank_of(parameter))
        return self._normal(parameter, shape, 1, self.number // self.interval - before)

    def whole(self, parameter: nn.Parameter) -> Tensor:
        """The direction in the parameter's shape, for the caller to change."""
        left = self.left(parameter)
        return left @ self.right(parameter).T if self.rank_of(parameter) else left

    def _normal(self, parameter: nn.Parameter, shape: Sequence[int], *key: int) -> Tensor:
        seed = seed_of(self.seed, self.places[parameter], *key)
        generator = torch.Generator(parameter.device).manual_seed(seed)
        return torch.randn(shape, generator=generator, device=parameter.device, dtype=parameter.dtype)


@contextmanager
def moved(network: nn.Module, directions: Directions, by: float) -> Iterator[None]:
    """Let a network compute as if its parameters were moved by ``by`` times their directions; none of them changes.

    A linear map takes a side path of low rank, y = x Wᵀ + by · (x V) Uᵀ. Any other module has moved copies of its own
    parameters while it runs.
    """
    with ExitStack() as stack:
        for module in network.modules():
            own = {name: p for name, p in module.named_parameters(recurse=False) if p in directions.places}
            if own:
                before, after = _hooks(module, own, directions, by)
                stack.callback(module.register_forward_pre_hook(before).remove)
                stack.callback(module.register_forward_hook(after, always_call=True).remove)
        yield


def _hooks(module: nn.Module, own: dict[str, nn.Parameter], directions: Directions, by: float) -> tuple[Any, Any]:
    """What moves a module's ``own`` parameters before its forward pass, and puts them back after it."""
    aside = own.pop("weight", None) if directions.rank and type(module) in _SIDE_PATHS else None

    def before(module: nn.Module, _given: tuple[Tensor, ...]) -> None:
        copies = {name: directions.whole(parameter).mul_(by).add_(parameter) for name, parameter in own.items()}
        vars(module)["_parameters"].update(copies)

    def after(module: nn.Module, given: tuple[Tensor, ...], output: Tensor | None) -> None:
        vars(module)["_parameters"].update(own)
        if aside is not None and output is not None:  # None: an exception left the pass
            output.add_(_side_path(module, given[0], directions.left(aside), directions.right(aside)), alpha=by)

    return before, after


def _side_path(module: nn.Module, given: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """What a weight of U Vᵀ, [m, r] by [r, n], makes of a module's input."""
    if isinstance(module, nn.Embedding):
        return nn.functional.embedding(given, left) @ right.T
    if isinstance(module, Conv1D):  # its weight is that of nn.Linear, transposed
        left, right = right, left
    return given @ right @ left.T


class ZerothOrder(torch.optim.Optimizer):
    """Update: moves the parameters along a step's directions by the losses on both sides of them."""

    def __init__(self, job: Job, momentum: float = 0.0) -> None:
        """``momentum`` is β; the word's entry declares the directions' rank."""
        self.network, self.rate, self.seed, self.momentum = job.trainable.model.network, job.rate, job.seed, momentum
        self.rank, self.settings = job.costs.technique.directions, job.settings.lozo
        self.places = {parameter: place for place, parameter in enumerate(job.trainable.parameters)}
        widest = max((min(p.shape) for p in self.places if p.ndim == 2), default=self.rank)
        if self.rank > widest:
            raise UserError(f"finetune.lozo.rank = {self.rank}: no trained matrix has more than rank {widest}")
        super().__init__(decayed(job), {})

    @torch.no_grad()
    def step(self, closure: Callable[[], float]) -> float:  # type: ignore[override]
        """Have ``closure`` compute the loss on both sides, and move the parameters; return the mean of the losses."""
        number, radius = self.param_groups[0]["number"], self.settings.radius
        directions = Directions(self.places, self.seed, number, self.rank, self.settings.interval)
        losses = []
        for side in (radius, -radius):
            with in_eval_mode(self.network), moved(self.network, directions, side):
                losses.append(closure())
        slope = (losses[0] - losses[1]) / (2 * radius)
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.mul_(1 - self.rate * group["weight_decay"])
                self._move(parameter, directions, slope)
        return sum(losses) / 2

    def _move(self, parameter: nn.Parameter, directions: Directions, slope: float) -> None:
        rank, left = directions.rank_of(parameter), directions.left(parameter).mul_(slope)
        if self.momentum:
            left = self._mean(parameter, directions, left)
        if rank:
            parameter.addmm_(left, directions.right(parameter).T, alpha=-self.rate / rank)
        else:
            parameter.sub_(left, alpha=self.rate)

    def _mean(self, parameter: nn.Parameter, directions: Directions, new: Tensor) -> Tensor:
        """N [m, r], the mean of c·U; of c·D where the direction is dense."""
        mean = self.state[parameter].setdefault("mean", torch.zeros_like(new))
        if directions.rank_of(parameter) and directions.number % directions.interval == 0 < directions.number:
            right = directions.right(parameter)
            mean.copy_(mean @ (directions.right(parameter, before=True).T @ right) / len(right))
        return mean.mul_(self.momentum).add_(new, alpha=1 - self.momentum)


def with_momentum(job: Job) -> ZerothOrder:
    """Update: the same by a mean over steps."""
    return ZerothOrder(job, job.settings.lozo.momentum)


def gradient_shares(model: nn.Module, ranks: Sequence[int] = (1, 2, 4, 8)) -> dict[str, list[float]]:
    """Return the share of each matrix's squared gradient norm that is in its largest singular values.

    Call it after `loss.backward()` on a batch. LOZO and LoRA rest on shares near 1.

    Args:
        model: a network; matrices without a gradient are left out.
        ranks: numbers of singular values, 1 or more.

    Returns:
        Shares for `ranks`, by the parameter's name.
    """
    gradients = {name: p.grad for name, p in model.named_parameters() if p.ndim == 2 and p.grad is not None}
    squares = {name: torch.linalg.svdvals(one.float()).square() for name, one in gradients.items()}  # [min(m, n)]
    return {name: [float(one[:rank].sum() / one.sum()) for rank in ranks] for name, one in squares.items()}
