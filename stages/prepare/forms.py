"""Rows in forms that public datasets use: conversations with tools, and questions with candidates."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Number
from string import ascii_uppercase
from typing import Any, Final

from stages.common.params import Choices
from stages.prepare.rows import RefusedRowError, as_text, described, reach, text_at

Turn = dict[str, Any]  # role (system, user, assistant or tool), content, and every other key that the row gives it

# Columns that conversations may have: a row's tools, OpenAI's first name for them, and ShareGPT's system turn.
TOOLS, FUNCTIONS, SYSTEM = OPTIONAL_COLUMNS = ("tools", "functions", "system")
# Two spellings are common: {"role", "content"}, and ShareGPT's {"from", "value"} with names of its own.
_ROLES: Final = {
    name: role
    for role, names in {
        "system": ("system", "developer"),
        "user": ("user", "human", "prompter"),
        "assistant": ("assistant", "gpt", "chatgpt", "bot", "chatbot", "model", "ai"),
        "tool": ("tool", "function", "ipython", "observation", "tool_response", "function_response"),
        "call": ("function_call", "tool_call"),
    }.items()
    for name in names
}


def read_conversation(value: Any, system: Any = None) -> list[Turn]:
    """Read the turns up to the last one of the assistant, the answer; later turns are left out.

    A ``function_call``, ShareGPT's turn or OpenAI's key, becomes an assistant's turn with ``tool_calls``. ``system``
    is the text of a system turn for conversations without one.
    """
    value = parsed(value)
    if not isinstance(value, list) or not all(isinstance(turn, Mapping) for turn in value):
        raise RefusedRowError("conversation that is not a list of turns")
    turns = [_turn(turn) for turn in value]
    if turns and turns[0]["role"] != "system" and isinstance(system, str) and system.strip():
        turns.insert(0, {"role": "system", "content": system})
    while turns and turns[-1]["role"] != "assistant":
        turns.pop()
    empty = [turn["role"] == "assistant" and not words(turn) and not turn.get("tool_calls") for turn in turns]
    faults = {
        "conversation without an answer of the assistant": not turns,
        "conversation in which the user asks nothing": not any(t["role"] == "user" and words(t) for t in turns[:-1]),
        "missing answer": empty[-1:] == [True],
        "conversation with an empty turn of the assistant": any(empty),
        "answer that is not to be learned (weight 0)": bool(turns) and turns[-1].get("weight") == 0,
    }
    if fault := next((reason for reason, found in faults.items() if found), None):
        raise RefusedRowError(fault)
    return turns


def read_tools(values: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """Read the descriptions of a row's tools: a list, or its JSON text; ``None`` where the row has none."""
    column = next((name for name in (TOOLS, FUNCTIONS) if values.get(name) not in (None, "")), None)
    if column is None:
        return None
    found = _objects(values[column], f"column {column} that holds")
    return found if column == TOOLS else _as_calls(found)


def words(turn: Turn) -> str:
    """The content of a turn, without the white space around it."""
    return str(turn.get("content") or "").strip()


def parsed(held: Any) -> Any:
    """A value, out of its JSON text where it is the text of a list or an object."""
    if isinstance(held, str) and held.lstrip().startswith(("[", "{")):
        try:
            return json.loads(held)
        except (ValueError, RecursionError):
            return held
    return held


def _turn(turn: Mapping[str, Any]) -> Turn:
    said = as_text(turn.get("role") or turn.get("from")).strip()
    role = _ROLES.get(said.lower().replace("-", "_"))
    if role is None:
        raise RefusedRowError(f"conversation with a turn of an unknown role ({said[:20]!r})")
    made = {key: value for key, value in turn.items() if key not in ("from", "value")} | {"role": role}
    content = turn["content"] if "content" in turn else turn.get("value")
    if role == "call":
        return made | {"role": "assistant", "content": None, "tool_calls": _calls(content)}
    if turn.get("tool_calls"):
        made["tool_calls"] = _objects(turn["tool_calls"], "conversation with tool_calls that are")
    elif called := made.pop("function_call", None):
        made["tool_calls"] = _calls(called)
    if not {"content", "value", "tool_calls", "function_call"} & turn.keys():
        raise RefusedRowError(f"conversation with a turn that has no content: {described(turn)}")
    return made | {"content": _content(content)}


def _content(content: Any) -> str | None:
    """Text, or a list of parts that are all text (``text``, ``input_text``, ``output_text``)."""
    if not isinstance(content, list | Mapping):
        return None if content is None else as_text(content)
    parts = [
        part if isinstance(part, Mapping) else {} for part in (content if isinstance(content, list) else [content])
    ]
    texts = [part.get("text") if str(part.get("type", "text")).endswith("text") else None for part in parts]
    if not all(isinstance(text, str) for text in texts):
        raise RefusedRowError("conversation with contents that are not text")
    return "".join(map(str, texts))


def _calls(content: Any) -> list[dict[str, Any]]:
    calls = _objects(content, "conversation with a function_call that is")
    if not all({"name", "arguments"} <= call.keys() for call in calls):
        raise RefusedRowError("conversation with a function_call that lacks its name or arguments")
    return _as_calls(calls)


def _as_calls(functions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"type": "function", "function": one} for one in functions]


def _objects(value: Any, what: str) -> list[dict[str, Any]]:
    """A list of mappings, or one, each of them or all as JSON text, too."""
    held = parsed(value)
    held = [parsed(one) for one in held] if isinstance(held, list) else [held]
    if not all(isinstance(one, Mapping) for one in held):
        raise RefusedRowError(f"{what} something other than JSON objects")
    return [dict(one) for one in held]


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
    lettered = {at for at, letter in enumerate(ascii_uppercase[: len(texts)]) if letter == text}
    return {at for at, one in enumerate(texts) if one == text} | lettered | numbered
