"""Which candidate does a model prefer? Scores of whole answers; no model in here.

A candidate is scored by the log probability that the model gives to its tokens behind the prompt. Longer ones have
lower probabilities whatever they say, so the field also compares means: per token, or per character, which does not
depend on how a tokenizer cuts (``acc_norm`` of the LM Evaluation Harness; GPT-3 paper, arXiv 2005.14165, §2.4).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from salf.engine.batches import Candidate
from salf.settings import ChoiceScore

_LENGTHS: Final = {"sum": lambda _: 1, "token": lambda one: len(one.ids), "character": lambda one: len(one.text)}


@dataclass(frozen=True)
class Choice:
    """The preferred candidate, as its index, and its share of the scores (softmax over the candidates)."""

    index: int
    share: float


@dataclass(frozen=True)
class CandidateRule:
    """How candidates are compared: ``score`` is a parameter of ``prepare`` and stands in its ``meta.json``."""

    score: ChoiceScore

    def choose(self, candidates: Sequence[Candidate], log_probabilities: Sequence[float]) -> Choice:
        """The best candidate, of equals the first.

        Args:
            candidates: of one example.
            log_probabilities: of each, summed over its tokens, in nats.
        """
        length = _LENGTHS[self.score]
        scores = [nats / length(one) for one, nats in zip(candidates, log_probabilities, strict=True)]
        best = max(range(len(scores)), key=lambda at: (scores[at], -at))
        return Choice(best, 1 / sum(math.exp(score - scores[best]) for score in scores))
