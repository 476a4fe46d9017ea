"""What a model says at the answer positions: logits, losses, preferred labels."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, Self

import torch
from torch import Tensor

from salf.engine.batches import Batch, Example, inference_batches
from salf.engine.candidates import CandidateRule
from salf.engine.label_tree import LabelTree, LogProbabilities, Path, preferences
from salf.engine.models.adapter import CausalModel
from salf.engine.models.attention import Packing
from salf.engine.models.walk import behind, embed, run_to_answers, walk_beginning
from salf.engine.rules import Rule
from salf.engine.runtime import Runtime


class Start(Protocol):
    """Where a pass through the layers begins: at the embeddings, or at a boundary whose states are known."""

    @property
    def space(self) -> int:
        """The space that the states are of."""

    @property
    def shared(self) -> int:
        """P, tokens of the beginning that all prompts share."""

    def beginning(self) -> Tensor | None:
        """That beginning's states, [P, hidden]; ``None`` where P is 0."""

    def states(self, batch: Batch, *, joined: bool = False) -> Tensor:
        """A batch's states behind the beginning, [N, hidden]; ``joined``: the beginning's before them."""


@dataclass(frozen=True)
class Embeddings:
    """Start at space 0.

    Attributes:
        ids: the token ids that all prompts begin with, [P].
    """

    model: CausalModel
    ids: Tensor
    space: int = 0

    @classmethod
    def behind(cls, model: CausalModel, beginning: Sequence[int]) -> Self:
        """Behind the P token ids that all prompts share."""
        return cls(model, torch.tensor(list(beginning), dtype=torch.long, device=model.device))

    @property
    def shared(self) -> int:
        """P."""
        return len(self.ids)

    def beginning(self) -> Tensor | None:
        """See :class:`Start`."""
        return embed(self.model, self.ids, self._places) if self.shared else None

    def states(self, batch: Batch, *, joined: bool = False) -> Tensor:
        """See :class:`Start`; one look-up for all rows, so that the matrix gets one gradient."""
        places = batch.positions(self.shared)
        if not joined:
            return embed(self.model, batch.ids, places)
        return embed(self.model, torch.cat([self.ids, batch.ids]), torch.cat([self._places, places]))

    @property
    def _places(self) -> Tensor:
        """Where the beginning's tokens stand, [P]."""
        return torch.arange(self.shared, device=self.ids.device)


def training_logits(model: CausalModel, start: Start, batch: Batch, *, recompute: bool = False) -> Tensor:
    """Logits of the batch's M answer positions, [M, vocabulary]; beginning and batch in one pass.

    ``recompute``: back-propagation keeps the input of each layer alone (gradient checkpointing).
    """
    packing = Packing.of(batch.lengths, batch.ids.device, past=start.shared)
    states = start.states(batch, joined=True)
    return model.logits(run_to_answers(model, states, start.space, packing, batch.answers, recompute=recompute))


@dataclass(frozen=True)
class Answer:
    """What the model made of one example.

    Attributes:
        loss: mean −log probability of the true answer's tokens, in nats.
        token_losses: the same by token.
        predicted: the preferred label, or candidate's text; ``None`` for free answers.
        correct: whether that is right; ``None`` for free answers.
        probability: of the preferred label's distinguishing beginning, or the preferred candidate's share
            (:class:`salf.engine.candidates.Choice`); ``None`` for free answers.
    """

    loss: float
    token_losses: tuple[float, ...]
    predicted: str | None = None
    correct: bool | None = None
    probability: float | None = None


class Reader:
    """Reads examples with a model, without gradients."""

    def __init__(self, model: CausalModel, runtime: Runtime, rule: Rule, batch_tokens: int) -> None:
        """``rule``: how an answer is preferred; ``batch_tokens``: of a pass, padding included."""
        self.model, self.runtime, self.rule, self.batch_tokens = model, runtime, rule, batch_tokens

    @torch.no_grad()
    def read(
        self,
        examples: Sequence[Example],
        shared: int,
        start: Start | None = None,
        advance: Callable[[int], None] = lambda _: None,
    ) -> list[Answer]:
        """Losses and, but for free answers, what the model prefers.

        Args:
            examples: the examples; they share their first ``shared`` tokens.
            shared: P.
            start: where their pass begins; at the embeddings unless given.
            advance: called with the number of examples done.
        """
        if not examples:
            return []
        embeddings = Embeddings.behind(self.model, examples[0].prompt_ids[:shared])
        token_losses, roots = self._teacher_forced(examples, start or embeddings, advance)
        answers = [Answer(sum(losses) / len(losses), losses) for losses in token_losses]
        if isinstance(self.rule, LabelTree):
            return self._with_labels(self.rule, examples, embeddings, answers, roots)
        if isinstance(self.rule, CandidateRule):
            return self._with_candidates(self.rule, examples, embeddings, answers, roots)
        return answers

    def _with_labels(
        self,
        tree: LabelTree,
        examples: Sequence[Example],
        start: Start,
        answers: Sequence[Answer],
        roots: Sequence[LogProbabilities],
    ) -> list[Answer]:
        ranked = preferences(tree, roots, lambda questions: self._look(tree, examples, start, questions))
        made = []
        for example, answer, preference in zip(examples, answers, ranked, strict=True):
            label = tree.labels[preference.label]
            probability = min(1.0, float(torch.tensor(preference.log_probability).exp()))
            made.append(replace(answer, predicted=label, correct=label == example.label, probability=probability))
        return made

    def _with_candidates(
        self,
        rule: CandidateRule,
        examples: Sequence[Example],
        start: Start,
        answers: Sequence[Answer],
        roots: Sequence[LogProbabilities],
    ) -> list[Answer]:
        """A candidate of one token is known from its root, the right one from its losses; the others are read."""
        known: list[dict[Path, float]] = []
        for example, answer, root in zip(examples, answers, roots, strict=True):
            single: dict[Path, float] = {one.ids: root[one.ids[0]] for one in example.candidates if len(one.ids) == 1}
            known.append({**single, example.answer_ids: -sum(answer.token_losses)})
        asked = [(i, one.ids) for i, e in enumerate(examples) for one in e.candidates if one.ids not in known[i]]
        for (i, ids), nats in zip(asked, self._sums(examples, start, asked), strict=True):
            known[i][ids] = nats
        made = []
        for example, answer, nats_of in zip(examples, answers, known, strict=True):
            choice = rule.choose(example.candidates, [nats_of[one.ids] for one in example.candidates])
            chosen = example.candidates[choice.index]
            correct = chosen.ids == example.answer_ids
            made.append(replace(answer, predicted=chosen.text, correct=correct, probability=choice.share))
        return made

    def _teacher_forced(
        self, examples: Sequence[Example], start: Start, advance: Callable[[int], None]
    ) -> tuple[list[tuple[float, ...]], list[LogProbabilities]]:
        """Losses by answer token, and log probabilities of the first tokens of all that may be preferred."""
        losses: list[tuple[float, ...]] = [()] * len(examples)
        roots: list[LogProbabilities] = [{}] * len(examples)
        for index, batch, log_probabilities in self._batches(examples, start):
            nats = -log_probabilities.gather(1, batch.targets[:, None])[:, 0]
            rows = batch.rows.cpu()
            for row, i in enumerate(index):
                losses[i] = tuple(nats[rows == row].tolist())
            if self.rule is not None:
                first = log_probabilities[batch.answer_index == 0]
                for i, row in zip(index, first, strict=True):
                    roots[i] = _at(row, self._beginnings(examples[i]))
            advance(len(index))
        return losses, roots

    def _beginnings(self, example: Example) -> tuple[int, ...]:
        """The first tokens of what may be preferred."""
        if isinstance(self.rule, LabelTree):
            return self.rule.branches[()]
        return tuple(dict.fromkeys(one.ids[0] for one in example.candidates))

    def _batches(self, examples: Sequence[Example], start: Start) -> Iterator[tuple[list[int], Batch, Tensor]]:
        """Which examples, their batch, and log probabilities at its M answer positions, [M, vocabulary]."""
        with self.runtime.autocast():
            beginning = walk_beginning(self.model, start.beginning(), start.space, self.model.depth)
            for index in inference_batches([len(e.inputs) - start.shared for e in examples], self.batch_tokens):
                batch = Batch.of(examples, index, start.shared).to(self.model.device)
                packing = behind(batch.lengths, self.model.device, beginning)
                last = run_to_answers(self.model, start.states(batch), start.space, packing, batch.answers)
                yield index, batch, self.model.logits(last).float().log_softmax(-1)

    def _look(
        self, tree: LabelTree, examples: Sequence[Example], start: Start, questions: Sequence[tuple[int, Path]]
    ) -> list[LogProbabilities]:
        """Next-token log probabilities behind prompt + beginning of an answer."""
        # The last token of an answer is never read, only predicted: any token will do.
        asked = [_asked(examples[i], (*path, 0)) for i, path in questions]
        answers: list[LogProbabilities] = [{}] * len(asked)
        for index, _, log_probabilities in self._batches(asked, start):
            last = torch.tensor([len(asked[i].answer_ids) for i in index]).cumsum(0) - 1
            for row, i in zip(last.tolist(), index, strict=True):
                answers[i] = _at(log_probabilities[row], tree.branches[questions[i][1]])
        return answers

    def _sums(self, examples: Sequence[Example], start: Start, questions: Sequence[tuple[int, Path]]) -> list[float]:
        """Log probability of whole answers behind prompts."""
        asked = [_asked(examples[i], path) for i, path in questions]
        sums = [0.0] * len(asked)
        for index, batch, log_probabilities in self._batches(asked, start) if asked else ():
            nats = log_probabilities.gather(1, batch.targets[:, None])[:, 0].cpu()
            rows = batch.rows.cpu()
            for row, i in enumerate(index):
                sums[i] = sum(nats[rows == row].tolist())
        return sums


def _asked(example: Example, answer: Path) -> Example:
    return Example(example.example_id, None, "", "", example.prompt_ids, answer)


def _at(log_probabilities: Tensor, tokens: Sequence[int]) -> LogProbabilities:
    """Of a vocabulary's log probabilities, those of some tokens."""
    return dict(zip(tokens, log_probabilities[list(tokens)].tolist(), strict=True))
