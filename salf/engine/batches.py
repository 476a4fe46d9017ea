"""Prepared examples, splits of them, and the batches that go through the layers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import repeat
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from salf.errors import UserError
from salf.files import read_json, require
from salf.records import read_sizes
from salf.settings import AnswerSide
from salf.split_point import split_points

Rows = NDArray[np.int64]

_COLUMNS = ("example_id", "label", "text", "answer", "prompt_ids", "answer_ids")  # in the order of Example's fields
_CANDIDATES = "candidates"  # of multiple choice alone
_MAYBE = ("field_end", "turn_end", "subgroup")  # not in all data, and the first two in none of an older release
_STRETCH = 1024  # rows of a prepared split held at a time
_BUFFER = 1 << 20  # bytes of a column read ahead
_MEGABATCH = 16  # batches sorted together by length: little padding, and the order stays random


@dataclass(frozen=True)
class Candidate:
    """One of the answers that an example lets choose from."""

    text: str
    ids: tuple[int, ...]


@dataclass(frozen=True)
class Example:
    """A prompt and its answer, as tokens; ``candidates``: what is chosen from, the answer among them, if anything."""

    example_id: str
    label: str | None
    text: str
    answer: str
    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    candidates: tuple[Candidate, ...] = ()
    field_end: int | None = None  # tokens of the prompt up to the end of its last data column (salf.split_point)
    turn_end: int | None = None  # the same up to the end of the last turn; ``None`` without a chat template
    subgroup: str | None = None  # by which scores are reported

    @property
    def inputs(self) -> tuple[int, ...]:
        """The model's input: the prompt and all of the answer but its last token."""
        return self.prompt_ids + self.answer_ids[:-1]

    def cut(self, tokens: int) -> Self:
        """The first tokens of the prompt, without an answer."""
        return replace(self, prompt_ids=self.prompt_ids[:tokens], answer_ids=())


def read_examples(prepared: Path, split: str) -> list[Example]:
    """Read a prepared split as a whole; a ``UserError`` says that it is missing."""
    return list(stream_examples(prepared, split))


def stream_examples(prepared: Path, split: str, rows: Rows | None = None) -> Iterator[Example]:
    """Yield a prepared split's examples in the file's order; memory stays at a stretch of the file.

    ``rows`` are the 0-based numbers of the rows to read, ascending; all unless given. A ``UserError`` says that the
    split is missing.
    """
    held = pq.read_schema(require(prepared / f"{split}.parquet", made_by="prepare")).names
    columns = (*_COLUMNS, *(name for name in (_CANDIDATES, *_MAYBE) if name in held))
    for table in stretches(prepared, split, columns, rows):
        words = [table.column(name).to_pylist() for name in _COLUMNS[:4]]
        prompts, answers = (_token_lists(table.column(name)) for name in _COLUMNS[4:])
        given = table.column(_CANDIDATES).to_pylist() if _CANDIDATES in held else repeat(())
        candidates = (tuple(Candidate(one["text"], tuple(one["ids"])) for one in row) for row in given)
        others = (table.column(name).to_pylist() if name in held else repeat(None) for name in _MAYBE)
        yield from map(Example, *words, prompts, answers, candidates, *others)


def stretches(prepared: Path, split: str, columns: Sequence[str], rows: Rows | None = None) -> Iterator[Any]:
    """Yield chosen rows of chosen columns as Arrow tables of at most 1,024 rows: see :func:`stream_examples`."""
    path = require(prepared / f"{split}.parquet", made_by="prepare")
    start = 0
    with pq.ParquetFile(path, buffer_size=_BUFFER) as file:  # buffered: a column's bytes are never held as a whole
        for stretch in file.iter_batches(batch_size=_STRETCH, columns=list(columns)):
            if rows is None:
                yield stretch
            else:
                first, last = np.searchsorted(rows, [start, start + len(stretch)])
                if first < last:
                    yield stretch.take(pa.array(rows[first:last] - start))
            start += len(stretch)


def _token_lists(column: Any) -> list[tuple[int, ...]]:
    """An Arrow column of lists as tuples, without an object per token on the way."""
    ends = np.cumsum(column.value_lengths().to_numpy())
    return [tuple(part.tolist()) for part in np.split(column.flatten().to_numpy(), ends)[:-1]]


@dataclass(frozen=True)
class Batch:
    """A batch of B examples above a shared prefix of P tokens: N own tokens end to end, without padding."""

    index: Tensor  # the examples' places in their split, [B]
    ids: Tensor  # their tokens after the shared prefix, [N]
    lengths: tuple[int, ...]  # number of these tokens of each example
    answers: Tensor  # the rows, of N, that predict an answer token, [M]
    rows: Tensor  # the example, 0..B-1, of each of these rows, [M]
    targets: Tensor  # the answer tokens, [M]
    answer_index: Tensor  # 0-based position of each inside its answer, [M]
    shared: int  # P
    prompts: "Batch | None" = None  # what the base model reads before the own tokens, above the same shared prefix

    @classmethod
    def of(
        cls, examples: Sequence[Example], index: Sequence[int], shared: int, base_rows: Sequence[int] | None = None
    ) -> Self:
        """Collate ``examples[index]``, which share their first ``shared`` tokens.

        ``base_rows``: tokens of each of ``examples`` that the base model reads; the batch's own come after them.
        """
        chosen = [examples[i] for i in index]
        read = [base_rows[i] for i in index] if base_rows else None
        prompts = (
            cls.of([example.cut(n) for example, n in zip(chosen, read, strict=True)], range(len(read)), shared)
            if read
            else None
        )
        inputs = [example.inputs[n:] for example, n in zip(chosen, read or repeat(shared), strict=bool(read))]
        lengths = tuple(map(len, inputs))
        answers = torch.tensor([len(example.answer_ids) for example in chosen])
        # The last row of an example predicts the last token of its answer.
        within = torch.cat([torch.arange(-len(example.answer_ids), 0) for example in chosen])
        rows = torch.repeat_interleave(torch.arange(len(chosen)), answers)
        return cls(
            index=torch.tensor(list(index)),
            ids=torch.tensor([token for tokens in inputs for token in tokens]),
            lengths=lengths,
            answers=torch.tensor(lengths).cumsum(0)[rows] + within,
            rows=rows,
            targets=torch.tensor([token for example in chosen for token in example.answer_ids]),
            answer_index=within + answers[rows],
            shared=shared,
            prompts=prompts,
        )

    def at(self, kept: Sequence[Tensor]) -> Self:
        """The same batch with some of its answer positions: those of each example's answer, ascending."""
        firsts = torch.nn.functional.pad(self.rows.bincount().cumsum(0), (1, 0))
        which = torch.cat([first + own for first, own in zip(firsts, kept, strict=False)])
        names = ("answers", "rows", "targets", "answer_index")
        changes: dict[str, Any] = {name: getattr(self, name)[which] for name in names}
        return replace(self, **changes)

    def to(self, device: torch.device) -> Self:
        """The same batch on a device."""
        kinds = (Tensor, Batch)
        moved: dict[str, Any] = {n: value.to(device) for n, value in vars(self).items() if isinstance(value, kinds)}
        return replace(self, **moved)

    @property
    def positions(self) -> Tensor:
        """Position of each own token in its prompt, [N]."""
        spans = zip(self.firsts, self.lengths, strict=True)
        return torch.cat([torch.arange(first, first + tokens) for first, tokens in spans]).to(self.ids.device)

    @property
    def firsts(self) -> tuple[int, ...]:
        """The position of each example's first own token: the tokens before it."""
        before = self.prompts.lengths if self.prompts else (0,) * len(self.lengths)
        return tuple(self.shared + tokens for tokens in before)

    @property
    def attended(self) -> int:
        """Keys seen by the own tokens, summed: the attention's share of the cost."""
        spans = zip(self.firsts, self.lengths, strict=True)
        return sum(tokens * first + tokens * (tokens + 1) // 2 for first, tokens in spans)

    @property
    def seen(self) -> int:
        """Keys seen by the answer positions, summed."""
        lengths, rows = torch.tensor(self.lengths), self.rows.cpu()
        starts = lengths.cumsum(0) - lengths
        return int((self.answers.cpu() - starts[rows] + 1 + torch.tensor(self.firsts)[rows]).sum())


class Start(Protocol):
    """The start of a pass through the layers: the embeddings, or boundary states."""

    @property
    def space(self) -> int:
        """The space of the states: 0 is the embedding output."""

    def beginning(self) -> Tensor | None:
        """States of the shared prefix, [P, hidden]; ``None`` where P is 0."""

    def states(self, batch: Batch, *, joined: bool = False) -> Tensor:
        """States of a batch's own tokens, [N, hidden]; with ``joined`` the prefix's come first, [P + N, hidden]."""


@dataclass(frozen=True)
class Split:
    """Examples that share their first tokens."""

    examples: Sequence[Example]
    shared: int  # P, tokens of the shared prefix
    start: Start | None = None  # where their passes begin; ``None``: at the embeddings
    places: Sequence[int] | None = None  # each example's place in the start, where they are a subset of its examples
    base_rows: Sequence[int] | None = None  # tokens of each example that the base model reads; ``None``: answers alone

    @classmethod
    def read(cls, prepared: Path, name: str) -> Self:
        """Read a prepared split as a whole; a ``UserError`` says that it or ``meta.json`` is missing or damaged."""
        return cls(read_examples(prepared, name), read_sizes(prepared).shared_prefix_tokens)

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def prefix(self) -> tuple[int, ...]:
        """The shared tokens."""
        return self.examples[0].prompt_ids[: self.shared]

    @property
    def lengths(self) -> list[int]:
        """Tokens of each example after the shared prefix."""
        return [len(example.inputs) - self.shared for example in self.examples]

    def batch(self, index: Sequence[int]) -> Batch:
        """Collate some of the examples; their places in the start are the batch's ``index``."""
        batch = Batch.of(self.examples, index, self.shared, self.base_rows)
        return replace(batch, index=torch.tensor([self.places[i] for i in index])) if self.places else batch

    def answer_places(self, batch: Batch) -> Tensor:
        """The place of each of a batch's M answer tokens among all of the split's, [M]; for a split without places."""
        firsts = torch.tensor([0, *(len(example.answer_ids) for example in self.examples)]).cumsum(0)
        return firsts[batch.index[batch.rows].cpu()] + batch.answer_index.cpu()

    def subset(self, index: Sequence[int]) -> "Split":
        """Some of the examples, with the same start."""
        examples = [self.examples[i] for i in index]
        rows = [self.base_rows[i] for i in index] if self.base_rows else None
        if self.start is None:
            return Split(examples, self.shared, base_rows=rows)
        places = [self.places[i] for i in index] if self.places else list(index)
        return Split(examples, self.shared, self.start, places, rows)

    def without_beginning(self, base: Path) -> "Split":
        """The same examples, whose prompts lack what all of them begin with; the token BOS of ``base`` stays.

        A ``UserError`` says that they begin with nothing in common.
        """
        start = self.prefix[:1] if self.prefix[:1] == (read_json(base / "config.json").get("bos_token_id"),) else ()
        if self.shared == len(start):
            raise UserError("prompts begin with nothing in common; put worked examples first in data.template")
        prompts = [start + example.prompt_ids[self.shared :] for example in self.examples]
        cut = zip(self.examples, prompts, strict=True)
        return Split([replace(one, prompt_ids=ids, field_end=None, turn_end=None) for one, ids in cut], len(start))

    def after_prompts(self, side: AnswerSide) -> "Split":
        """The same examples, of which the base model reads the prompts up to their split points.

        A ``UserError`` says that the data do not tell where those are, or that some examples have no prompt part.
        """
        ends = [getattr(example, f"{side.start}_end") for example in self.examples]
        rows = split_points([len(example.prompt_ids) for example in self.examples], ends, side)
        return Split(self.examples, min(self.shared, min(rows) - 1), base_rows=rows)


def inference_batches(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Indices by length, as many to a batch as ``batch_tokens`` holds with padding.

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

    The examples are shuffled, cut into stretches of several batches, sorted by length inside each, cut into batches,
    and the batches shuffled. What does not fill a batch is drawn before sorting: it weighs more than others, and would
    always be long.
    """
    order = rng.permutation(len(lengths))
    left_over = len(order) % batch_size
    order, batches = order[left_over:], [list(order[:left_over])] if left_over else []
    stretch = batch_size * _MEGABATCH
    for start in range(0, len(order), stretch):
        by_length = sorted(order[start : start + stretch], key=lambda i: lengths[i])
        batches += [by_length[at : at + batch_size] for at in range(0, len(by_length), batch_size)]
    for at in rng.permutation(len(batches)):
        yield [int(i) for i in batches[at]]
