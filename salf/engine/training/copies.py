"""Copies of the trained weights, from which a run ends with others than its last: ``finetune.keep``."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from salf.settings import AVERAGES, Keep


class Copies:
    """The best look's weights, and averages over the last third of all steps, as far as they are asked for.

    ``mean`` weighs all steps alike. ``ema`` of n steps is an exponential average with the factor 2/(n+1) for the newest
    step, whose weights' centre is that of the mean; weights sum to 1 from the first step on (pandas calls this
    ``ewm(span=n, adjust=True)``). Averages are float32 and take no forward pass.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], keep: Sequence[Keep], steps: int) -> None:
        self.parameters, self.keep = parameters, keep
        self.window = max(1, round(steps / 3))  # steps that are averaged
        self.before = steps - self.window
        self.held: dict[str, list[Tensor]] = {}  # float32 for averages, otherwise as trained

    def hold(self, name: Keep) -> None:
        """Copy the weights as they are now."""
        self.held[name] = [parameter.detach().clone() for parameter in self.parameters]

    @torch.no_grad()
    def average(self, step: int) -> None:
        """Take the weights after ``step``, from 1, into the averages."""
        number = step - self.before
        if number < 1:
            return
        newest = 2 / (self.window + 1)
        shares = {"mean": 1 / number, "ema": newest / (1 - (1 - newest) ** number)}
        for name in [name for name in self.keep if name in AVERAGES]:
            held = self.held.setdefault(name, [torch.zeros_like(p, dtype=torch.float32) for p in self.parameters])
            for average, parameter in zip(held, self.parameters, strict=True):
                average.lerp_(parameter.float(), shares[name])

    @torch.no_grad()
    def put(self, name: Keep) -> None:
        """Put what is held under ``name`` in the place of the weights."""
        for parameter, held in zip(self.parameters, self.held[name], strict=True):
            parameter.copy_(held)
