"""PACE: consistency of adapters under multiplicative noise (Ni et al., NeurIPS 2024, arXiv 2409.17137).

An adapter's output Δh becomes Z ⊙ Δh. Z ~ N(1, σ_l²) is drawn per example and output feature: the same for all tokens
of an example, new for every pass. With n layers above boundary k, σ_l = σ (1 − (l − k − 1)/n) falls with depth. Rows of
a shared prefix in a packed pass belong to no example and have no noise. Validation and the saved model have none.

The term ‖f₁ − f₂‖² of two passes' logits is summed over outputs. Paper and code count one answer per example; here it
is a mean over answer tokens, like cross-entropy. The authors' code (github.com/MaxwellYaoNi/PACE) differs from the
paper and from this module twice. It spares a vision transformer's lowest block the noise. Its fast variant starts with
logits of 0, which pulls the first epoch's to 0; here an example has no term before it has been read once.
"""

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from salf.cost import Flops, head_forward_flops
from salf.engine.answers import answer_states
from salf.engine.batches import Batch
from salf.engine.models.causal_model import in_eval_mode
from salf.engine.rules import answer_outputs
from salf.engine.training.loop import READ_TOKENS
from salf.engine.training.step import CrossEntropy, Job, Passes, seed_of
from salf.errors import UserError

# Of the pass that runs, or is recomputed: multiplies some columns of all adapters' outputs, [..., columns].
_noise: ContextVar[Callable[[slice, Tensor], Tensor] | None] = ContextVar("noise", default=None)


class Pace(CrossEntropy):
    """Objective ``pace``: two passes with independent noise and the same dropout.

    Cross-entropy of the first, and ``strength`` times the distance between both; with ``strength`` 0 one pass with
    noise. The curve also gets the shift from the base: KL(model ‖ base) over the whole vocabulary at the answers of the
    validation split.
    """

    def __init__(self, passes: Passes) -> None:
        """Read the validation split as the base does: adapters are 0 when a run begins."""
        super().__init__(passes)
        job, self.settings = self.job, self.job.settings.pace
        given = job.training.examples, self.settings.over, job.costs.shape.vocabulary
        self.outputs, self.width = answer_outputs(job.rule, *given)
        self.scales = torch.cat(list(_hooked(job, self.settings.sigma)))  # σ of every adapter's outputs, [outputs]
        self.base, self.answers = self._read(), sum(len(one.answer_ids) for one in job.validation.examples)
        self.look_flops = job.costs.reading(job.validation) + head_forward_flops(job.costs.shape, self.answers)

    def begin(self, parts: Sequence[Batch], number: int) -> Sequence[Batch]:
        """Begin a step."""
        self.number = number
        self.sums = torch.zeros(2, device=self.job.runtime.device)  # cross-entropy, answer tokens
        self.twice = self.settings.strength > 0
        return parts

    def __call__(self, part: Batch) -> Tensor:
        """Two passes, or one."""
        if not self.twice:
            return self.passes.summed(partial(self.cross_entropy, part), self.noisy(part))
        with torch.random.fork_rng([part.ids.device] if part.ids.is_cuda else []):
            first = self.noisy(part)
        return self.passes.summed(partial(self._of_both, part), first, self.noisy(part, 2))

    def _of_both(self, part: Batch, first: Tensor, second: Tensor, rows: slice) -> Tensor:
        apart = (first.float() - second.float())[:, self.outputs].square().sum()
        return self.cross_entropy(part, first, rows) + self.settings.strength * apart

    def cross_entropy(self, part: Batch, logits: Tensor, rows: slice) -> Tensor:
        """Cross-entropy, summed over some rows and counted."""
        loss = nn.functional.cross_entropy(logits.float(), part.targets[rows], reduction="sum")
        self.sums += torch.stack([loss.detach(), torch.full_like(loss, len(logits))])
        return loss

    def noisy(self, part: Batch, which: int = 1) -> Tensor:
        """States at answer positions after one of the step's passes, with noise, [M, hidden]."""
        token = _noise.set(self._drawn(part, which))
        try:
            return self.passes.states(part)
        finally:
            _noise.reset(token)

    def _drawn(self, part: Batch, which: int) -> Callable[[slice, Tensor], Tensor]:
        """The noise of a pass; an example's depends on nothing but seed, step and pass."""
        drawn = torch.zeros(len(part.lengths) + 1, len(self.scales))  # [B + 1, outputs]; the last row is for no example
        for row, index in zip(drawn, part.index.tolist(), strict=False):
            generator = torch.Generator().manual_seed(seed_of(self.job.seed, self.number, which, index))
            torch.randn(len(row), generator=generator, out=row)
        noise = (1 + self.scales * drawn).to(part.ids.device)
        examples = torch.arange(len(part.lengths), device=part.ids.device)
        if self.job.trainable.model.family.packed:  # adapters read all rows, or the last layer's at answer positions
            own = examples.repeat_interleave(torch.tensor(part.lengths, device=part.ids.device))
            readers = [torch.cat([own.new_full((part.shared,), -1), own]), part.rows]
        else:  # a padded grid, in which every example has a copy of the prefix
            readers = [examples.repeat_interleave(part.shared + max(part.lengths))]
        owners = {len(rows): rows for rows in readers}

        def multiply(columns: slice, output: Tensor) -> Tensor:
            rows = owners.get(output.shape[:-1].numel())
            if rows is None:
                raise UserError("pace: adapters of this model read some tokens alone, which no example owns")
            return output * noise[:, columns].to(output.dtype)[rows].view_as(output)

        return multiply

    def end(self, _: float) -> float:
        """The cross-entropy that was counted."""
        loss, tokens = self.job.processes.add_up(self.sums).tolist()
        return float(loss / tokens)

    @torch.no_grad()
    def look(self) -> dict[str, float]:
        """Compare with the base."""
        shift = torch.zeros((), device=self.job.runtime.device)
        for now, base in zip(self._read(), self.base, strict=True):  # head and final norm are the base's
            shift += self.passes.summed(_divergence, now, base)
        return {"shift": float(self.job.processes.add_up(shift)) / self.answers}

    @torch.no_grad()
    def _read(self) -> list[Tensor]:
        """States at the answers of a share of the validation split, [M, hidden] by pass."""
        model, split, share = self.job.trainable.model, self.job.validation, self.job.processes.share
        own = split.subset(share(range(len(split))))
        with in_eval_mode(model.network):
            return [states for _, _, states in answer_states(model, self.job.runtime, own, READ_TOKENS)]


def _hooked(job: Job, sigma: float) -> Any:
    """Let noise reach all adapters; yield σ of each one's outputs."""
    scope, width = job.trainable.scope, 0
    for layer in scope.layers:
        scale = sigma * (scope.depth - layer + 1) / (scope.depth - scope.boundary)
        for name, part in job.trainable.model.layers[layer - 1].named_modules():
            if name.rpartition(".")[0].endswith("lora_B"):  # PEFT's second factor of an adapter
                part.register_forward_hook(partial(_multiplied, slice(width, width := width + part.out_features)))
                yield torch.full((part.out_features,), scale)


def _multiplied(columns: slice, _module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
    noise = _noise.get()
    return output if noise is None else noise(columns, output)


def _divergence(now: Tensor, base: Tensor, _: slice) -> Tensor:
    """KL(now ‖ base) of logits [m, vocabulary], summed, in nats."""
    now, base = (logits.float().log_softmax(-1) for logits in (now, base))
    return nn.functional.kl_div(base, now, log_target=True, reduction="sum")


class PaceLazy(Pace):
    """Objective ``pace-lazy``: every ``every``-th step is PACE on half of the batch, drawn by seed and step.

    The others take one noisy pass over all of it, and cross-entropy alone.
    """

    def begin(self, parts: Sequence[Batch], number: int) -> Sequence[Batch]:
        """Begin a step, with half of the examples (rounded up) in the parts where they were."""
        super().begin(parts, number)
        self.twice, self.parts = self.twice and number % self.settings.every == 0, parts
        if self.twice:
            batch = sorted(index for part in parts for index in part.index.tolist())
            rng = np.random.default_rng(seed_of(self.job.seed, number))
            half = set(rng.choice(batch, (len(batch) + 1) // 2, replace=False).tolist())
            kept = [[index for index in part.index.tolist() if index in half] for part in parts]
            self.parts = [self.job.training.batch(index) for index in kept if index]
        return self.parts

    def step_flops(self, _: Sequence[Batch], number: int) -> Flops:
        """Those of the examples that were read."""
        costs = self.job.costs
        technique = replace(costs.technique, passes=2) if self.twice else costs.technique
        return replace(costs, technique=technique).step(self.parts, number, self.job.steps)


class PaceFast(Pace):
    """Objective ``pace-fast``: one noisy pass, held to the logits of the last pass over the same example."""

    def __init__(self, passes: Passes) -> None:
        """Make room for the logits of all answer tokens."""
        super().__init__(passes)
        tokens = sum(len(example.answer_ids) for example in self.job.training.examples)
        self.held["logits"] = torch.full((tokens, self.width), torch.nan)  # unknown

    def begin(self, parts: Sequence[Batch], number: int) -> Sequence[Batch]:
        """Begin a step."""
        self.places = torch.cat([self.job.training.answer_places(part) for part in parts])
        self.fresh = torch.zeros_like(self.held["logits"])
        return super().begin(parts, number)

    def __call__(self, part: Batch) -> Tensor:
        """One pass."""
        of = partial(self._of_one, part, self.job.training.answer_places(part))
        return self.passes.summed(of, self.noisy(part))

    def _of_one(self, part: Batch, places: Tensor, logits: Tensor, rows: slice) -> Tensor:
        now, before = logits.float()[:, self.outputs], self.held["logits"][places[rows]].to(logits.device)
        self.fresh[places[rows]] = now.detach().cpu()
        apart = (now - before)[before.isfinite().all(1)].square().sum()
        return self.cross_entropy(part, logits, rows) + self.settings.strength * apart

    def end(self, loss: float) -> float:
        """Remember the step's logits."""
        fresh = self.job.processes.add_up(self.fresh[self.places].to(self.job.runtime.device))
        self.held["logits"][self.places] = fresh.cpu()
        return super().end(loss)
