"""What the examples are told apart by: their labels, or the beginnings of free answers."""

from collections import Counter
from collections.abc import Sequence
from itertools import takewhile

import numpy as np
from numpy.typing import NDArray

from salf.engine.batches import Example
from salf.errors import UserError

Classes = NDArray[np.int64]


def classes_of(examples: Sequence[Example], kind: str) -> Classes:
    """The class of each example as a number 0..C-1: its label, or the first token in which free answers differ.

    Args:
        examples: the examples.
        kind: the signal that asks, for the error.

    Raises:
        UserError: they form one class only, or most of them are the only one of their class.
    """
    # A chat template may begin all answers alike (an empty block of thoughts).
    places = zip(*(example.answer_ids for example in examples), strict=False)
    first = sum(1 for _ in takewhile(lambda tokens: len(set(tokens)) == 1, places))
    keys = [example.answer_ids[first : first + 1] if example.label is None else example.label for example in examples]
    counts = Counter(keys)
    alone = sum(count == 1 for count in counts.values())
    what = "answers' first tokens" if examples[0].label is None else "labels"
    if len(counts) < 2:
        raise UserError(f"signals.kinds: {kind} tells classes apart, and the {what} of the sample are all the same")
    if 2 * alone > len(keys):
        raise UserError(
            f"signals.kinds: {kind} tells classes apart, and {alone} of the sample's {len(keys)} {what} occur once; "
            f"raise signals.sample, or leave {kind} out of signals.kinds"
        )
    number = {key: index for index, key in enumerate(sorted(counts))}
    return np.array([number[key] for key in keys])
