"""What a data source hands over, and how its values are read as text."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

TRAIN: Final = "train"
VALIDATION: Final = "validation"
TEST: Final = "test"
SPLITS: Final = (TRAIN, VALIDATION, TEST)


@dataclass(frozen=True)
class Row:
    """One row of a source: a stable unique name and its columns."""

    example_id: str
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Loaded:
    """All rows of a source, by split; a split that the source does not have is absent.

    Attributes:
        rows: split name (train, validation, test) to rows, in the source's order.
        columns: every column that the source has, whether a row holds it or not.
        identity: what was read, with versions or hashes; stands in ``meta.json``.
        refused: reason to count, for what the source itself left out.
    """

    rows: dict[str, list[Row]]
    columns: tuple[str, ...]
    identity: dict[str, Any]
    refused: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class Example:
    """A row with its template filled in.

    Attributes:
        text: the values of the template's columns, joined: what a bag-of-words baseline sees.
        answer: the label's word or the free answer, without the white space that sets it off.
        label: ``None`` where the answer is free.
    """

    example_id: str
    group: str | None
    label: str | None
    text: str
    prompt: str
    answer: str


def as_text(value: Any) -> str:
    """A value as text: nothing for a missing one, ``1`` for 1.0, ``true`` for a boolean.

    Labels reach us as numbers from one file format and as words from another; one spelling makes
    ``label_words`` match in all of them.
    """
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        if math.isnan(value):
            return ""
        return str(int(value)) if value.is_integer() else repr(value)
    return str(value)
