"""Rows and examples, and how a row's values are read as text."""

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, time, timedelta
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

import numpy
import regex

TRAIN, VALIDATION, TEST = SPLITS = ("train", "validation", "test")

# Rows that are not kept: (split, reason) to count. A reason is read after a count: "3 without a label".
Lost = Counter[tuple[str, str]]

_INDEX: Final = re.compile(r"[0-9]{1,9}")
_NUMBER: Final = re.compile(r"-?(0|[1-9][0-9]*)(\.0+|\.[0-9]*[1-9])?(e[-+][0-9]{2,3})?")  # as programs print them
INVISIBLE: Final = regex.compile(r"\p{Default_Ignorable_Code_Point}")
_TEXT_KEYS: Final = ("content", "text", "value")
_DEPTH: Final = 4  # steps into a value in search of text
_WIDE: Final = 200  # characters shown of a name


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a source: a stable unique name and its columns."""

    example_id: str
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Loaded:
    """All rows of a source by split, every column's name, and what was read (``identity``: versions or hashes)."""

    rows: dict[str, list[Row]]
    columns: tuple[str, ...]
    identity: dict[str, Any]
    refused: Lost = field(default_factory=Lost)


@dataclass(frozen=True, slots=True)
class Example:
    """A row with its template filled in."""

    example_id: str
    group: str | None
    label: str | None
    text: str  # the values of the template's columns, joined: what a bag-of-words baseline sees
    prompt: str
    answer: str  # the label's word, the right candidate or the free answer, without the white space in front
    candidates: tuple[str, ...] = ()
    lead: str | None = None  # the white space before the answer; None: one space, unless the prompt ends in white space
    notes: tuple[str, ...] = ()  # what the reader should know about the row
    field_end: int = 0  # characters of the prompt up to the end of its last data column, or of the last turn's words
    turn_end: int | None = None  # up to the end of the last turn as the chat template writes it; None without one
    subgroup: str | None = None  # by which scores are reported; no split looks at it


class RefusedRowError(Exception):
    """A row that cannot be used; the message is the reason under which such rows are counted."""


def draw_key(seed: int, name: str) -> str:
    """Sort key of a random draw: it depends on no other row, so an added row moves none."""
    return hashlib.sha256(f"{seed}:{name}".encode()).hexdigest()


def reach(values: Mapping[str, Any], path: str) -> Any:
    """Read a column, or what is inside it: ``answers.text.0`` is the first entry of ``text`` in ``answers``."""
    if path in values:
        return values[path]
    value: Any = values
    for part in path.split("."):
        if isinstance(value, Mapping):
            value = value.get(part)
        elif isinstance(value, list) and _INDEX.fullmatch(part) and int(part) < len(value):
            value = value[int(part)]
        else:
            return None
    return value


def top(path: str) -> str:
    """The column that a path begins with."""
    return path.partition(".")[0]


def as_text(value: Any) -> str:
    """Write a value as text, in one spelling whatever file format it comes from.

    Numbers have no exponent and no trailing zeros: ``1`` for 1.0 and Decimal("1.00"), ``0.1`` for 0.1 in single
    precision. Dates and times are as Python prints them. A list, a mapping or bytes are refused.
    """
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, numpy.generic):  # single precision prints its own shortest digits
        value = float(str(value)) if isinstance(value, numpy.floating) else value.item()
    if isinstance(value, int):
        return str(value).lower()
    if isinstance(value, float | Decimal):
        number = value if isinstance(value, Decimal) else Decimal(float.__repr__(value))
        if not number.is_finite():
            return "" if number.is_nan() else str(float(number))
        text = format(number, "f")
        text = text.rstrip("0").rstrip(".") if "." in text else text
        return "0" if text == "-0" else text
    if isinstance(value, date | time | timedelta | UUID):
        return str(value)
    raise RefusedRowError(f"with {described(value)} where text is needed")


def text_at(values: Mapping[str, Any], path: str, parameter: str) -> str:
    """Read the text of a column, or of what is inside it; refused with what to write as ``parameter`` instead."""
    value = reach(values, path)
    try:
        return as_text(value)
    except RefusedRowError:
        inside = _text_inside(value, path)
        advice = f": name {inside} in {parameter}" if inside else ""
        turns = ", or set data.messages" if re.search(r"\.0\.(content|value)$", inside or "") else ""
        raise RefusedRowError(f"with {described(value)} in column {path!r}{advice}{turns}") from None


def plain_text(values: Mapping[str, Any], path: str) -> str:
    """Read the stripped text of a column; empty where it holds none that can be used."""
    try:
        text = as_text(reach(values, path)).strip()
    except RefusedRowError:
        return ""
    return text if is_unicode(text) else ""


def _text_inside(value: Any, path: str) -> str | None:
    """The path to the first text in a list or mapping; ``None`` where there is none."""
    for _ in range(_DEPTH):
        if isinstance(value, Mapping) and value:
            key = next((name for name in _TEXT_KEYS if name in value), next(iter(value)))
            path, value = f"{path}.{key}", value[key]
        elif isinstance(value, list) and value:
            path, value = f"{path}.0", value[0]
    return None if isinstance(value, Mapping | list | tuple | bytes) else path


def described(value: Any) -> str:
    """Name the kind of a value, as a person says it."""
    if isinstance(value, Mapping):
        return f"an object with the keys {listed([repr(key) for key in value], 5)}"
    kinds = {list | tuple: "a list", bytes: "bytes", str: "text", bool: "a boolean", int | float | Decimal: "a number"}
    return next((name for kind, name in kinds.items() if isinstance(value, kind)), f"a {type(value).__name__}")


def listed(names: Sequence[str], most: int = 20, between: str = ", ") -> str:
    """Join names: the beginnings of long ones, the first ones of many."""
    more = f"{between}... ({len(names)} in all)" if len(names) > most else ""
    return between.join(name if len(name) <= _WIDE else f"{name[:_WIDE]}..." for name in names[:most]) + more


def is_unicode(text: str) -> bool:
    """Whether a text can be written as UTF-8: half of a surrogate pair cannot."""
    return not re.search("[\ud800-\udfff]", text)


def one_spelling(labels: Collection[str]) -> dict[str, str]:
    """A respelling of labels (or groups) by which each has one name; empty where nothing has to change.

    A csv file knows no numbers: pandas writes the classes 0 and 1 as ``0.0`` and ``1.0`` once a label is missing, and
    ``True`` where JSON has ``true``. Labels are respelled only where *every* label is a number (or a boolean), and one
    of them occurs in two spellings. Codes (``007``) and versions (``1.10``, which is not 1.1) are no numbers. Others
    are respelled where nobody sees them differ: in the Unicode form of a letter, or an invisible character.
    """
    numbers = {label: as_text(Decimal(label)) for label in labels if _NUMBER.fullmatch(label)}
    booleans = {label: label.lower() for label in labels if label.lower() in ("true", "false")}
    for spelled in (numbers, booleans):
        if len(set(spelled.values())) < len(spelled) == len(labels):
            return spelled
    seen = {label: " ".join(INVISIBLE.sub("", unicodedata.normalize("NFC", label)).split()) for label in labels}
    alike = Counter(seen.values())
    return {label: plain for label, plain in seen.items() if alike[plain] > 1}
