"""Near-duplicate texts by the Jaccard similarity of their word trigrams, exactly and without comparing all pairs.

Two sets of similarity t or more share at least ⌈t·|x|⌉ elements, so any |x| − ⌈t·|x|⌉ + 1 elements of x hold one
that y has too. With all elements in one global order, rarest first, it is enough to look at so long a prefix of
both (prefix filtering: Chaudhuri, Ganti, Kaushik 2006; Bayardo, Ma, Srikant 2007, §3). Rare trigrams stand in few
texts, which keeps the candidates few; these are compared in full: nothing is missed and nothing is guessed.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

Shingle = tuple[str, ...]

_ORDER: Final = 3  # words in a shingle
_WORD: Final = re.compile(r"\w+")
_ROUNDING: Final = 1e-9


def shingles(text: str) -> frozenset[Shingle]:
    """The set of word trigrams of a text, in lower case and without punctuation.

    A text of one or two words is one shingle; one without words is a shingle of its characters: such
    texts are near-duplicates only of texts with the same words.
    """
    words = _WORD.findall(text.lower())
    if len(words) < _ORDER:
        return frozenset([tuple(words) or (text.strip(),)])
    return frozenset(zip(*(words[start:] for start in range(_ORDER)), strict=False))


def jaccard(left: frozenset[Shingle], right: frozenset[Shingle]) -> float:
    """|left ∩ right| / |left ∪ right|, in [0, 1]; both not empty."""
    shared = len(left & right)
    return shared / (len(left) + len(right) - shared)


def have_near_duplicate(texts: Sequence[str], references: Sequence[str], threshold: float) -> list[bool]:
    """For each text, whether some reference has a Jaccard similarity of at least ``threshold``, in (0, 1].

    Time grows with the number of texts and of candidates that share a rare trigram, memory with the
    trigrams of the references.
    """
    known = list(dict.fromkeys(map(shingles, references)))
    asked = list(map(shingles, texts))
    frequency = Counter(shingle for group in (known, asked) for one in group for shingle in one)
    index: defaultdict[Shingle, list[int]] = defaultdict(list)
    for position, reference in enumerate(known):
        for shingle in _prefix(reference, frequency, threshold):
            index[shingle].append(position)
    return [
        any(jaccard(one, known[at]) >= threshold for at in _candidates(one, known, index, frequency, threshold))
        for one in asked
    ]


def _candidates(
    one: frozenset[Shingle],
    known: Sequence[frozenset[Shingle]],
    index: defaultdict[Shingle, list[int]],
    frequency: Counter[Shingle],
    threshold: float,
) -> Iterator[int]:
    seen: set[int] = set()
    for shingle in _prefix(one, frequency, threshold):
        for position in index.get(shingle, ()):
            sizes = sorted((len(one), len(known[position])))
            if position not in seen and sizes[0] >= threshold * sizes[1] - _ROUNDING:
                seen.add(position)
                yield position


def _prefix(one: frozenset[Shingle], frequency: Counter[Shingle], threshold: float) -> Iterable[Shingle]:
    ordered = sorted(one, key=lambda shingle: (frequency[shingle], shingle))
    return ordered[: len(ordered) - math.ceil(threshold * len(ordered) - _ROUNDING) + 1]
