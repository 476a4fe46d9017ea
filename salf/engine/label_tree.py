"""Which label word does a model prefer? Exact search over the words' tokens; no model in here.

A label is scored by the probability that the model gives to the shortest beginning of its word that
no other label's word shares: what it would write next, after the point where it has decided. Words
that differ in their first token need one look at the model. Where some begin alike ("very negative",
"very positive"), a beginning's probability bounds all words behind it, so that the best word is found
by opening the most probable beginning first, mostly without looking at the others.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

Path = tuple[int, ...]
LogProbabilities = Mapping[int, float]  # next token → log probability, for the tokens that continue some label


@dataclass(frozen=True)
class LabelTree:
    """The tokens of all label words as a tree.

    Attributes:
        labels: the labels.
        leaf: shortest distinguishing beginning, or the whole word → index of its label.
        branches: inner beginning (the empty one first) → the tokens that may follow.
    """

    labels: tuple[str, ...]
    leaf: Mapping[Path, int]
    branches: Mapping[Path, tuple[int, ...]]

    @classmethod
    def of(cls, words: Mapping[str, Sequence[int]], *, whole: bool = False) -> Self:
        """Build the tree from label → token ids of its word.

        ``whole``: words are scored to their last token. It ends the answer where one word begins another (1 and 10):
        with it every label is an answer of its own, and none has the advantage of a shorter sum.

        Raises:
            ValueError: one word's tokens are the beginning of another's.
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


@dataclass(frozen=True)
class Preference:
    """The label that a model prefers, as its index, and the log probability of its beginning."""

    label: int
    log_probability: float


Look = Callable[[Sequence[tuple[int, Path]]], Sequence[LogProbabilities]]


def preferences(tree: LabelTree, roots: Sequence[LogProbabilities], look: Look) -> list[Preference]:
    """The most probable label of every example.

    Args:
        tree: the labels.
        roots: for every example, log probabilities of the first answer token, for ``tree.branches[()]``.
        look: for (example index, beginning of an answer), log probabilities of the next token. Called
            with all open questions at once, so that they can be answered in batches.
    """
    frontiers: list[dict[Path, float]] = [{(token,): root[token] for token in tree.branches[()]} for root in roots]
    found: dict[int, Preference] = {}
    while len(found) < len(roots):
        questions = []
        for index, frontier in enumerate(frontiers):
            if index in found:
                continue
            best = max(frontier, key=lambda path: (frontier[path], path))
            if best in tree.leaf:
                found[index] = Preference(tree.leaf[best], frontier[best])
            else:
                questions.append((index, best))
        for (index, path), following in zip(questions, look(questions) if questions else [], strict=True):
            so_far = frontiers[index].pop(path)
            frontiers[index].update({(*path, t): so_far + following[t] for t in tree.branches[path]})
    return [found[index] for index in range(len(roots))]
