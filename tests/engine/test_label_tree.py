"""The search over label words against scoring every word by brute force."""

import numpy as np
import pytest

from salf.engine.rules import LabelTree, preferences

WORDS = {
    "very negative": [7, 1],
    "negative": [1],
    "neutral": [2, 2, 3],
    "positive": [4, 9],
    "very positive": [7, 4, 9],
    "very mixed": [7, 5, 5],
}
VOCABULARY = 12


def language_model(seed):
    """Log probabilities of the next token for any beginning, fixed by the seed."""

    def following(example, path):
        rng = np.random.default_rng([seed, example, *path])
        logits = rng.normal(scale=2.0, size=VOCABULARY)
        return logits - np.log(np.exp(logits).sum())

    return following


@pytest.mark.parametrize("seed", range(5))
def test_the_preferred_label_is_the_best_of_all(seed):
    model, tree = language_model(seed), LabelTree.of(WORDS)
    cut = {"very negative": 2, "negative": 1, "neutral": 1, "positive": 1, "very positive": 2, "very mixed": 2}
    found = preferences(tree, [model(i, ()) for i in range(100)], lambda asked: [model(i, path) for i, path in asked])
    for i, (label, nats) in enumerate(found):
        scores = [sum(model(i, tuple(path[:n]))[path[n]] for n in range(cut[w])) for w, path in WORDS.items()]
        assert label == int(np.argmax(scores))
        assert nats == pytest.approx(max(scores))


def test_words_with_their_own_first_token_need_no_second_look():
    tree = LabelTree.of({"a": [1, 5], "b": [2], "c": [3, 3]})
    root = {1: -2.0, 2: -1.0, 3: -4.0}
    assert preferences(tree, [root], lambda asked: pytest.fail(f"asked for {asked}"))[0][0] == 1


@pytest.mark.parametrize("seed", range(5))
def test_words_that_close_with_an_end_token_are_scored_to_it(seed):
    """One to twelve, a token a digit: 1 begins 10, 11 and 12, and the sums run over all tokens of each."""
    model, end = language_model(seed), 11
    words = {str(n): [*map(int, str(n)), end] for n in range(1, 13)}
    tree = LabelTree.of(words, whole=True)
    found = preferences(tree, [model(i, ()) for i in range(100)], lambda asked: [model(i, path) for i, path in asked])
    chosen = set()
    for i, (label, nats) in enumerate(found):
        scores = [sum(model(i, tuple(p[:n]))[p[n]] for n in range(len(p))) for p in words.values()]
        assert label == int(np.argmax(scores))
        assert nats == pytest.approx(max(scores))
        chosen.add(tree.labels[label])
    assert {"1", "10", "12"} & chosen


def test_a_word_that_begins_another_is_refused():
    with pytest.raises(ValueError, match="'art'"):
        LabelTree.of({"art": [1], "art history": [1, 2]})
