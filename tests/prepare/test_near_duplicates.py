import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.prepare.near_duplicates import have_near_duplicate, jaccard, shingles

WORDS = ["a", "b", "c", "d"]
TEXTS = st.lists(st.lists(st.sampled_from(WORDS), max_size=9).map(" ".join), max_size=8)


def brute_force(texts: list[str], references: list[str], threshold: float) -> list[bool]:
    """Every pair, with sets of trigrams made another way."""

    def trigrams(text: str) -> set[str]:
        words = text.lower().split()
        return {" ".join(words[at : at + 3]) for at in range(max(1, len(words) - 2))}

    return [
        any(len(trigrams(t) & trigrams(r)) / len(trigrams(t) | trigrams(r)) >= threshold for r in references)
        for t in texts
    ]


@given(TEXTS, TEXTS, st.sampled_from([0.1, 0.25, 0.5, 0.6, 0.75, 0.8, 0.9, 1.0]))
def test_finds_what_comparing_all_pairs_finds(texts, references, threshold):
    assert have_near_duplicate(texts, references, threshold) == brute_force(texts, references, threshold)


def test_case_and_punctuation_do_not_count():
    assert have_near_duplicate(["Return the sum, of ALL values."], ["return the sum of all values"], 1.0) == [True]


def test_similarity_of_a_known_pair():
    # trigrams abc bcd cde and bcd cde def: 2 shared of 4
    assert jaccard(shingles("a b c d e"), shingles("b c d e f")) == pytest.approx(0.5)


def test_short_texts_match_only_the_same_words():
    assert have_near_duplicate(["two words", "two", "", "??"], ["Two words!", "words two"], 0.8) == [
        True,
        False,
        False,
        False,
    ]


def test_does_not_compare_all_pairs():
    draw = random.Random(0)
    texts = [" ".join(str(draw.randrange(3000)) for _ in range(20)) for _ in range(8000)]
    started = time.process_time()
    found = have_near_duplicate(texts[:4000], texts[4000:] + texts[:2], 0.8)
    assert sum(found) == 2
    assert time.process_time() - started < 10  # all 16 million pairs would take far longer
