"""Divides examples into splits: groups stay whole, training labels are balanced, no row leaks.

Every draw orders the examples by a hash of the seed and a name: an added row does not reshuffle the others.
"""

import math
import re
import unicodedata
from array import array
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Final

import pyarrow.parquet
import regex

from salf.errors import UserError, reading
from salf.settings import TASKS
from stages.common.params import Data, Limits, Named
from stages.prepare.rows import INVISIBLE, SPLITS, TEST, TRAIN, VALIDATION, Example, Lost, draw_key, listed

Examples = dict[str, list[Example]]
Shingle = tuple[str, ...]
Labels = Mapping[str | None, float]  # label → number of examples

COMPARED: Final = 20  # candidates of one text

_ORDER: Final = 3  # tokens in a shingle
_ROUNDING: Final = 1e-9

# Letters of scripts that put no spaces between words.
_UNSPACED: Final = (
    r"[\p{L}&&[\p{Han}\p{scx=Hiragana}\p{scx=Katakana}\p{Bopomofo}\p{Yi}\p{Tibetan}\p{Javanese}\p{Balinese}\p{LB=SA}]]"
)
_TOKEN: Final = regex.compile(rf"(?V1)(?:[0-9a-z_]|[\w--{_UNSPACED}])+|\S\p{{M}}*")  # the first class is the faster
_ASCII_TOKEN: Final = re.compile(r"[0-9a-z_]+|[^\t-\r ]")  # the same for plain ASCII, three times as fast
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

_DEFAULT_SHARES = {VALIDATION: 0.1, TEST: 0.2}  # carved out where data.limits leaves a split open


def carve(examples: Examples, limits: Limits, seed: int) -> Examples:
    """Carve absent splits out of the training split, in proportion to their limits, or 10 % and 20 % without limits.

    Groups stay whole; labels are spread in proportion (iterative stratification after Sechidis, Tsoumakas, Vlahavas
    2011, on groups): each group goes where most of it still fits, then where the largest share is still missing.
    """
    absent = [split for split in SPLITS if split not in examples]
    if not absent:
        return examples
    shares = _shares(limits, absent)
    totals = Counter(example.label for example in examples[TRAIN])
    missing = {split: {label: share * n for label, n in totals.items()} for split, share in shares.items()}
    carved: Examples = {split: [] for split in shares}
    for group in _groups(examples[TRAIN], seed):
        labels = Counter(example.label for example in group)
        split = max(shares, key=lambda split: _fit(labels, missing[split], shares[split], totals))
        carved[split] += group
        for label, n in labels.items():
            missing[split][label] -= n
    return {**examples, **carved}


def named(examples: Examples, wanted: Named) -> Examples:
    """Take exactly the rows that a table names, in its order, whatever split of the source they are in."""
    path = Path(wanted.table).expanduser()
    with reading(path, "not a Parquet table of name, split and example_id"):
        table = pyarrow.parquet.read_table(path, columns=["name", "split", "example_id"]).to_pylist()
    rows = [row for row in table if row["name"] == wanted.name]
    ids = [row["example_id"] for row in rows]
    known = {example.example_id: example for part in examples.values() for example in part}
    splits = dict.fromkeys((*SPLITS, *examples))
    faults = {
        "no rows; there are": {row["name"] for row in table} if not rows else (),
        f"splits other than {', '.join(splits)}": {row["split"] for row in rows} - {*splits},
        "rows listed twice": [name for name, n in Counter(ids).items() if n > 1],
        "rows that are not in the data, or cannot be used": [name for name in ids if name not in known],
    }
    for fault, found in faults.items():
        if found:
            these = listed(sorted(map(repr, found)), 3)
            raise UserError(f"data.examples: {wanted.name!r} in {path} has {fault}: {these}")
    return {split: [known[row["example_id"]] for row in rows if row["split"] == split] for split in splits}


def separate(examples: Examples, threshold: float | None) -> tuple[Examples, Lost]:
    """Drop rows that leak from one split into another, and rows that occur twice in the training split.

    Test and shifted splits are left as they are. Rows of validation that share a group with one of them or are
    near-duplicates of its rows are dropped, and rows of training that do so with any of these. Without a threshold,
    texts are not compared.
    """
    dropped = Lost()
    kept: Examples = {name: part for name, part in examples.items() if name not in (TRAIN, VALIDATION)}
    guards: list[tuple[str, set[str | None], NearDuplicates | None]] = []
    for name, others in ((VALIDATION, list(kept)), (TRAIN, [VALIDATION])):
        for other in others:
            index = NearDuplicates([one.text for one in kept[other]], threshold) if threshold is not None else None
            guards.append((other, {one.group for one in kept[other]} - {None}, index))
        kept[name] = []
        for example in examples[name]:
            if reason := _leak(example, guards):
                dropped[name, f"{name} row {reason}"] += 1
            else:
                kept[name].append(example)
    kept[TRAIN] = _distinct(kept[TRAIN], dropped)
    return kept, dropped


def _leak(example: Example, guards: Iterable[tuple[str, set[str | None], "NearDuplicates | None"]]) -> str | None:
    """Why a row may not be trained on, in view of held-out splits: their names, groups and texts."""
    like: frozenset[Shingle] | None = None
    for name, groups, texts in guards:
        if example.group in groups:
            return f"of a group that {name} holds"
        if texts and texts.hold_one_like(like := like or shingles(example.text)):
            return f"that is a near-duplicate of one in {name}"
    return None


def draw(examples: Examples, data: Data) -> tuple[Examples, Lost]:
    """Draw the rows to keep within the limits, in a drawn order.

    A split that ``data.balance`` names and its limit cuts gets as many rows of every label as there are; any other
    keeps the frequencies of its labels. Rows whose label is in no drawn row of train are refused.
    """
    kept = {TRAIN: _limit(examples[TRAIN], TRAIN, data)}
    labels = {example.label for example in kept[TRAIN]}
    _, refused = of_labels(TRAIN, examples[TRAIN], labels, "of which data.limits.train draws no row")
    for split in (VALIDATION, *(name for name in examples if name not in (TRAIN, VALIDATION))):
        known, unknown = of_labels(split, examples[split], labels)
        refused += unknown
        kept[split] = _limit(known, split, data)
    return kept, refused


def of_labels(
    split: str, examples: Sequence[Example], labels: Collection[str | None], why: str = "that train lacks"
) -> tuple[list[Example], Lost]:
    """Keep the examples of a split that have one of the labels; returned with the others, counted."""
    known = [example for example in examples if example.label in labels]
    lacking = sorted({str(example.label) for example in examples if example.label not in labels})
    reason = f"with a label {why} ({listed([repr(label) for label in lacking], 3)})"
    return known, +Lost({(split, reason): len(examples) - len(known)})


def check_usable(splits: Mapping[str, Sequence[Example]], carved: Collection[str], lost: Lost) -> None:
    """Refuse an empty split, or a training split of one class.

    The line says what became of the rows, those of train for a split that was carved out of it.
    """
    for split, rows in splits.items():
        labels = {row.label for row in rows}
        single = split == TRAIN and len(labels) == 1 and None not in labels
        if rows and not single:
            continue
        fault = f"only one class ({rows[0].label!r}) in" if single else "no row is left of"
        of, origin = (TRAIN, ", which is carved out of train") if split in carved else (split, "")
        gone = [f"{n:,} {reason}" for (where, reason), n in lost.most_common() if where == of]
        fate = f"; of {of} were left out: {listed(gone, 5, '; ')}" if gone else ""
        advice = "give more rows or groups, or name a split in data.splits"
        raise UserError(f"data: {fault} {split}{origin}; {advice}{fate}")


def _shares(limits: Limits, absent: Sequence[str]) -> dict[str, float]:
    wanted = limits.model_dump(include={TRAIN, *absent})
    if None not in wanted.values():
        return {split: limit / sum(wanted.values()) for split, limit in wanted.items()}
    shares = {split: _DEFAULT_SHARES[split] for split in absent}
    return {TRAIN: 1 - sum(shares.values()), **shares}


def _groups(examples: Iterable[Example], seed: int) -> list[list[Example]]:
    groups: defaultdict[tuple[bool, str], list[Example]] = defaultdict(list)
    for example in examples:
        groups[example.group is None, example.group or example.example_id].append(example)
    return [groups[key] for key in sorted(groups, key=lambda key: draw_key(seed, key[1]))]


def _fit(labels: Labels, missing: Labels, share: float, totals: Labels) -> tuple[float, float]:
    fits = sum(min(n, max(missing[label], 0)) for label, n in labels.items()) / sum(labels.values())
    lacks = sum(n * missing[label] / (share * totals[label]) for label, n in labels.items())
    return fits, lacks


def _distinct(train: list[Example], dropped: Lost) -> list[Example]:
    kept: dict[tuple[str, ...], Example] = {}
    for example in train:  # the same question about other candidates is another one
        first = kept.setdefault((example.text, *example.candidates), example)
        if first is not example:
            same = (first.label, first.answer) == (example.label, example.answer)
            dropped[TRAIN, "train row that occurs twice" if same else "train row seen with another answer"] += 1
    return list(kept.values())


def _limit(examples: list[Example], split: str, data: Data) -> list[Example]:
    drawn = sorted(examples, key=lambda example: draw_key(data.seed, example.example_id))
    limit = data.limits.of(split)
    if limit is None or len(drawn) <= limit:
        return drawn
    if TASKS[data.task].labels and data.balance in (split, "all"):
        return _balanced(drawn, limit)
    return drawn[:limit]


def _balanced(drawn: list[Example], limit: int) -> list[Example]:
    counts = Counter(example.label for example in drawn)
    room: dict[str | None, int] = {}
    rarest_first = sorted(counts, key=lambda label: (counts[label], str(label)))
    for position, label in enumerate(rarest_first):  # what a rare label cannot fill, the others share
        room[label] = min(counts[label], (limit - sum(room.values())) // (len(counts) - position))
    kept = []
    for example in drawn:
        if room[example.label] > 0:
            room[example.label] -= 1
            kept.append(example)
    return kept


def shingles(text: str) -> frozenset[Shingle]:
    """The set of trigrams of a text's tokens; a text of one or two tokens is one shingle.

    A token is a word, a letter of a script without spaces, or any other sign. Case, Unicode's forms of one character,
    invisible characters and spacing do not count, nor does punctuation around the words of prose.
    """
    plain = _plain(text)
    tokens = (_ASCII_TOKEN if plain.isascii() else _TOKEN).findall(plain)
    if len(tokens) < _ORDER:
        return frozenset([tuple(tokens) or (text.strip(),)])
    return frozenset(zip(*(tokens[start:] for start in range(_ORDER)), strict=False))


class NearDuplicates:
    """Texts by the rarest of their shingles, found by the Jaccard similarity of these without comparing all pairs.

    Two sets of similarity t or more share at least ⌈t·|x|⌉ elements, so any |x| − ⌈t·|x|⌉ + 1 elements of x hold one
    that y has too. With all elements in one global order, rarest first, it is enough to look at a prefix of that
    length of both (prefix filtering: Chaudhuri, Ganti, Kaushik 2006; Bayardo, Ma, Srikant 2007, §3).

    At most ``COMPARED`` candidates are compared in full, those of the rarest trigrams first: rows generated from a
    template have no rare ones. A text with more candidates may keep a near-duplicate; equal texts are always found.
    """

    def __init__(self, texts: Iterable[str], threshold: float) -> None:
        """Index the texts; a similarity of ``threshold``, in (0, 1], makes a near-duplicate."""
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
        text = INVISIBLE.sub("", unicodedata.normalize("NFC", text))
    text = text.casefold()
    formal = len(_FORMAL.findall(text))
    words = len(_WORD.findall(text)) if formal else _WORD.search(text) is not None
    if _WORDS_PER_FORMAL * formal >= words:
        return text
    text = text.replace("`", "")  # Markdown's
    return _MARK.sub(" ", text if text.isascii() else _MARK_BEYOND_ASCII.sub(" ", text))
