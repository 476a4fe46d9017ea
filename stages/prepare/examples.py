"""From a row's columns to an example: prompt, answer, label or candidates."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from salf.errors import UserError
from stages.common.params import Data
from stages.prepare.chat import ChatTemplate, Tools
from stages.prepare.choices import read_question
from stages.prepare.conversations import FUNCTIONS, SYSTEM, TOOLS, Turn, read_conversation, read_tools, words
from stages.prepare.rows import (
    Example,
    Loaded,
    Lost,
    RefusedRowError,
    Row,
    as_text,
    described,
    is_unicode,
    listed,
    one_spelling,
    reach,
    text_at,
    top,
)
from stages.prepare.templates import parse_template

LISTED: Final = "choices"  # in a template of multiple choice: the candidates, a line each
BROKEN: Final = "with half of a surrogate pair (text that was cut within a character)"
_REASONS: Final = 1000  # different reasons that are told apart


class Filler:
    """Makes examples of rows, as the parameters say.

    Attributes:
        data: the parameter group.
        template: its template.
        chat: the model's chat template, where prompts are turns of a conversation.
        classes: label to the rows that have it, usable or not; ``look_at`` fills it.
        blank: column (or path) of the template, or of the group, to the examples in which it is empty.
    """

    def __init__(self, data: Data, chat: ChatTemplate | None = None) -> None:
        """Parse the template.

        Raises:
            UserError: it is broken or names the column with the answer, or a label word is broken.
        """
        self.data, self.template, self.chat = data, parse_template(data.template), chat
        if data.answer_column in self.template.columns and not data.messages:
            raise UserError(
                f"data.template: names the answer column {data.answer_column!r}: the prompt would hold the answer"
            )
        self.classes: Counter[str] = Counter()
        self.blank: Counter[str] = Counter()
        self._words = _label_words(data)
        self._spelling: dict[str, str] = {}
        self._groups: dict[str, str] = {}

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

    @property
    def extra_columns(self) -> tuple[str, ...]:
        """The columns that are read where the source has them."""
        return (TOOLS, FUNCTIONS, SYSTEM) if self.data.messages else ()

    def look_at(self, rows: Sequence[Row]) -> None:
        """Settle how labels and groups are spelled (see ``one_spelling``), and count the classes.

        Args:
            rows: of all splits.

        Raises:
            UserError: a label word for a label that no row has.
        """
        if column := self.data.group_column:
            self._groups = one_spelling({text for row in rows if (text := self._text(row, column))})
        if self.data.task != "classification":
            return
        found = Counter(label for row in rows if (label := self._label(row)))
        self._spelling = one_spelling(found.keys() | self._words.keys())
        for label, count in found.items():
            self.classes[self._spelling.get(label, label)] += count
        self._words = {self._spelling.get(label, label): word for label, word in self._words.items()}
        if unknown := sorted(self._words.keys() - self.classes.keys()):
            raise UserError(
                f"data.label_words: no row has the label {unknown[0]!r}; labels: {listed(sorted(self.classes))}"
            )

    def fill(self, row: Row) -> Example:
        """The example of a row.

        Raises:
            RefusedRowError: the row cannot be used.
        """
        example, blank = self._filled(row)
        if not is_unicode(
            "".join((example.text, example.prompt, example.answer, *example.candidates, example.group or ""))
        ):
            raise RefusedRowError(BROKEN)
        self.blank.update(blank)
        return example

    def _filled(self, row: Row) -> tuple[Example, list[str]]:
        """The example, and the columns that are empty in it."""
        column = self.data.group_column
        group = text_at(row.values, column, "data.group_column").strip() if column else ""
        group = self._groups.get(group, group)
        blank = [column] if column and not group else []
        if self.data.messages:
            *turns, last = read_conversation(reach(row.values, self.data.messages), row.values.get(SYSTEM))
            # A system turn that all conversations share tells none of them from the others.
            text = "\n".join(words(turn) for turn in turns if turn["role"] != "system")
            example = self._example(row, group, text, "", words(last))
            return self._cut(example, turns, last, read_tools(row.values)), blank
        values, candidates = row.values, tuple[str, ...]()
        if self.data.task == "multiple-choice":
            question = read_question(row.values, self.data.choices, self.data.answer_column)
            candidates = question.texts if self.data.choices.answer == "text" else question.letters
            values, answer = {**row.values, LISTED: question.listed}, candidates[question.right]
        else:
            answer = text_at(row.values, self.data.answer_column, "data.answer_column").strip()
        prompt, texts = self.template.fill(values)
        text = "\n".join(text for text in texts.values() if text.strip())
        example = self._asked(self._example(row, group, text, prompt, answer, candidates))
        return example, blank + [name for name, text in texts.items() if not text.strip()]

    def _example(
        self, row: Row, group: str, text: str, prompt: str, answer: str, candidates: tuple[str, ...] = ()
    ) -> Example:
        if not text:
            raise RefusedRowError("empty text")
        if not answer and self.data.task == "classification":
            raise RefusedRowError("without a label")
        if not answer and not self.data.messages:  # an assistant's turn may call a tool and say nothing
            raise RefusedRowError("missing answer")
        label = self._spelling.get(answer, answer) if self.data.task == "classification" else None
        word = answer if label is None else self._words.get(label, label)
        return Example(row.example_id, group or None, label, text, prompt, word, candidates)

    def _label(self, row: Row) -> str:
        """The label as the row spells it; empty where it has none."""
        if not self.data.messages:
            return self._text(row, self.data.answer_column)
        try:
            label = words(read_conversation(reach(row.values, self.data.messages))[-1])
        except RefusedRowError:
            return ""
        return label if is_unicode(label) else ""

    @staticmethod
    def _text(row: Row, path: str) -> str:
        """The text at a path; empty where there is none that can be used."""
        try:
            text = as_text(reach(row.values, path)).strip()
        except RefusedRowError:
            return ""
        return text if is_unicode(text) else ""

    def _asked(self, example: Example) -> Example:
        """The prompt as a user's turn, where there is a chat template."""
        if self.chat is None:
            return example
        asked: list[Turn] = [{"role": "user", "content": example.prompt}]
        return self._cut(example, asked, {"role": "assistant", "content": example.answer}, None)

    def _cut(self, example: Example, turns: Sequence[Turn], answer: Turn, tools: Tools | None) -> Example:
        assert self.chat is not None, "params.yaml allows conversations with a chat template alone"
        bare = self.data.task != "free"  # labels and candidates are all scored after one prompt
        answer = {**answer, "content": example.answer} if bare else answer
        cut = self.chat.cut(turns, answer, tools, bare=bare)
        return replace(example, prompt=cut.prompt, lead=cut.lead, answer=cut.answer, notes=cut.notes)


def fill_rows(loaded: Loaded, filler: Filler) -> tuple[dict[str, list[Example]], Lost]:
    """Turn the rows of every split into examples.

    Returns:
        The examples by split, and the refused rows.

    Raises:
        UserError: a column or path that the parameters name does not exist; a label word for a label that no row has.
    """
    _check_columns(loaded, filler)
    filler.look_at([row for rows in loaded.rows.values() for row in rows])
    refused = Lost(loaded.refused)
    examples: dict[str, list[Example]] = {split: [] for split in loaded.rows}
    for split, rows in loaded.rows.items():
        for row in rows:
            try:
                examples[split].append(filler.fill(row))
            except RefusedRowError as error:
                known = (split, str(error)) in refused or len(refused) < _REASONS
                refused[split, str(error) if known else "for other reasons"] += 1
    return examples, refused


def _check_columns(loaded: Loaded, filler: Filler) -> None:
    rows = [row.values for part in loaded.rows.values() for row in part]
    if not rows:
        raise UserError(f"data: the source ({filler.data.source}) holds no rows")
    for column, parameter in filler.columns.items():
        if column not in loaded.columns and top(column) not in loaded.columns:
            raise UserError(f"{parameter}: no column {top(column)!r}; the data has: {listed(loaded.columns)}")
        if all(reach(values, column) is None for values in rows):
            held = next((value for values in rows if (value := reach(values, top(column))) is not None), None)
            holds = f"is empty in all {len(rows):,} rows" if held is None else f"holds {described(held)}"
            raise UserError(f"{parameter}: no row has {column!r}: column {top(column)!r} {holds}")


def _label_words(data: Data) -> dict[str, str]:
    """Label to word, both as text and stripped; in YAML, a label may be a number, a boolean or null."""
    words: dict[str, str] = {}
    for key, word in data.label_words.items():
        label = "null" if key is None else as_text(key).strip()
        if not word.strip():
            raise UserError(f"data.label_words: the word for {label!r} is empty")
        if words.setdefault(label, word.strip()) != word.strip():
            raise UserError(f"data.label_words: two words for the label {label!r}; keep one")
    return words
