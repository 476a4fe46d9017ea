"""What a model says at the answer positions: logits, losses, preferred labels."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor

from stages.common.batches import Batch, Example, inference_batches
from stages.common.label_tree import LabelTree, LogProbabilities, Path, preferences
from stages.common.models.adapter import CausalModel
from stages.common.models.attention import Packing
from stages.common.models.walk import behind, embed, run_to_answers, walk_beginning
from stages.common.runtime import Runtime


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
        predicted: the preferred label; ``None`` for free answers.
        probability: of the preferred label's distinguishing beginning; ``None`` for free answers.
    """

    loss: float
    token_losses: tuple[float, ...]
    predicted: str | None
    probability: float | None


class Reader:
    """Reads examples with a model, without gradients."""

    def __init__(self, model: CausalModel, runtime: Runtime, tree: LabelTree | None, batch_tokens: int) -> None:
        self.model, self.runtime, self.tree, self.batch_tokens = model, runtime, tree, batch_tokens

    @torch.no_grad()
    def read(
        self,
        examples: Sequence[Example],
        shared: int,
        start: Start | None = None,
        advance: Callable[[int], None] = lambda _: None,
    ) -> list[Answer]:
        """Losses and, for classification, preferred labels of ``examples``.

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
        if self.tree is None:
            return [Answer(sum(losses) / len(losses), losses, None, None) for losses in token_losses]
        ranked = preferences(self.tree, roots, lambda questions: self._look(examples, embeddings, questions))
        return [
            Answer(
                sum(losses) / len(losses),
                losses,
                self.tree.labels[preference.label],
                min(1.0, float(torch.tensor(preference.log_probability).exp())),
            )
            for losses, preference in zip(token_losses, ranked, strict=True)
        ]

    def _teacher_forced(
        self, examples: Sequence[Example], start: Start, advance: Callable[[int], None]
    ) -> tuple[list[tuple[float, ...]], list[LogProbabilities]]:
        losses: list[tuple[float, ...]] = [()] * len(examples)
        roots: list[LogProbabilities] = [{}] * len(examples)
        for index, batch, log_probabilities in self._batches(examples, start):
            nats = -log_probabilities.gather(1, batch.targets[:, None])[:, 0]
            rows = batch.rows.cpu()
            for row, i in enumerate(index):
                losses[i] = tuple(nats[rows == row].tolist())
            if self.tree is not None:
                first = self._children(log_probabilities[batch.answer_index == 0], ())
                for i, root in zip(index, first, strict=True):
                    roots[i] = root
            advance(len(index))
        return losses, roots

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
        self, examples: Sequence[Example], start: Start, questions: Sequence[tuple[int, Path]]
    ) -> list[LogProbabilities]:
        """Next-token log probabilities behind prompt + beginning of an answer."""
        # The last token of an answer is never read, only predicted: any token will do.
        asked = [
            Example(examples[i].example_id, None, "", "", examples[i].prompt_ids, (*path, 0)) for i, path in questions
        ]
        answers: list[LogProbabilities] = [{}] * len(asked)
        for index, _, log_probabilities in self._batches(asked, start):
            last = torch.tensor([len(asked[i].answer_ids) for i in index]).cumsum(0) - 1
            for row, i in zip(last.tolist(), index, strict=True):
                answers[i] = self._children(log_probabilities[row][None], questions[i][1])[0]
        return answers

    def _children(self, log_probabilities: Tensor, path: Path) -> list[LogProbabilities]:
        assert self.tree is not None
        tokens = self.tree.branches[path]
        rows = log_probabilities[:, list(tokens)].tolist()
        return [dict(zip(tokens, row, strict=True)) for row in rows]
