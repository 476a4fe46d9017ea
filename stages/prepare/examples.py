"""From a row's columns to an example: prompt, answer, label or candidates."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from numbers import Number
from string import Formatter, ascii_uppercase
from typing import Any, Final

from salf.errors import UserError
from salf.settings import TASKS
from stages.common.params import Choices, Data
from stages.prepare.chat import CHAT_COLUMNS, SYSTEM, ChatTemplate, Turn, parsed, read_conversation, read_tools, words
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
    plain_text,
    reach,
    text_at,
    top,
)

LISTED: Final = "choices"  # in a template of multiple choice: the candidates, a line each
BROKEN: Final = "with half of a surrogate pair (text that was cut within a character)"
_REASONS: Final = 1000  # different reasons that are counted separately


class Template:
    """A parsed prompt template: pairs of literal text and the column that follows it (``None`` at the end)."""

    def __init__(self, text: str) -> None:
        """Parse ``{column}`` fields; ``{{`` and ``}}`` are braces."""
        try:
            fields = list(Formatter().parse(text))
            for _, column, spec, conversion in fields:
                if spec or conversion or column == "":
                    raise ValueError(f"field {column!r} must be a plain column name")
        except ValueError as error:
            raise UserError(f"data.template: {error}; write {{column}}, and {{{{ or }}}} for a brace") from None
        self.parts = [(literal, column) for literal, column, _, _ in fields]
        self.columns = tuple(dict.fromkeys(column for _, column in self.parts if column is not None))
        after = takewhile(lambda part: part[1] is None, reversed(self.parts))
        self.tail = sum(len(literal) for literal, _ in after)  # characters after the last column
        if not self.columns:
            raise UserError("data.template: names no column: write {column} where the row's text goes")

    def fill(self, values: Mapping[str, Any]) -> tuple[str, dict[str, str]]:
        """Write the prompt of a row; returned with the texts of its columns (a missing value is empty text)."""
        texts = {column: text_at(values, column, "data.template") for column in self.columns}
        return "".join(literal + (texts[column] if column else "") for literal, column in self.parts), texts


@dataclass(frozen=True)
class Question:
    """The candidates of a row, their letters, and the place of the right one."""

    texts: tuple[str, ...]
    letters: tuple[str, ...]
    right: int

    @property
    def listed(self) -> str:
        """The candidates as a prompt shows them: a line each, its letter first."""
        return "\n".join(f"{letter}. {text}" for letter, text in zip(self.letters, self.texts, strict=True))


def read_question(values: Mapping[str, Any], choices: Choices, answer_column: str) -> Question:
    """Find the candidates of a row and the right one.

    Candidates are a list in one column; a list of ``{"label", "text"}`` or two lists under these keys (ARC,
    CommonsenseQA and OpenBookQA on the Hub); a column each (PIQA); or JSON text in a csv. The right one is given by
    its number, its letter, the mark that the row gives it, or its text.
    """
    texts, marks = _candidates(values, choices)
    faults = {
        "fewer than two candidates": len(texts) < 2,
        f"more than {len(ascii_uppercase)} candidates": len(texts) > len(ascii_uppercase),
        "empty candidate": not all(texts),
        "two candidates alike": len(set(texts)) < len(texts),
        "missing answer": not text_at(values, answer_column, "data.answer_column").strip(),
    }
    if fault := next((reason for reason, found in faults.items() if found), None):
        raise RefusedRowError(fault)
    meant = _meant(reach(values, answer_column), texts, marks, choices.first)
    if len(meant) != 1:
        raise RefusedRowError("answer that names two candidates" if meant else "answer that names no candidate")
    return Question(tuple(texts), tuple(ascii_uppercase[: len(texts)]), meant.pop())


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
        raise RefusedRowError("candidates that are not a list")
    return [as_text(one).strip() for one in listed], [as_text(mark).strip() for mark in marks or ()]


def _meant(answer: Any, texts: list[str], marks: list[str], first: int) -> set[int]:
    """Every candidate that an answer may mean: a number is one, text may be a mark, a text, a letter or a number."""
    text = as_text(answer).strip()
    number = re.fullmatch(r"([0-9]{1,9})(\.0+)?", text)  # pandas writes 1.0 in a csv where an answer is missing
    numbered = {int(number[1]) - first} & set(range(len(texts))) if number else set()
    if isinstance(answer, Number) and not isinstance(answer, bool):
        return numbered
    if text in marks:
        return {marks.index(text)}
    return {at for at, names in enumerate(zip(texts, ascii_uppercase, strict=False)) if text in names} | numbered


class Filler:
    """Makes examples of rows, as the parameters say.

    Attributes:
        classes: label to the rows that have it, usable or not; ``look_at`` fills it.
        blank: column of the template, or of a group, to the examples in which it is empty.
        merged: word to the labels that share it, where ``data.label_words`` merges labels.
        extra_columns: the columns that are read where the source has them.
    """

    def __init__(self, data: Data, chat: ChatTemplate | None = None) -> None:
        """Parse the template and the label words."""
        self.data, self.task, self.chat = data, TASKS[data.task], chat
        self.template = Template(data.template)
        if data.answer_column in self.template.columns and not data.messages and not self.task.text:
            name = f"names the answer column {data.answer_column!r}"
            raise UserError(f"data.template: {name}: the prompt would hold the answer")
        self.classes: Counter[str] = Counter()
        self.blank: Counter[str] = Counter()
        self.extra_columns = CHAT_COLUMNS if data.messages else ()
        self.merged: dict[str, list[str]] = {}
        self._words = _label_words(data)
        self._spelling: dict[str, str] = {}
        grouping = {"group": data.group_column, "subgroup": data.subgroup_column}
        self._grouping = {name: column for name, column in grouping.items() if column}
        self._groups: dict[str, dict[str, str]] = {}  # by name of the grouping, a group's spelling

    @property
    def columns(self) -> dict[str, str]:
        """The columns that must be there: column (or path inside one) to the parameter that names it."""
        data, named = self.data, {column: f"data.{name}_column" for name, column in self._grouping.items()}
        if data.messages:
            return {data.messages: "data.messages", **named}
        if self.task.candidates:
            columns = data.choices.column or []
            named |= dict.fromkeys([columns] if isinstance(columns, str) else columns, "data.choices.column")
        if not self.task.text:
            named[data.answer_column] = "data.answer_column"
        shown = [column for column in self.template.columns if not (self.task.candidates and column == LISTED)]
        return dict.fromkeys(shown, "data.template") | named

    def look_at(self, rows: Sequence[Row]) -> None:
        """Settle from the rows of all splits how labels are spelled, and count the classes."""
        for name, column in self._grouping.items():
            self._groups[name] = one_spelling({text for row in rows if (text := plain_text(row.values, column))})
        if not self.task.labels:
            return
        found = Counter(label for row in rows if (label := self._label(row)))
        self._spelling = one_spelling(found.keys() | self._words.keys())
        for label, count in found.items():
            self.classes[self._spelling.get(label, label)] += count
        self._words = {self._spelling.get(label, label): word for label, word in self._words.items()}
        if unknown := sorted(self._words.keys() - self.classes.keys()):
            raise UserError(f"data.label_words: no row has {unknown[0]!r}; labels: {listed(sorted(self.classes))}")
        # Labels that share a word are one; all labels are named by their words then.
        sharing: dict[str, list[str]] = {}
        for label in sorted(self.classes):
            sharing.setdefault(self._words.get(label, label), []).append(label)
        self.merged = {word: labels for word, labels in sharing.items() if len(labels) > 1}
        if self.merged:
            self.classes = Counter({w: sum(map(self.classes.__getitem__, each)) for w, each in sharing.items()})

    def fill(self, row: Row) -> Example:
        """Make the example of a row, or raise a ``RefusedRowError``."""
        groups = {
            name: text_at(row.values, column, f"data.{name}_column").strip() for name, column in self._grouping.items()
        }
        example, filled = self._conversation(row) if self.data.messages else self._filled(row)
        named = {name: self._groups[name].get(text, text) or None for name, text in groups.items()}
        example = replace(example, group=named.get("group"), subgroup=named.get("subgroup"))
        texts = (example.text, example.prompt, example.answer, *example.candidates, *groups.values())
        if not is_unicode("".join(texts)):
            raise RefusedRowError(BROKEN)
        filled = {self._grouping[name]: text for name, text in groups.items()} | filled
        self.blank.update(name for name, text in filled.items() if not text.strip())
        return example

    def documents(self, example: Example) -> list[Example]:
        """The documents of a row of plain text, without white space alone; other examples as they are."""
        separator = self.data.text.separator
        if not self.task.text or separator is None:
            return [example]
        texts = filter(str.strip, re.split(separator, example.text))
        return [replace(example, example_id=f"{example.example_id}-{n:06d}", text=t) for n, t in enumerate(texts, 1)]

    def _conversation(self, row: Row) -> tuple[Example, dict[str, str]]:
        *turns, last = read_conversation(reach(row.values, self.data.messages or ""), row.values.get(SYSTEM))
        # A system turn that all conversations share tells none of them from the others.
        text = "\n".join(words(turn) for turn in turns if turn["role"] != "system")
        return self._cut(self._example(row, text, "", words(last)), turns, last, read_tools(row.values)), {}

    def _filled(self, row: Row) -> tuple[Example, dict[str, str]]:
        """The example, and the texts of its template's columns."""
        values, candidates = row.values, tuple[str, ...]()
        if self.task.text:
            document, texts = self.template.fill(values)
            return self._example(row, document if document.strip() else "", "", document), texts
        if self.task.candidates:
            question = read_question(row.values, self.data.choices, self.data.answer_column)
            candidates = question.texts if self.data.choices.answer == "text" else question.letters
            values, answer = {**row.values, LISTED: question.listed}, candidates[question.right]
        else:
            answer = text_at(row.values, self.data.answer_column, "data.answer_column").strip()
        prompt, texts = self.template.fill(values)
        text = "\n".join(text for text in texts.values() if text.strip())
        example = self._example(row, text, prompt, answer, candidates)
        example = replace(example, field_end=len(prompt) - self.template.tail)
        if self.chat:
            asked: list[Turn] = [{"role": "user", "content": prompt}]
            example = self._cut(example, asked, {"role": "assistant", "content": example.answer}, None)
        return example, texts

    def _example(self, row: Row, text: str, prompt: str, answer: str, candidates: tuple[str, ...] = ()) -> Example:
        if not text:
            raise RefusedRowError("empty text")
        if not answer and self.task.labels:
            raise RefusedRowError("without a label")
        if not answer and not self.data.messages:  # an assistant's turn may call a tool and say nothing
            raise RefusedRowError("missing answer")
        label = self._spelling.get(answer, answer) if self.task.labels else None
        word = answer if label is None else self._words.get(label, label)
        return Example(row.example_id, None, word if self.merged else label, text, prompt, word, candidates)

    def _label(self, row: Row) -> str:
        """The label as the row spells it; empty where it has none."""
        if not self.data.messages:
            return plain_text(row.values, self.data.answer_column)
        try:
            return plain_text(read_conversation(reach(row.values, self.data.messages))[-1], "content")
        except RefusedRowError:
            return ""

    def _cut(self, example: Example, turns: list[Turn], answer: Turn, tools: list[dict[str, Any]] | None) -> Example:
        assert self.chat is not None, "params.yaml allows conversations only with a chat template"
        bare = not self.task.free  # labels and candidates are all scored after one prompt
        answer = {**answer, "content": example.answer} if bare else answer
        cut = self.chat.cut(turns, answer, tools, bare=bare)
        content = str(turns[-1].get("content") or "")
        said, start = content.strip(), len(content) - len(content.lstrip())  # many templates strip
        at, end = cut.prompt.rfind(said) if said else -1, example.field_end or len(content)
        # Where the last turn is not in the prompt as it was written, the field ends with the turn.
        field = cut.turn_end if at < 0 else at + min(max(end - start, 0), len(said))
        return replace(example, **cut._asdict(), field_end=field)


def fill_rows(loaded: Loaded, filler: Filler) -> tuple[dict[str, list[Example]], Lost]:
    """Turn the rows of every split into examples; returned with the rows that cannot be used."""
    rows = [row for part in loaded.rows.values() for row in part]
    _check_columns(loaded, filler, rows)
    filler.look_at(rows)
    refused = Lost(loaded.refused)
    examples: dict[str, list[Example]] = {split: [] for split in loaded.rows}
    for split, part in loaded.rows.items():
        for row in part:
            try:
                examples[split] += filler.documents(filler.fill(row))
            except RefusedRowError as error:
                known = (split, str(error)) in refused or len(refused) < _REASONS
                refused[split, str(error) if known else "for other reasons"] += 1
    return examples, refused


def _check_columns(loaded: Loaded, filler: Filler, rows: Sequence[Row]) -> None:
    if not rows:
        raise UserError(f"data: the source ({filler.data.source}) holds no rows")
    for column, parameter in filler.columns.items():
        if column not in loaded.columns and top(column) not in loaded.columns:
            raise UserError(f"{parameter}: no column {top(column)!r}; the data has: {listed(loaded.columns)}")
        if all(reach(row.values, column) is None for row in rows):
            held = next((value for row in rows if (value := reach(row.values, top(column))) is not None), None)
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
