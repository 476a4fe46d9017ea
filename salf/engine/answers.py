"""What a model says at the answer positions: logits, losses, preferred labels."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from salf.engine.batches import Batch, Example, Split, Start, inference_batches
from salf.engine.models.adapter import CausalModel
from salf.engine.models.attention import Packing
from salf.engine.models.walk import run_to_answers, walk_beginning
from salf.engine.rules import CandidateRule, LabelTree, LogProbabilities, Path, Rule, preferences
from salf.engine.runtime import Runtime


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

    @property
    def shared(self) -> int:
        """P."""
        return len(self.ids)

    def beginning(self) -> Tensor | None:
        """See :class:`Start`."""
        return self.model.embed(self.ids, self._places) if self.shared else None

    def states(self, batch: Batch, *, joined: bool = False) -> Tensor:
        """See :class:`Start`; one look-up for all rows, so that the matrix gets one gradient."""
        places = batch.positions
        if not joined:
            return self.model.embed(batch.ids, places)
        return self.model.embed(torch.cat([self.ids, batch.ids]), torch.cat([self._places, places]))

    @property
    def _places(self) -> Tensor:
        return torch.arange(self.shared, device=self.ids.device)


def start_of(split: Split, model: CausalModel) -> Start:
    """Where passes over a split begin."""
    return split.start or Embeddings.after(model, split.prefix)


def training_logits(model: CausalModel, start: Start, batch: Batch, *, recompute: bool = False) -> Tensor:
    """Logits of the batch's M answer positions, [M, vocabulary]; shared prefix and batch in one pass.

    ``recompute``: back-propagation keeps only the input of each layer (gradient checkpointing).
    """
    packing = Packing.of(batch.lengths, batch.ids.device, past=batch.shared)
    states = start.states(batch, joined=True)  # [P + N, hidden]
    return model.logits(run_to_answers(model, states, start.space, packing, batch.answers, recompute=recompute))


@dataclass(frozen=True)
class Answer:
    """What the model made of one example."""

    loss: float  # mean −log probability of the true answer's tokens, in nats
    token_losses: tuple[float, ...]  # the same by token
    predicted: str | None = None  # the preferred label, or candidate's text; ``None`` for free answers
    correct: bool | None = None  # whether that is right; ``None`` for free answers
    probability: float | None = None  # of the label's distinguishing beginning, or the candidate's share (``Choice``)


class Reader:
    """Reads examples with a model, without gradients."""

    def __init__(self, model: CausalModel, runtime: Runtime, rule: Rule, batch_tokens: int) -> None:
        """``rule``: how an answer is preferred; ``batch_tokens``: of a pass, padding included."""
        self.model, self.runtime, self.rule, self.batch_tokens = model, runtime, rule, batch_tokens

    @torch.no_grad()
    def read(self, split: Split, advance: Callable[[int], None] = lambda _: None) -> list[Answer]:
        """Losses and, except for free answers, what the model prefers; ``advance`` gets the number of examples done."""
        if not split.examples:
            return []
        token_losses, roots = self._teacher_forced(split, advance)
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
        for example, answer, preference in zip(split.examples, answers, ranked, strict=True):
            label = tree.labels[preference.label]
            probability = min(1.0, float(torch.tensor(preference.log_probability).exp()))
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
        for (i, ids), nats in zip(asked, self._sums(split, asked), strict=True):
            known[i][ids] = nats
        made = []
        for example, answer, nats_of in zip(split.examples, answers, known, strict=True):
            choice = rule.choose(example.candidates, [nats_of[one.ids] for one in example.candidates])
            chosen = example.candidates[choice.index]
            correct = chosen.ids == example.answer_ids
            made.append(replace(answer, predicted=chosen.text, correct=correct, probability=choice.share))
        return made

    def _teacher_forced(
        self, split: Split, advance: Callable[[int], None]
    ) -> tuple[list[tuple[float, ...]], list[LogProbabilities]]:
        """Losses by answer token, and log probabilities of the first tokens of all that may be preferred."""
        losses: list[tuple[float, ...]] = [()] * len(split.examples)
        roots: list[LogProbabilities] = [{}] * len(split.examples)
        for index, batch, log_probabilities in self._batches(split):
            for i, nats in zip(index, _by_example(batch, log_probabilities), strict=True):
                losses[i] = tuple(-nat for nat in nats)
            if self.rule is not None:
                first = log_probabilities[batch.answer_index == 0]  # [B, vocabulary]
                for i, row in zip(index, first, strict=True):
                    roots[i] = _at(row, self._beginnings(split.examples[i]))
            advance(len(index))
        return losses, roots

    def _beginnings(self, example: Example) -> tuple[int, ...]:
        if isinstance(self.rule, LabelTree):
            return self.rule.branches[()]
        return tuple(dict.fromkeys(one.ids[0] for one in example.candidates))

    def _batches(self, split: Split) -> Iterator[tuple[list[int], Batch, Tensor]]:
        """Which examples, their batch, and log probabilities at its M answer positions, [M, vocabulary]."""
        start = start_of(split, self.model)
        with self.runtime.autocast():
            beginning = walk_beginning(self.model, start.beginning(), start.space, self.model.depth)
            for index in inference_batches(split.lengths, self.batch_tokens):
                batch = split.batch(index).to(self.model.device)
                packing = Packing.of(batch.lengths, self.model.device, walked=beginning)
                last = run_to_answers(self.model, start.states(batch), start.space, packing, batch.answers)
                yield index, batch, self.model.logits(last).float().log_softmax(-1)

    def _look(self, tree: LabelTree, split: Split, questions: Sequence[tuple[int, Path]]) -> list[LogProbabilities]:
        """Next-token log probabilities after a prompt and the first tokens of an answer."""
        # The last token of an answer is never read, only predicted: any token will do.
        asked = _asked(split, [(i, (*path, 0)) for i, path in questions])
        answers: list[LogProbabilities] = [{}] * len(questions)
        for index, _, log_probabilities in self._batches(asked):
            last = torch.tensor([len(asked.examples[i].answer_ids) for i in index]).cumsum(0) - 1
            for row, i in zip(last.tolist(), index, strict=True):
                answers[i] = _at(log_probabilities[row], tree.branches[questions[i][1]])
        return answers

    def _sums(self, split: Split, questions: Sequence[tuple[int, Path]]) -> list[float]:
        sums = [0.0] * len(questions)
        for index, batch, log_probabilities in self._batches(_asked(split, questions)) if questions else ():
            for i, nats in zip(index, _by_example(batch, log_probabilities), strict=True):
                sums[i] = sum(nats)
        return sums


def _asked(split: Split, questions: Sequence[tuple[int, Path]]) -> Split:
    """Examples with other answers, read from the embeddings on."""
    prompts = ((split.examples[i], answer) for i, answer in questions)
    return Split([Example(e.example_id, None, "", "", e.prompt_ids, answer) for e, answer in prompts], split.shared)


def _by_example(batch: Batch, log_probabilities: Tensor) -> Iterator[list[float]]:
    """Log probabilities of each example's answer tokens, from those of the whole vocabulary, [M, vocabulary]."""
    nats = log_probabilities.gather(1, batch.targets[:, None])[:, 0].cpu()  # [M]
    yield from (part.tolist() for part in nats.split(batch.rows.cpu().bincount().tolist()))


def _at(log_probabilities: Tensor, tokens: Sequence[int]) -> LogProbabilities:
    return dict(zip(tokens, log_probabilities[list(tokens)].tolist(), strict=True))
