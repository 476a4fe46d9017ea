"""Extrapolation: gradients are taken at a point ahead of the weights, and move the weights themselves.

Lin et al. 2020 (arXiv 2006.05720), for large batches. The point is w - factor·rate·d. ``extrap`` has three directions
d: the past step's gradient, a fresh gradient of the same batch, which costs a second pass, or noise. ``extragradient``
is the fresh one. Here AdamW moves the weights, so a gradient is divided by the root of AdamW's second moment that
contains it, corrected for its bias, as in the paper's EXTRAP-Adam. Noise is standard normal, about as large.

The paper lets each worker look ahead along its own last gradient. Here the whole batch's gradient serves all
processes, so that two processes give what one gives; with one worker both are the same.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from salf.engine.training.step import Job, decayed, seed_of


class Extrapolated(torch.optim.AdamW):
    """Update: AdamW whose loss and gradients are computed ahead of the weights, in the first ``until`` of all steps."""

    def __init__(self, job: Job, direction: str | None = None) -> None:
        super().__init__(decayed(job), fused=True)
        own, self.seed, self.alone = job.settings.extrapolation, job.seed, job.processes.count == 1
        self.direction, self.factor, self.ends = direction or own.direction, own.factor, own.until * job.steps

    @torch.no_grad()
    def step(self, closure: Callable[[], float]) -> float:  # type: ignore[override]
        """Take a step; ``closure`` computes loss and gradients at the weights in place."""
        if self.param_groups[0]["number"] >= self.ends:
            return super().step(closure)
        trained = [p for group in self.param_groups for p in group["params"] if p.requires_grad]
        kept = [p.clone() for p in trained]
        if self.direction == "fresh":
            with torch.enable_grad():
                closure()
        self._look_ahead()
        with torch.enable_grad():
            loss = closure()
        for parameter, weight in zip(trained, kept, strict=True):
            parameter.copy_(weight)
        super().step()
        for parameter in trained if self.direction == "past" else ():
            self.state[parameter]["past"] = parameter.grad.clone()
        return loss

    def _look_ahead(self) -> None:
        """Move the weights to the point ahead, and clear the gradients on the way."""
        noise = torch.Generator().manual_seed(seed_of(self.seed, self.param_groups[0]["number"]))
        for group in self.param_groups:
            for parameter in (p for p in group["params"] if p.requires_grad):
                if self.direction == "noise":
                    ahead = torch.randn(parameter.shape, generator=noise).to(parameter)
                else:
                    ahead = self._scaled(parameter, group["betas"][1], group["eps"])
                parameter.sub_(ahead, alpha=self.factor * group["lr"])
        self.zero_grad(set_to_none=self.alone)  # several processes add up gradients that stay in place

    def _scaled(self, parameter: nn.Parameter, beta: float, eps: float) -> Tensor:
        """The fresh or past gradient as AdamW scales one; 0 where there is no past."""
        state = self.state.get(parameter, {})
        steps, second = int(state.get("step", 0)), state.get("exp_avg_sq", torch.zeros_like(parameter))
        gradient = state.get("past", torch.zeros_like(parameter))
        if self.direction == "fresh" and parameter.grad is not None:
            gradient, steps = parameter.grad, steps + 1
            second = beta * second + (1 - beta) * gradient.square()
        return gradient / ((second / (1 - beta ** max(steps, 1))).sqrt() + eps)


extragradient = partial(Extrapolated, direction="fresh")
