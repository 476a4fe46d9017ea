"""One optimizer step: a batch in parts, over processes and one after the other, as if it were in one piece.

The loss is the mean over the answer tokens of the whole batch. Every part adds its tokens' losses,
divided by the tokens of *all* parts, and its gradients; so nothing depends on how the batch was cut
but the order of the sums (float32: to about 1e-6 of the gradients' size).
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from salf.engine.answers import Start, training_logits
from salf.engine.batches import Batch
from salf.engine.runtime import Runtime
from salf.engine.training.processes import ALONE, Processes
from salf.engine.training.trainable import Trainable
from salf.settings import Finetune


def cut(index: Sequence[int], parts: int) -> list[list[int]]:
    """A batch's examples in at most so many parts, none empty; alike in size and, sorted by length, in tokens."""
    return [list(index[part::parts]) for part in range(min(parts, len(index)))]


class Stepper:
    """Takes optimizer steps.

    Attributes:
        optimizer: AdamW over the trained parameters alone.
    """

    def __init__(
        self,
        trainable: Trainable,
        runtime: Runtime,
        start: Start,
        params: Finetune,
        seed: int,
        processes: Processes = ALONE,
    ) -> None:
        """Train ``trainable`` on states that begin at ``start``; ``seed``: of dropout, where there is any."""
        self.trainable, self.runtime, self.start, self.params = trainable, runtime, start, params
        self.seed, self.processes = seed, processes
        self.optimizer = _optimizer(trainable.parameters, params.weight_decay)
        self._interval = -1  # of the layers drawn
        self._gradients = self._joined_gradients()

    def take(self, parts: Sequence[Batch], rate: float, number: int) -> float:
        """Step ``number`` (from 0) with this learning rate; returns the batch's loss, nats per answer token.

        Args:
            parts: the whole batch; every process computes its share of them.
            rate: learning rate.
            number: decides, with the seed, what dropout drops: a resumed run drops the same.

        Raises:
            ProcessLostError: another process is gone.
        """
        self._draw(number)
        _seed_dropout(self.seed, number, self.processes.rank)
        tokens = sum(len(part.targets) for part in parts)
        device, loss = self.runtime.device, torch.zeros((), device=self.runtime.device)
        for part in self.processes.share(parts):
            loss += self._backward(part.to(device), tokens)
        if self._gradients is not None:
            self.processes.add_up(self._gradients)
        nn.utils.clip_grad_norm_(self.trainable.parameters, self.params.clip_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=self._gradients is None)
        return float(self.processes.add_up(loss))

    def _draw(self, number: int) -> None:
        """Let the layers of this step's interval train; one that begins, begins without moments of AdamW for them."""
        draws = self.trainable.draws
        if draws is None or draws.interval(number) == self._interval:
            return
        self._interval = draws.interval(number)
        if draws.begins(number):
            for parameter in self.trainable.model.layers.parameters():
                self.optimizer.state.pop(parameter, None)
        self.trainable.let_train(draws.at(number))
        self._gradients = self._joined_gradients()

    def _joined_gradients(self) -> Tensor | None:
        """The gradients of what trains now in one vector, where several processes add them up."""
        if self.processes.count == 1:
            return None
        return _as_one([parameter for parameter in self.trainable.parameters if parameter.requires_grad])

    def _backward(self, part: Batch, tokens: int) -> Tensor:
        """Add a part's gradients; returns its share of the loss."""
        with self.runtime.autocast():
            logits = training_logits(
                self.trainable.model, self.start, part, recompute=self.params.gradient_checkpointing
            )
        loss = nn.functional.cross_entropy(logits.float(), part.targets, reduction="sum") / tokens
        loss.backward()
        return loss.detach()


def _optimizer(parameters: Sequence[nn.Parameter], weight_decay: float) -> torch.optim.AdamW:
    """AdamW over the trained parameters alone; decay for matrices, none for norms and biases."""
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], fused=True)


def _as_one(parameters: Sequence[nn.Parameter]) -> Tensor:
    """One vector that all gradients are parts of, so that one sum over the processes does for all."""
    whole = torch.zeros(sum(p.numel() for p in parameters), device=parameters[0].device, dtype=parameters[0].dtype)
    for parameter, part in zip(parameters, whole.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = part.view_as(parameter)
    return whole


def _seed_dropout(seed: int, number: int, rank: int) -> None:
    torch.manual_seed(int(np.random.SeedSequence([abs(seed), number, rank]).generate_state(1, np.uint64)[0] >> 1))
