"""What a data source hands over, and how its values are read as text."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from stages.common.params import Data

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
        answer: the label's word, the right candidate or the free answer, without the white space that sets it off.
        label: ``None`` where there are no classes.
        candidates: multiple choice: what is chosen from, distinct; empty for other tasks.
        lead: what sets the answer off; ``None``: one space, unless the prompt ends in white space.
    """

    example_id: str
    group: str | None
    label: str | None
    text: str
    prompt: str
    answer: str
    candidates: tuple[str, ...] = ()
    lead: str | None = None


class RefusedRowError(Exception):
    """A row that cannot be used; the message is the reason under which such rows are counted."""


def reach(values: Mapping[str, Any], path: str) -> Any:
    """The value of a column, or what lies inside it at a path of keys and numbers; ``None`` where nothing does.

    ``answers.text.0`` is the first entry of the list ``text`` in the column ``answers``, unless there is a
    column of that very name.
    """
    if path in values:
        return values[path]
    value: Any = values
    for part in path.split("."):
        if isinstance(value, Mapping):
            value = value.get(part)
        elif isinstance(value, list) and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        else:
            return None
    return value


def top(path: str) -> str:
    """The column that a path begins with."""
    return path.partition(".")[0]


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


def split_names(data: Data) -> dict[str, str]:
    """Our split name to the source's, for those that the source is said to have."""
    names = {TRAIN: data.splits.train, VALIDATION: data.splits.validation, TEST: data.splits.test}
    return {split: name for split, name in names.items() if name is not None}
