"""What a model says at the answer positions: logits, losses, preferred labels."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from stages.common.batches import Batch, Example, inference_batches
from stages.common.label_tree import LabelTree, LogProbabilities, Path, preferences
from stages.common.models.adapter import CausalModel
from stages.common.models.walk import Beginning, embed, run, walk_beginning
from stages.common.runtime import Runtime


@dataclass(frozen=True)
class Start:
    """Where a pass through the layers begins: at the embeddings, or at a boundary whose states are known.

    Attributes:
        space: the space that the states are of.
        shared: P, tokens of the beginning that all prompts share.
        beginning: gives that beginning's states, [1, P, hidden], or ``None`` where P is 0.
        states: gives a batch's states behind the beginning, [B, T, hidden].
    """

    space: int
    shared: int
    beginning: Callable[[], Tensor | None]
    states: Callable[[Batch], Tensor]

    @classmethod
    def at_embeddings(cls, model: CausalModel, beginning: Sequence[int]) -> Self:
        """Start at space 0; ``beginning`` holds the P token ids that all prompts share."""
        ids = torch.tensor([list(beginning)], dtype=torch.long, device=model.device)
        return cls(0, len(beginning), lambda: embed(model, ids) if beginning else None, lambda b: embed(model, b.ids))

    def walk_beginning(self, model: CausalModel) -> Beginning | None:
        """The shared beginning, walked from here to the last layer."""
        return walk_beginning(model, self.beginning(), self.space, model.depth)

    def answer_logits(self, model: CausalModel, batch: Batch, beginning: Beginning | None) -> Tensor:
        """Logits of the batch's N answer positions, [N, vocabulary]: the head sees no other position."""
        last = run(model, self.states(batch), self.space, model.depth, beginning)
        return model.logits(batch.answer_states(last))


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
        embeddings = Start.at_embeddings(self.model, examples[0].prompt_ids[:shared])
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
        """Which examples, their batch, and log probabilities at its N answer positions, [N, vocabulary]."""
        with self.runtime.autocast():
            beginning = start.walk_beginning(self.model)
            for index in inference_batches([len(e.inputs) - start.shared for e in examples], self.batch_tokens):
                batch = Batch.of(examples, index, start.shared).to(self.model.device)
                yield index, batch, start.answer_logits(self.model, batch, beginning).float().log_softmax(-1)

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
