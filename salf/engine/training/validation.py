"""How the model stands on the validation split, read by all processes together."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from salf.engine.answers import Reader, Start
from salf.engine.batches import Batch, Example
from salf.engine.training.processes import Processes


@dataclass(frozen=True)
class Split:
    """Examples, and where their pass begins."""

    examples: Sequence[Example]
    start: Start


@dataclass(frozen=True)
class ChosenStart:
    """The start of some of a split's examples: what they call the n-th is ``chosen[n]`` of the split."""

    whole: Start
    chosen: Tensor

    @property
    def space(self) -> int:
        """See :class:`Start`."""
        return self.whole.space

    @property
    def shared(self) -> int:
        """See :class:`Start`."""
        return self.whole.shared

    def beginning(self) -> Tensor | None:
        """See :class:`Start`."""
        return self.whole.beginning()

    def states(self, batch: Batch, *, joined: bool = False) -> Tensor:
        """See :class:`Start`."""
        return self.whole.states(replace(batch, index=self.chosen[batch.index.cpu()]), joined=joined)


def validate(reader: Reader, split: Split, processes: Processes) -> tuple[float, float | None]:
    """Mean loss per example, nats per answer token, and accuracy (``None`` for free answers); without dropout.

    Raises:
        ProcessLostError: another process is gone.
    """
    chosen = list(processes.share(range(len(split.examples))))
    examples = [split.examples[i] for i in chosen]
    with _in_eval_mode(reader.model.network):
        answers = reader.read(examples, split.start.shared, ChosenStart(split.start, torch.tensor(chosen)))
    hits = [answer.correct or False for answer in answers]
    # In float64, to which losses convert exactly; each sum is over one process's value and zeros.
    table = torch.zeros(2, len(split.examples), dtype=torch.float64)
    table[:, chosen] = torch.tensor([[answer.loss for answer in answers], hits], dtype=torch.float64)
    loss, accuracy = processes.add_up(table.to(reader.runtime.device)).mean(1).tolist()
    return loss, accuracy if reader.rule else None


@contextmanager
def _in_eval_mode(network: nn.Module) -> Iterator[None]:
    training = [module for module in network.modules() if module.training]
    network.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
