"""Reads a model's outputs at the answer positions: logits, losses, preferred labels."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from salf.cost import HEAD_ROWS
from salf.engine.batches import Batch, Example, Split, Start, inference_batches
from salf.engine.models.adapter import CausalModel
from salf.engine.models.attention import Beginning, Packing, Prompts
from salf.engine.models.walk import run, run_to_answers, walk_beginning
from salf.engine.rules import CandidateRule, LabelTree, LogProbabilities, Path, Rule, preferences
from salf.engine.runtime import Runtime

# What to sum: from logits of some rows [m, vocabulary], of one pass or of several, and which of the M rows they are, to
# a scalar.
OfRows = Callable[..., Tensor]


@dataclass(frozen=True)
class Embeddings:
    """Start at space 0."""

    model: CausalModel
    ids: Tensor  # the token ids that all prompts begin with, [P]
    space: int = 0

    @classmethod
    def after(cls, model: CausalModel, beginning: Sequence[int]) -> Self:
        """Start after the P token ids that all prompts share."""
        return cls(model, torch.tensor(list(beginning), dtype=torch.long, device=model.device))

    def beginning(self) -> Tensor | None:
        """See :class:`Start`."""
        places = torch.arange(len(self.ids), device=self.ids.device)
        return self.model.embed(self.ids, places) if len(self.ids) else None

    def states(self, batch: Batch, *, joined: bool = False) -> Tensor:
        """See :class:`Start`; one look-up for all rows, so that the matrix gets one gradient."""
        first = self.ids if joined else self.ids[:0]
        places = torch.arange(len(first), device=first.device)
        return self.model.embed(torch.cat([first, batch.ids]), torch.cat([places, batch.positions]))


def start_of(split: Split, model: CausalModel) -> Start:
    """The start of passes over a split."""
    return split.start or Embeddings.after(model, split.prefix)


def begin(start: Start, batch: Batch, walked: Beginning | None = None) -> tuple[Tensor, Packing]:
    """States of a batch's rows where their pass begins, [rows, hidden], and how these attend.

    The shared prefix is part of the pass unless it was ``walked``, or the base has read it with the prompts.
    """
    if isinstance(start, AnswerSide):
        return start.begin(batch)
    packing = Packing.of(batch.lengths, batch.ids.device, past=batch.shared, walked=walked)
    return start.states(batch, joined=walked is None), packing


def training_states(model: CausalModel, start: Start, batch: Batch, *, recompute: bool = False) -> Tensor:
    """Space L of the batch's M answer positions, [M, hidden].

    ``recompute``: back-propagation keeps only the input of each layer (gradient checkpointing).
    """
    states, packing = begin(start, batch)
    return run_to_answers(model, states, start.space, packing, batch.answers, recompute=recompute)


def training_logits(model: CausalModel, start: Start, batch: Batch, *, recompute: bool = False) -> Tensor:
    """Logits of :func:`training_states`, [M, vocabulary]."""
    return model.logits(training_states(model, start, batch, recompute=recompute))


def answer_states(
    model: CausalModel, runtime: Runtime, split: Split, batch_tokens: int
) -> Iterator[tuple[list[int], Batch, Tensor]]:
    """Yield examples of a split, their batch, and space L of its M answer positions, [M, hidden].

    For use without gradients: the shared prefix is walked once. ``batch_tokens``: of a pass, padding included.
    """
    if not split.examples:
        return
    start = start_of(split, model)
    with runtime.autocast():
        walked = walk_beginning(model, start.beginning(), start.space, model.depth)
        for index in inference_batches(split.lengths, batch_tokens):
            batch = split.batch(index).to(model.device)
            states, packing = begin(start, batch, walked)
            yield index, batch, run_to_answers(model, states, start.space, packing, batch.answers)


def summed_over_rows(model: CausalModel, of: OfRows, *states: Tensor) -> Tensor:
    """Sum ``of`` over the logits of states [M, hidden] of one pass or several, ``HEAD_ROWS`` rows at a time."""

    def of_chunk(rows: slice, *some: Tensor) -> Tensor:
        return of(*(model.logits(one) for one in some), rows)

    if len(states[0]) <= HEAD_ROWS or not torch.is_grad_enabled():
        return torch.stack([of_chunk(rows, *(one[rows] for one in states)) for rows in _chunks(len(states[0]))]).sum()
    trained = [one for part in (model.norm, model.head) for one in part.parameters() if one.requires_grad]
    total: Tensor = _SumOfChunks.apply(of_chunk, len(states), *states, *trained)
    return total


class _SumOfChunks(torch.autograd.Function):
    """A sum over chunks whose gradients are taken in the forward pass, so that no chunk outlives its turn.

    Nothing is computed twice. Liger Kernel (arXiv 2410.10989, §3) does the same for the head and cross-entropy.
    """

    @staticmethod
    def forward(ctx: Any, value: Callable[..., Tensor], passes: int, *inputs: Tensor) -> Tensor:
        states, trained = inputs[:passes], inputs[passes:]
        total, gradients = torch.zeros((), device=states[0].device), [torch.zeros_like(one) for one in inputs]
        for rows in _chunks(len(states[0])):
            with torch.enable_grad():
                some = [one[rows].detach().requires_grad_() for one in states]
                part = value(rows, *some)
                found = torch.autograd.grad(part, [*some, *trained])
            for gradient, own in zip(gradients[:passes], found[:passes], strict=True):
                gradient[rows] = own
            for gradient, other in zip(gradients[passes:], found[passes:], strict=True):
                gradient += other
            total += part.detach()
        ctx.save_for_backward(*gradients)
        return total

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> Any:
        return (None, None, *(outer[0] * gradient for gradient in ctx.saved_tensors))


def _chunks(rows: int) -> list[slice]:
    return [slice(start, min(start + HEAD_ROWS, rows)) for start in range(0, rows, HEAD_ROWS)]


class PromptSource(Protocol):
    """Gives the keys and values that the base model computed of a batch's prompts."""

    def of(self, batch: Batch) -> Prompts:
        """At the layers that it holds."""


@dataclass(frozen=True)
class AnswerSide:
    """Where passes over the trained side of examples begin: a ``Start`` for their own tokens, after the prompts."""

    model: CausalModel  # layers 1..space are the base's
    runtime: Runtime
    space: int  # the boundary
    prompts: PromptSource  # at layers space+1..L
    below: PromptSource  # at layers 1..space, where states are not cached; may be ``prompts``
    cached: Start | None = None  # boundary states of the own tokens; ``None``: from the embeddings, for every batch

    def begin(self, batch: Batch) -> tuple[Tensor, Packing]:
        """States of a batch's own tokens, [N, hidden], and how the layers above attend."""
        packing = Packing.of(batch.lengths, self.model.device, prompts=self.prompts.of(batch))
        if self.cached is not None:
            return self.cached.states(batch), packing
        states = self.model.embed(batch.ids, batch.positions)
        below = packing
        if self.below is not self.prompts:
            below = Packing.of(batch.lengths, self.model.device, prompts=self.below.of(batch))
        with torch.no_grad(), self.runtime.autocast():
            return run(self.model, states, 0, self.space, below), packing

    def beginning(self) -> Tensor | None:
        """None: the shared prefix is among the prompts."""
        return None

    def states(self, batch: Batch, **_: bool) -> Tensor:
        """States of a batch's own tokens, [N, hidden]."""
        return self.begin(batch)[0]


@dataclass(frozen=True)
class Answer:
    """The model's output for one example."""

    loss: float  # mean −log probability of the true answer's tokens, in nats
    token_losses: tuple[float, ...]  # the same by token
    predicted: str | None = None  # the preferred label, or candidate's text; ``None`` for free answers
    correct: bool | None = None  # whether that is right; ``None`` for free answers
    probability: float | None = None  # of the label's distinguishing beginning, or the candidate's share


class Reader:
    """Reads examples with a model, without gradients."""

    def __init__(self, model: CausalModel, runtime: Runtime, rule: Rule, batch_tokens: int) -> None:
        """``rule``: how an answer is preferred; ``batch_tokens``: of a pass, padding included."""
        self.model, self.runtime, self.rule, self.batch_tokens = model, runtime, rule, batch_tokens
        self.asked: list[Split] = []  # what the last reading read in addition, to compare labels or candidates

    @torch.no_grad()
    def read(self, split: Split, advance: Callable[[int], None] = lambda _: None) -> list[Answer]:
        """Losses and, except for free answers, what the model prefers; ``advance`` gets the number of examples done."""
        self.asked = []
        token_losses: list[tuple[float, ...]] = [()] * len(split)
        roots: list[LogProbabilities] = [{}] * len(split)  # of the first tokens of all that may be preferred
        for index, nats, first in self._batches(split):
            for i, own, row in zip(index, nats, first, strict=True):
                token_losses[i] = tuple(-nat for nat in own)
                if self.rule is not None:
                    roots[i] = _at(row, self._beginnings(split.examples[i]))
            advance(len(index))
        answers = [Answer(sum(losses) / len(losses), losses) for losses in token_losses]
        if isinstance(self.rule, LabelTree):
            return self._with_labels(self.rule, split, answers, roots)
        if isinstance(self.rule, CandidateRule):
            return self._with_candidates(self.rule, split, answers, roots)
        return answers

    def _with_labels(
        self, tree: LabelTree, split: Split, answers: Sequence[Answer], roots: Sequence[LogProbabilities]
    ) -> list[Answer]:
        ranked = preferences(tree, roots, lambda questions: self._look(tree, split, questions))
        made = []
        for example, answer, (best, nats) in zip(split.examples, answers, ranked, strict=True):
            label, probability = tree.labels[best], min(1.0, float(torch.tensor(nats).exp()))
            made.append(replace(answer, predicted=label, correct=label == example.label, probability=probability))
        return made

    def _with_candidates(
        self, rule: CandidateRule, split: Split, answers: Sequence[Answer], roots: Sequence[LogProbabilities]
    ) -> list[Answer]:
        """A candidate of one token is known from its root, the right one from its losses; the others are read."""
        known: list[dict[Path, float]] = []
        for example, answer, root in zip(split.examples, answers, roots, strict=True):
            single: dict[Path, float] = {one.ids: root[one.ids[0]] for one in example.candidates if len(one.ids) == 1}
            known.append({**single, example.answer_ids: -sum(answer.token_losses)})
        asked = [(i, one.ids) for i, e in enumerate(split.examples) for one in e.candidates if one.ids not in known[i]]
        if asked:
            self.asked.append(_asked(split, asked))
            for index, nats, _ in self._batches(self.asked[-1]):
                for at, own in zip(index, nats, strict=True):
                    i, ids = asked[at]
                    known[i][ids] = sum(own)
        made = []
        for example, answer, nats_of in zip(split.examples, answers, known, strict=True):
            best, share = rule.choose(example.candidates, [nats_of[one.ids] for one in example.candidates])
            chosen = example.candidates[best]
            correct = chosen.ids == example.answer_ids
            made.append(replace(answer, predicted=chosen.text, correct=correct, probability=share))
        return made

    def _beginnings(self, example: Example) -> tuple[int, ...]:
        if isinstance(self.rule, LabelTree):
            return self.rule.branches[()]
        return tuple(dict.fromkeys(one.ids[0] for one in example.candidates))

    def _batches(self, split: Split, *, ends: bool = False) -> Iterator[tuple[list[int], list[list[float]], Tensor]]:
        """Yield B examples, the log probabilities of each one's answer tokens, and [B, vocabulary] of them.

        The latter are those of each answer's first token, or with ``ends`` of its last one.
        """
        for index, batch, last in answer_states(self.model, self.runtime, split, self.batch_tokens):
            following = batch.answer_index.roll(-1)  # 0 after the end of an answer
            asked = (following if ends else batch.answer_index) == 0
            nats, chosen = list[Tensor](), list[Tensor]()
            for rows in _chunks(len(last)):
                log_probabilities = self.model.logits(last[rows]).float().log_softmax(-1)  # [m, vocabulary]
                nats.append(log_probabilities.gather(1, batch.targets[rows, None])[:, 0])
                chosen.append(log_probabilities[asked[rows]])
            by_example = torch.cat(nats).cpu().split(batch.rows.cpu().bincount().tolist())
            yield index, [own.tolist() for own in by_example], torch.cat(chosen)

    def _look(self, tree: LabelTree, split: Split, questions: Sequence[tuple[int, Path]]) -> list[LogProbabilities]:
        """Next-token log probabilities after a prompt and the first tokens of an answer."""
        # The last token of an answer is never read, only predicted: any token will do.
        self.asked.append(_asked(split, [(i, (*path, 0)) for i, path in questions]))
        answers: list[LogProbabilities] = [{}] * len(questions)
        for index, _, log_probabilities in self._batches(self.asked[-1], ends=True):
            for row, i in zip(log_probabilities, index, strict=True):
                answers[i] = _at(row, tree.branches[questions[i][1]])
        return answers


def _asked(split: Split, questions: Sequence[tuple[int, Path]]) -> Split:
    """Examples with other answers, read from the embeddings on, or after their prompts."""
    prompts = ((split.examples[i], answer) for i, answer in questions)
    examples = [Example(e.example_id, None, "", "", e.prompt_ids, answer) for e, answer in prompts]
    if not isinstance(split.start, AnswerSide):
        return Split(examples, split.shared)
    kept = split.subset([i for i, _ in questions])
    return replace(kept, examples=examples, start=replace(split.start, cached=None))


def _at(log_probabilities: Tensor, tokens: Sequence[int]) -> LogProbabilities:
    return dict(zip(tokens, log_probabilities[list(tokens)].tolist(), strict=True))
