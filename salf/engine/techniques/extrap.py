"""Extrapolation: gradients are taken at a point ahead of the weights, and move the weights themselves.

Lin et al. 2020 (arXiv 2006.05720), for large batches. The point is w - factor·rate·d. ``extrap`` has three directions
d: the past step's gradient, a fresh gradient of the same batch, which costs a second pass, or noise. ``extragradient``
is the fresh one. Here AdamW moves the weights, so a gradient is divided by the root of AdamW's second moment that
contains it, corrected for its bias, as in the paper's EXTRAP-Adam. Noise is standard normal, about as large.

The paper lets each worker look ahead along its own last gradient. Here the whole batch's gradient serves all
processes, so that two processes give what one gives; with one worker both are the same.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from salf.engine.training.step import Job, decayed


def extrap(job: Job) -> torch.optim.Optimizer:
    """Update: AdamW that looks ahead along ``finetune.extrapolation.direction``."""
    return Extrapolated(job, job.settings.extrapolation.direction)


def extragradient(job: Job) -> torch.optim.Optimizer:
    """Update: AdamW that looks ahead along a fresh gradient."""
    return Extrapolated(job, "fresh")


class Extrapolated(torch.optim.AdamW):
    """AdamW whose loss and gradients are computed ahead of the weights, in the first ``until`` of all steps."""

    def __init__(self, job: Job, direction: str) -> None:
        super().__init__(decayed(job), fused=True)
        self.direction, self.factor, self.seed = direction, job.settings.extrapolation.factor, job.seed
        self.ends = job.settings.extrapolation.until * job.steps

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
        if self.direction == "past":
            for parameter in trained:
                self.state[parameter]["past"] = _gradient(parameter).clone()
        return loss

    def _look_ahead(self) -> None:
        """Move the weights to the point ahead, and clear the gradients on the way."""
        seeds = np.random.SeedSequence([abs(self.seed), self.param_groups[0]["number"]])
        generator = torch.Generator().manual_seed(int(seeds.generate_state(1, np.uint64)[0] >> 1))
        for group in self.param_groups:
            for parameter in (p for p in group["params"] if p.requires_grad):
                if self.direction == "noise":
                    ahead = torch.randn(parameter.shape, generator=generator).to(parameter)
                elif self.direction == "fresh" or "past" in self.state.get(parameter, {}):
                    ahead = self._scaled(parameter, group["betas"][1], group["eps"])
                else:
                    continue
                parameter.sub_(ahead, alpha=self.factor * group["lr"])
        self.zero_grad(set_to_none=False)

    def _scaled(self, parameter: nn.Parameter, beta: float, eps: float) -> Tensor:
        """The past or fresh gradient as AdamW scales one."""
        state = self.state.get(parameter, {})
        if self.direction == "past":
            gradient, second, steps = state["past"], state["exp_avg_sq"], int(state["step"])
        else:
            gradient, steps = _gradient(parameter), int(state.get("step", 0)) + 1
            second = beta * state.get("exp_avg_sq", 0) + (1 - beta) * gradient.square()
        return gradient / ((second / (1 - beta**steps)).sqrt() + eps)


def _gradient(parameter: nn.Parameter) -> Tensor:
    if parameter.grad is None:
        raise RuntimeError("a parameter that trains has no gradient")
    return parameter.grad
