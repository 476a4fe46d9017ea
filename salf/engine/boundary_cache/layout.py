"""Where every example's rows lie among a split's boundary states."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from salf.engine.batches import Example, inference_batches


@dataclass(frozen=True)
class Layout:
    """The rows of a split: the shared beginning's, then group after group, so that all is written in one go.

    A group is what goes through the frozen layers in one pass; groups hold examples of similar length, so
    that what trains together lies close together.

    Attributes:
        shared: P, rows of the beginning that all prompts share.
        groups: the examples of each pass.
        firsts: the first row of every example, [examples].
        lengths: how many rows each has, [examples].
    """

    shared: int
    groups: list[list[int]]
    firsts: Tensor
    lengths: Tensor

    @classmethod
    def of(cls, examples: Sequence[Example], shared: int, batch_tokens: int) -> Self:
        """Passes of at most ``batch_tokens`` tokens behind the beginning."""
        tokens = [len(example.inputs) - shared for example in examples]
        groups = inference_batches(tokens, batch_tokens)
        order = torch.tensor([i for group in groups for i in group])
        lengths = torch.tensor(tokens)
        ends = shared + lengths[order].cumsum(0)
        firsts = torch.empty_like(lengths).index_copy_(0, order, ends - lengths[order])
        return cls(shared, groups, firsts, lengths)

    @property
    def rows(self) -> int:
        """All rows."""
        return self.shared + int(self.lengths.sum())

    def rows_of(self, index: Tensor, *, joined: bool) -> Tensor:
        """Row numbers of the examples ``index``, end to end, [N]; ``joined``: the beginning's P before them."""
        lengths = self.lengths[index]
        ends = lengths.cumsum(0)
        own = torch.arange(int(ends[-1])) + torch.repeat_interleave(self.firsts[index] - ends + lengths, lengths)
        return torch.cat([torch.arange(self.shared), own]) if joined else own
