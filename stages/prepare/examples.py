"""From a row's columns to an example: prompt, answer, label or candidates."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from stages.common.command import UserError
from stages.common.params import Data
from stages.prepare.chat import ChatTemplate
from stages.prepare.choices import read_question
from stages.prepare.conversations import Turn, read_conversation
from stages.prepare.rows import Example, Loaded, RefusedRowError, Row, as_text, reach, top
from stages.prepare.templates import parse_template

LISTED: Final = "choices"  # in a template of multiple choice: the candidates, a line each


class Filler:
    """Makes examples of rows, as the parameters say.

    Attributes:
        data: the parameter group.
        template: its template.
        chat: the model's chat template, where prompts are turns of a conversation.
    """

    def __init__(self, data: Data, chat: ChatTemplate | None = None) -> None:
        """Parse the template.

        Raises:
            UserError: it is broken.
        """
        self.data, self.template, self.chat = data, parse_template(data.template), chat

    @property
    def columns(self) -> dict[str, str]:
        """The columns that are read: column (or path inside one) to the parameter that names it."""
        data = self.data
        if data.messages:
            named = {data.messages: "data.messages"}
        else:
            named = dict.fromkeys(self.template.columns, "data.template")
            if data.task == "multiple-choice":
                named.pop(LISTED, None)
                columns = data.choices.column or []
                named |= dict.fromkeys([columns] if isinstance(columns, str) else columns, "data.choices.column")
            named |= {data.answer_column: "data.answer_column"}
        return named | ({data.group_column: "data.group_column"} if data.group_column else {})

    def fill(self, row: Row) -> Example:
        """The example of a row.

        Raises:
            RefusedRowError: the row cannot be used.
        """
        if self.data.messages:
            turns, answer = read_conversation(reach(row.values, self.data.messages))
            # A system turn that all conversations share tells none of them from the others.
            text = "\n".join(turn["content"] for turn in turns if turn["role"] != "system")
            return self._labelled(self._opened(self._plain(row, text, "", answer), turns))
        if self.data.task == "multiple-choice":
            return self._asked(self._multiple_choice(row))
        answer = as_text(reach(row.values, self.data.answer_column)).strip()
        return self._asked(self._labelled(self._filled(row, row.values, answer)))

    def _multiple_choice(self, row: Row) -> Example:
        choices = self.data.choices
        question = read_question(row.values, choices, self.data.answer_column)
        candidates = question.texts if choices.answer == "text" else question.letters
        made = self._filled(row, {**row.values, LISTED: question.listed}, candidates[question.right])
        return replace(made, candidates=candidates)

    def _filled(self, row: Row, values: Mapping[str, Any], answer: str) -> Example:
        return self._plain(row, self.template.text(values), self.template.fill(values), answer)

    def _plain(self, row: Row, text: str, prompt: str, answer: str) -> Example:
        if not text:
            raise RefusedRowError("empty text")
        if not answer:
            raise RefusedRowError("missing label" if self.data.task == "classification" else "missing answer")
        group = as_text(reach(row.values, self.data.group_column)) if self.data.group_column else ""
        return Example(row.example_id, group or None, None, text, prompt, answer)

    def _labelled(self, example: Example) -> Example:
        if self.data.task != "classification":
            return example
        return replace(example, label=example.answer, answer=self.data.label_words.get(example.answer, example.answer))

    def _asked(self, example: Example) -> Example:
        """The prompt as a user's turn, where there is a chat template."""
        return self._opened(example, [{"role": "user", "content": example.prompt}]) if self.chat else example

    def _opened(self, example: Example, turns: Sequence[Turn]) -> Example:
        assert self.chat is not None, "params.yaml allows conversations with a chat template alone"
        opened = self.chat.open(turns)
        return replace(example, prompt=opened.prompt, lead=opened.lead)


def fill_rows(loaded: Loaded, filler: Filler) -> tuple[dict[str, list[Example]], Counter[str]]:
    """Turn the rows of every split into examples.

    Returns:
        The examples by split, and the refused rows: reason to count.

    Raises:
        UserError: a column that the parameters name does not exist; a label word for a label that no row has.
    """
    _check_columns(loaded, filler)
    refused = Counter(loaded.refused)
    examples: dict[str, list[Example]] = {split: [] for split in loaded.rows}
    for split, rows in loaded.rows.items():
        for row in rows:
            try:
                examples[split].append(filler.fill(row))
            except RefusedRowError as error:
                refused[str(error)] += 1
    if filler.data.task == "classification":
        _check_label_words(filler.data, (example.label for part in examples.values() for example in part))
    return examples, refused


def _check_columns(loaded: Loaded, filler: Filler) -> None:
    if not any(loaded.rows.values()):
        raise UserError(f"data: the source ({filler.data.source}) holds no rows")
    for column, parameter in filler.columns.items():
        if column not in loaded.columns and top(column) not in loaded.columns:
            raise UserError(f"{parameter}: no column {top(column)!r}; the data has: {_listed(loaded.columns)}")


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
