"""Scores a task's answers and judges them right or wrong. No model in here; free answers have no rule.

**Label words** (:class:`LabelTree`). A label's score is the probability of the shortest beginning of its word that no
other label's word shares. A beginning's probability bounds all words that continue it ("very negative", "very
positive"), so opening the most probable beginning first finds the best word, mostly without looking at the others.

**Candidates of each example** (:class:`CandidateRule`). A candidate's score is the log probability of its tokens after
the prompt: their sum, or, because longer ones have lower sums whatever they say, the mean per token or per character
(``acc_norm`` of the LM Evaluation Harness; GPT-3 paper, arXiv 2005.14165, §2.4).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Self

from salf.engine.batches import Candidate, Example
from salf.records import PreparedRecord
from salf.settings import ChoiceScore, Outputs

Path = tuple[int, ...]
LogProbabilities = Mapping[int, float]  # next token → log probability, for the tokens that continue some label


@dataclass(frozen=True)
class LabelTree:
    """The tokens of all label words as a tree."""

    labels: tuple[str, ...]  # the labels
    leaf: Mapping[Path, int]  # shortest distinguishing beginning, or the whole word → index of its label
    branches: Mapping[Path, tuple[int, ...]]  # inner beginning (the empty one first) → the tokens that may follow

    @classmethod
    def of(cls, words: Mapping[str, Sequence[int]], *, whole: bool = False) -> Self:
        """Build the tree from label → token ids of its word; no word may begin another (``ValueError``).

        ``whole``: words are scored to their last token, which ends the answer. So every label is an answer of its own,
        and none has the advantage of a shorter sum.
        """
        labels = tuple(words)
        paths = [tuple(words[label]) for label in labels]
        leaf: dict[Path, int] = {}
        branches: dict[Path, set[int]] = {}
        for index, path in enumerate(paths):
            others = paths[:index] + paths[index + 1 :]
            if any(other[: len(path)] == path for other in others):
                raise ValueError(f"the word of {labels[index]!r} is the beginning of another label's word")
            shortest = next(n for n in range(1, len(path) + 1) if all(other[:n] != path[:n] for other in others))
            cut = len(path) if whole else shortest
            leaf[path[:cut]] = index
            for at in range(cut):
                branches.setdefault(path[:at], set()).add(path[at])
        return cls(labels, leaf, {path: tuple(sorted(tokens)) for path, tokens in sorted(branches.items())})


Look = Callable[[Sequence[tuple[int, Path]]], Sequence[LogProbabilities]]


def preferences(tree: LabelTree, roots: Sequence[LogProbabilities], look: Look) -> list[tuple[int, float]]:
    """The most probable label of every example, as its index, and the log probability of its beginning.

    ``roots``: for every example, log probabilities of the first answer token, for ``tree.branches[()]``. ``look``: for
    (example index, beginning of an answer), those of the next token; called with all open questions at once.
    """
    frontiers: list[dict[Path, float]] = [{(token,): root[token] for token in tree.branches[()]} for root in roots]
    found: dict[int, tuple[int, float]] = {}
    while len(found) < len(roots):
        questions = []
        for index, frontier in enumerate(frontiers):
            if index in found:
                continue
            best = max(frontier, key=lambda path: (frontier[path], path))
            if best in tree.leaf:
                found[index] = tree.leaf[best], frontier[best]
            else:
                questions.append((index, best))
        for (index, path), following in zip(questions, look(questions) if questions else [], strict=True):
            so_far = frontiers[index].pop(path)
            frontiers[index].update({(*path, t): so_far + following[t] for t in tree.branches[path]})
    return [found[index] for index in range(len(roots))]


_LENGTHS: Final = {"sum": lambda _: 1, "token": lambda one: len(one.ids), "character": lambda one: len(one.text)}


@dataclass(frozen=True)
class CandidateRule:
    """Compares candidates; ``score`` is a parameter of ``prepare``, which records it in ``meta.json``."""

    score: ChoiceScore

    def choose(self, candidates: Sequence[Candidate], log_probabilities: Sequence[float]) -> tuple[int, float]:
        """The index of the best candidate, of equals the first, and its share of the scores (softmax over them).

        Given are log probabilities summed over each one's tokens, in nats.
        """
        length = _LENGTHS[self.score]
        scores = [nats / length(one) for one, nats in zip(candidates, log_probabilities, strict=True)]
        best = max(range(len(scores)), key=lambda at: (scores[at], -at))
        return best, 1 / sum(math.exp(score - scores[best]) for score in scores)


Rule = LabelTree | CandidateRule | None


def answer_outputs(
    rule: Rule, examples: Sequence[Example], over: Outputs, vocabulary: int
) -> tuple[list[int] | slice, int]:
    """The columns of logits that two models are compared by, and their number.

    With ``over`` answers, the tokens of the label words, or of candidates of one token each; otherwise all of them.
    """
    words = rule.branches.values() if isinstance(rule, LabelTree) else []
    candidates = [one.ids for example in examples for one in example.candidates]
    found = {token for tokens in (*words, *candidates) for token in tokens}
    few = over == "answers" and found and all(len(ids) == 1 for ids in candidates)
    return (sorted(found), len(found)) if few else (slice(None), vocabulary)


def rule_of(meta: PreparedRecord) -> Rule:
    """The rule of a prepared dataset."""
    if meta.labels:
        words = {label.label: label.token_ids for label in meta.labels}
        return LabelTree.of(words, whole=meta.end_token_id is not None)
    return CandidateRule(meta.choice_score) if meta.choice_score else None
