"""Multiple choice: a row's candidates, and which of them is right.

Data sets write both in many ways. Candidates: a list in one column; a list of ``{"label", "text"}`` or two lists
under these keys (ARC, CommonsenseQA and OpenBookQA on the hub); a column each (PIQA); JSON text in a csv. The right
one: its number, its letter, the mark that the row itself gives it, or its text.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Number
from string import ascii_uppercase
from typing import Any

from stages.common.params import Choices
from stages.prepare.rows import RefusedRowError, as_text, reach, text_at


@dataclass(frozen=True)
class Question:
    """A row's candidates and the place of the right one."""

    texts: tuple[str, ...]
    right: int

    @property
    def letters(self) -> tuple[str, ...]:
        """A, B, C, ..., one for each candidate."""
        return tuple(ascii_uppercase[: len(self.texts)])

    @property
    def listed(self) -> str:
        """The candidates as a prompt shows them: a line each, its letter first."""
        return "\n".join(f"{letter}. {text}" for letter, text in zip(self.letters, self.texts, strict=True))


def read_question(values: Mapping[str, Any], choices: Choices, answer_column: str) -> Question:
    """Find the candidates of a row and the right one.

    Raises:
        RefusedRowError: fewer than two candidates or more than letters; an empty one, or two alike; an answer
            that is missing, names none of them, or can be read as one and as another.
    """
    texts, marks = _candidates(values, choices)
    if len(texts) < 2:
        raise RefusedRowError("fewer than two candidates")
    if len(texts) > len(ascii_uppercase):
        raise RefusedRowError(f"more than {len(ascii_uppercase)} candidates")
    if not all(texts):
        raise RefusedRowError("empty candidate")
    if len(set(texts)) < len(texts):
        raise RefusedRowError("two candidates alike")
    answer = reach(values, answer_column)
    if not text_at(values, answer_column, "data.answer_column").strip():
        raise RefusedRowError("missing answer")
    found = _named(answer, texts, marks, choices.first)
    if len(found) != 1:
        raise RefusedRowError("answer that names two candidates" if found else "answer that names no candidate")
    return Question(tuple(texts), found.pop())


def _candidates(values: Mapping[str, Any], choices: Choices) -> tuple[list[str], list[str]]:
    """The candidates' texts, and the marks that the row gives them (none: an empty list)."""
    if isinstance(choices.column, list):
        texts = [text_at(values, column, "data.choices.column").strip() for column in choices.column]
        while texts and not texts[-1]:  # a row with fewer candidates than there are columns
            texts.pop()
        return texts, []
    held = parsed(reach(values, choices.column or ""))
    if isinstance(held, list) and held and all(isinstance(one, Mapping) for one in held):
        held = {key: [one.get(key) for one in held] for key in ("text", "label")}
    listed, marks = (held.get("text"), held.get("label")) if isinstance(held, Mapping) else (held, None)
    if not isinstance(listed, list):
        raise RefusedRowError("candidates that are no list")
    return [as_text(one).strip() for one in listed], [as_text(mark).strip() for mark in marks or ()]


def parsed(held: Any) -> Any:
    """A column's value, out of its JSON text where it is the text of a list or an object."""
    if isinstance(held, str) and held.lstrip().startswith(("[", "{")):
        try:
            return json.loads(held)
        except (ValueError, RecursionError):
            return held
    return held


def _named(answer: Any, texts: list[str], marks: list[str], first: int) -> set[int]:
    """Every candidate that an answer may mean: a number is one, text may be a mark, a text, a letter or a number."""
    text = as_text(answer).strip()
    number = re.fullmatch(r"([0-9]{1,9})(\.0+)?", text)  # pandas writes 1.0 in a csv where an answer is missing
    numbered = {int(number[1]) - first} & set(range(len(texts))) if number else set()
    if isinstance(answer, Number) and not isinstance(answer, bool):
        return numbered
    if text in marks:
        return {marks.index(text)}
    lettered = {at for at, letter in enumerate(ascii_uppercase[: len(texts)]) if letter == text}
    return {at for at, one in enumerate(texts) if one == text} | lettered | numbered
