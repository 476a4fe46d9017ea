"""Prepared examples, and the batches that go through the layers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor

from stages.common.artifacts import require

_MEGABATCH = 16  # batches sorted together by length: little padding, and the order stays random


@dataclass(frozen=True)
class Example:
    """A prompt and its answer, as tokens."""

    example_id: str
    label: str | None
    text: str
    answer: str
    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]

    @property
    def inputs(self) -> tuple[int, ...]:
        """What the model reads: the prompt and all of the answer but its last token."""
        return self.prompt_ids + self.answer_ids[:-1]


def read_examples(prepared: Path, split: str) -> list[Example]:
    """Read a prepared split.

    Raises:
        UserError: the split is missing.
    """
    path = require(prepared / f"{split}.parquet", made_by="prepare")
    columns = ["example_id", "label", "text", "answer", "prompt_ids", "answer_ids"]
    return [
        Example(**{**row, "prompt_ids": tuple(row["prompt_ids"]), "answer_ids": tuple(row["answer_ids"])})
        for row in pq.read_table(path, columns=columns).to_pylist()
    ]


@dataclass(frozen=True)
class Batch:
    """A batch behind a shared beginning of P tokens.

    Attributes:
        index: which examples, [B].
        ids: their tokens behind the beginning, padded on the right, [B, T].
        lengths: real tokens of each, [B].
        rows, columns: where the N answer tokens of the batch are predicted, [N] each.
        targets: the answer tokens, [N].
        answer_index: 0-based position of each inside its answer, [N].
    """

    index: Tensor
    ids: Tensor
    lengths: Tensor
    rows: Tensor
    columns: Tensor
    targets: Tensor
    answer_index: Tensor

    @classmethod
    def of(cls, examples: Sequence[Example], index: Sequence[int], shared: int, pad: int = 0) -> Self:
        """Collate ``examples[index]``, each without its first ``shared`` tokens."""
        chosen = [examples[i] for i in index]
        own = [example.inputs[shared:] for example in chosen]
        ids = torch.full((len(own), max(map(len, own))), pad, dtype=torch.long)
        for row, tokens in zip(ids, own, strict=True):
            row[: len(tokens)] = torch.tensor(tokens)
        answers = [len(example.answer_ids) for example in chosen]
        firsts = [len(example.prompt_ids) - 1 - shared for example in chosen]
        within = [torch.arange(n) for n in answers]
        return cls(
            index=torch.tensor(list(index)),
            ids=ids,
            lengths=torch.tensor([len(tokens) for tokens in own]),
            rows=torch.repeat_interleave(torch.arange(len(own)), torch.tensor(answers)),
            columns=torch.cat([start + steps for start, steps in zip(firsts, within, strict=True)]),
            targets=torch.tensor([token for example in chosen for token in example.answer_ids]),
            answer_index=torch.cat(within),
        )

    def to(self, device: torch.device) -> Self:
        """The same batch on a device."""
        return type(self)(**{name: value.to(device) for name, value in vars(self).items()})

    def answer_states(self, states: Tensor) -> Tensor:
        """The states that predict the answer tokens: [B, T, hidden] to [N, hidden]."""
        return states[self.rows, self.columns]

    def attended(self, shared: int) -> int:
        """Keys seen, summed over the batch's own tokens with padding: the attention's share of the cost."""
        size, tokens = self.ids.shape
        return size * (tokens * shared + tokens * (tokens + 1) // 2)


def inference_batches(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Indices by length, as many to a batch as ``batch_tokens`` holds with padding; longest first.

    Longest first: if memory does not suffice, that shows at once and not at the end.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    batches: list[list[int]] = []
    for i in order:
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= batch_tokens:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


def training_batches(lengths: Sequence[int], batch_size: int, rng: np.random.Generator) -> Iterator[list[int]]:
    """One epoch of batches of similar length in random order.

    The examples are shuffled, cut into stretches of several batches, sorted by length inside each,
    cut into batches, and the batches shuffled: every example is as likely to come early as late.
    """
    order = rng.permutation(len(lengths))
    stretch = batch_size * _MEGABATCH
    batches = []
    for start in range(0, len(order), stretch):
        by_length = sorted(order[start : start + stretch], key=lambda i: lengths[i])
        batches += [by_length[at : at + batch_size] for at in range(0, len(by_length), batch_size)]
    for at in rng.permutation(len(batches)):
        yield [int(i) for i in batches[at]]
