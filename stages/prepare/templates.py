"""The prompt template and the label words: from a row's columns to an example."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from string import Formatter
from typing import Any

from stages.common.command import UserError
from stages.common.params import Data
from stages.prepare.rows import Example, Loaded, Row, as_text


@dataclass(frozen=True)
class Template:
    """A parsed prompt template: literal text and columns in turns.

    Attributes:
        parts: pairs of literal text and the column that follows it (``None`` at the end).
    """

    parts: tuple[tuple[str, str | None], ...]

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that it names, each once, in order of appearance."""
        return tuple(dict.fromkeys(column for _, column in self.parts if column is not None))

    def fill(self, values: Mapping[str, Any]) -> str:
        """The prompt of a row; a missing value is empty text."""
        return "".join(literal + (as_text(values.get(column)) if column else "") for literal, column in self.parts)

    def text(self, values: Mapping[str, Any]) -> str:
        """The row's own words: the values of the columns, joined by line ends."""
        return "\n".join(text for column in self.columns if (text := as_text(values.get(column))).strip())


def parse_template(text: str) -> Template:
    """Parse ``{column}`` fields; ``{{`` and ``}}`` stand for braces.

    Raises:
        UserError: unbalanced braces, a field with a format or conversion, or no field at all.
    """
    parts: list[tuple[str, str | None]] = []
    try:
        for literal, column, spec, conversion in Formatter().parse(text):
            if spec or conversion or column == "":
                raise ValueError(f"field {column!r} must be a plain column name")
            parts.append((literal, column))
    except ValueError as error:
        raise UserError(f"data.template: {error}; write {{column}}, and {{{{ or }}}} for a brace") from None
    template = Template(tuple(parts))
    if not template.columns:
        raise UserError("data.template: names no column: write {column} where the row's text goes")
    return template


def fill_rows(loaded: Loaded, template: Template, data: Data) -> tuple[dict[str, list[Example]], Counter[str]]:
    """Turn the rows of every split into examples.

    Returns:
        The examples by split, and the refused rows: reason to count.

    Raises:
        UserError: a column that the parameters name does not exist; a label word for a label that no row has.
    """
    _check_columns(loaded, template, data)
    refused = Counter(loaded.refused)
    examples = {
        split: [made for row in rows if (made := _fill(row, template, data, refused)) is not None]
        for split, rows in loaded.rows.items()
    }
    if data.task == "classification":
        _check_label_words(data, (example.label for part in examples.values() for example in part))
    return examples, refused


def _fill(row: Row, template: Template, data: Data, refused: Counter[str]) -> Example | None:
    text = template.text(row.values)
    answer = as_text(row.values.get(data.answer_column)).strip()
    if not text or not answer:
        what = "empty text" if not text else "missing label" if data.task == "classification" else "missing answer"
        refused[what] += 1
        return None
    label = answer if data.task == "classification" else None
    group = as_text(row.values.get(data.group_column)) if data.group_column else ""
    word = data.label_words.get(answer, answer) if label is not None else answer
    return Example(row.example_id, group or None, label, text, template.fill(row.values), word)


def _check_columns(loaded: Loaded, template: Template, data: Data) -> None:
    if not any(loaded.rows.values()):
        raise UserError(f"data: the source ({data.source}) holds no rows")
    named = [("data.template", column) for column in template.columns]
    named.append(("data.answer_column", data.answer_column))
    if data.group_column:
        named.append(("data.group_column", data.group_column))
    for parameter, column in named:
        if column not in loaded.columns:
            raise UserError(f"{parameter}: no column {column!r}; the data has: {_listed(loaded.columns)}")


def _check_label_words(data: Data, labels: Iterable[str | None]) -> None:
    present = sorted({label for label in labels if label is not None})
    for label, word in data.label_words.items():
        if label not in present:
            raise UserError(f"data.label_words: no row has the label {label!r}; labels: {_listed(present)}")
        if not word.strip():
            raise UserError(f"data.label_words: the word for {label!r} is empty")


def _listed(names: Sequence[str], most: int = 20) -> str:
    more = f", ... ({len(names)} in all)" if len(names) > most else ""
    return ", ".join(names[:most]) + more
