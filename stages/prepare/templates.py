"""The prompt template: literal text with columns in between."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from string import Formatter
from typing import Any

from salf.errors import UserError
from stages.prepare.rows import text_at


@dataclass(frozen=True)
class Template:
    """A parsed prompt template: literal text and columns in turns.

    Attributes:
        parts: pairs of literal text and the column that follows it (``None`` at the end).
    """

    parts: tuple[tuple[str, str | None], ...]

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """The columns that it names, each once, in order of appearance."""
        return tuple(dict.fromkeys(column for _, column in self.parts if column is not None))

    def fill(self, values: Mapping[str, Any]) -> tuple[str, dict[str, str]]:
        """The prompt of a row, and the texts of its columns; a missing value is empty text.

        Raises:
            RefusedRowError: a column holds no text.
        """
        texts = {column: text_at(values, column, "data.template") for column in self.columns}
        return "".join(literal + (texts[column] if column else "") for literal, column in self.parts), texts


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
