"""Near-duplicate texts: the Jaccard similarity of their trigrams of words and signs, without comparing all pairs.

Two sets of similarity t or more share at least ⌈t·|x|⌉ elements, so any |x| − ⌈t·|x|⌉ + 1 elements of x hold one
that y has too. With all elements in one global order, rarest first, it is enough to look at so long a prefix of
both (prefix filtering: Chaudhuri, Ganti, Kaushik 2006; Bayardo, Ma, Srikant 2007, §3). Rare trigrams stand in few
texts, which keeps the candidates few; these are compared in full, and nothing is missed.

Rows generated from a template have no rare trigrams: every row would be every other's candidate. So the work per
text is bounded: at most ``COMPARED`` candidates are compared, those of the rarest trigrams first. A text with more
candidates may keep a near-duplicate among the others; equal ones are always found.
"""

import math
import re
import unicodedata
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import chain
from typing import Final

import regex

Shingle = tuple[str, ...]

COMPARED: Final = 20  # candidates of one text

_ORDER: Final = 3  # tokens in a shingle
_ROUNDING: Final = 1e-9

# Letters of scripts that put no spaces between words.
_UNSPACED: Final = (
    r"[\p{L}&&[\p{Han}\p{scx=Hiragana}\p{scx=Katakana}\p{Bopomofo}\p{Yi}\p{Tibetan}\p{Javanese}\p{Balinese}\p{LB=SA}]]"
)
_TOKEN: Final = regex.compile(rf"(?V1)(?:[0-9a-z_]|[\w--{_UNSPACED}])+|\S\p{{M}}*")  # the first class is the faster
_ASCII_TOKEN: Final = re.compile(r"[0-9a-z_]+|[^\t-\r ]")  # the same for plain ASCII, three times as fast
_INVISIBLE: Final = regex.compile(r"\p{Default_Ignorable_Code_Point}")
_ENOUGH: Final = rf"(?:[\p{{L}}\p{{M}}]{{2}}|{_UNSPACED})"  # of a word, not to be a variable's name
_WORD: Final = regex.compile(rf"(?V1){_UNSPACED}|[\p{{L}}\p{{M}}]{{2,}}")
_FORMAL: Final = regex.compile(r"[\p{Sm}{}\[\]\\^_*]|(?<=\w)\(")  # signs of mathematics and code
_WORDS_PER_FORMAL: Final = 4  # fewer: not prose
_MARK_BEYOND_ASCII: Final = regex.compile(r"(?V1)[[\p{Terminal_Punctuation}\p{Quotation_Mark}…¿¡]--[\x00-\x7f]]")
_MARK: Final = regex.compile(
    rf"""(?V1)(?<={_ENOUGH}|\))\s*[.,;:!?"']+(?=\s|$|{_UNSPACED})"""  # ends a word
    rf"""|(?<={_ENOUGH})(?:[,;!?]|\.\.+|\s*\p{{Pd}}+\s*)(?={_ENOUGH})"""  # parts two, a space forgotten
    r"""|(?<=\w)[.,;:?"']+(?=\s|$)"""  # ends a number or a letter: there "!" may be the factorial
    rf"""|(?<!\S)["']+(?={_ENOUGH})|(?<=\p{{L}})\s?'(?=\p{{L}})"""  # begins a word, or is an apostrophe
)


def shingles(text: str) -> frozenset[Shingle]:
    """The set of trigrams of a text's tokens; a text of one or two tokens is one shingle.

    A token is a word, a letter of a script without spaces, or any other sign. Case, Unicode's forms of one character,
    invisible characters and spacing do not count. In prose, punctuation and quotes do not count either where
    they end or begin a word. Any other sign does: brackets, operators, currencies, emoji.
    """
    plain = _plain(text)
    tokens = (_ASCII_TOKEN if plain.isascii() else _TOKEN).findall(plain)
    if len(tokens) < _ORDER:
        return frozenset([tuple(tokens) or (text.strip(),)])
    return frozenset(zip(*(tokens[start:] for start in range(_ORDER)), strict=False))


class NearDuplicates:
    """Texts by the rarest of their shingles, each shingle as its rank in the global order."""

    def __init__(self, texts: Iterable[str], threshold: float) -> None:
        """Index the texts; a Jaccard similarity of ``threshold``, in (0, 1], makes a near-duplicate.

        Time grows with the number of texts, memory with their trigrams.
        """
        self.threshold = threshold
        known = dict.fromkeys(map(shingles, texts))
        frequency = Counter(chain.from_iterable(known))
        ordered = sorted(sorted(frequency), key=frequency.__getitem__)
        self.rank = {shingle: at for at, shingle in enumerate(ordered)}
        self.references = [array("I", sorted(map(self.rank.__getitem__, one))) for one in known]
        self.equal = {ranks.tobytes() for ranks in self.references}
        self.postings: defaultdict[int, list[int]] = defaultdict(list)
        for position, ranks in enumerate(self.references):
            for rank in ranks[: self._prefix(len(ranks))]:
                self.postings[rank].append(position)

    def hold_one_like(self, one: frozenset[Shingle]) -> bool:
        """Whether an indexed text is a near-duplicate of the text of these shingles."""
        ranks = array("I", sorted(rank for rank in map(self.rank.get, one) if rank is not None))
        unknown = len(one) - len(ranks)  # these come first in the order: no indexed text holds them
        if not unknown and ranks.tobytes() in self.equal:
            return True
        prefix = ranks[: max(self._prefix(len(one)) - unknown, 0)]
        seen, own = set[int](), frozenset(ranks)
        for position in chain.from_iterable(self.postings.get(rank, ()) for rank in prefix):
            if len(seen) == COMPARED:
                return False
            if position not in seen and self._alike(own, self.references[position], len(one)):
                return True
            seen.add(position)
        return False

    def _alike(self, own: frozenset[int], other: "array[int]", size: int) -> bool:
        """Whether a text of ``size`` shingles, of which ``own`` are known, is near enough to an indexed one."""
        shared = len(own.intersection(other))
        return shared / (size + len(other) - shared) >= self.threshold

    def _prefix(self, size: int) -> int:
        return size - math.ceil(self.threshold * size - _ROUNDING) + 1


def _plain(text: str) -> str:
    """One form of a text for all that differ in what does not count; spaces still part its words."""
    if not text.isascii():
        text = _INVISIBLE.sub("", unicodedata.normalize("NFC", text))
    text = text.casefold()
    formal = len(_FORMAL.findall(text))
    words = len(_WORD.findall(text)) if formal else _WORD.search(text) is not None
    if _WORDS_PER_FORMAL * formal >= words:
        return text
    text = text.replace("`", "")  # Markdown's
    return _MARK.sub(" ", text if text.isascii() else _MARK_BEYOND_ASCII.sub(" ", text))
