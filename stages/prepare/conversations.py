"""Rows that are conversations: their turns up to the last answer, and the tools that the row offers."""

from collections.abc import Mapping
from typing import Any, Final

from stages.prepare.choices import parsed
from stages.prepare.rows import RefusedRowError, as_text

Turn = dict[str, Any]  # role (system, user, assistant or tool), content, and every other key that the row gives it

TOOLS: Final = "tools"  # the column of a row's tools, where it has one

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


def read_conversation(value: Any) -> list[Turn]:
    """Read the turns up to the last one of the assistant, the answer; later turns are left out.

    ShareGPT's ``function_call`` becomes an assistant's turn with ``tool_calls``.

    Raises:
        RefusedRowError: no list of turns, an unknown role, contents that are not text, a turn of the assistant that
            says and calls nothing, no answer, or nothing asked.
    """
    value = parsed(value)
    if not isinstance(value, list) or not all(isinstance(turn, Mapping) for turn in value):
        raise RefusedRowError("conversation that is no list of turns")
    turns = [_turn(turn) for turn in value]
    while turns and turns[-1]["role"] != "assistant":
        turns.pop()
    if not turns:
        raise RefusedRowError("conversation without an answer of the assistant")
    if not any(turn["role"] == "user" and words(turn) for turn in turns[:-1]):
        raise RefusedRowError("conversation in which the user asks nothing")
    empty = [turn["role"] == "assistant" and not words(turn) and not turn.get("tool_calls") for turn in turns]
    if empty[-1]:
        raise RefusedRowError("missing answer")
    if any(empty):
        raise RefusedRowError("conversation with an empty turn of the assistant")
    return turns


def read_tools(value: Any) -> list[dict[str, Any]] | None:
    """Read the descriptions of a row's tools: a list, or its JSON text; ``None`` where the row has none.

    Raises:
        RefusedRowError: it is something else.
    """
    return None if value is None or value == "" else _objects(value, f"column {TOOLS} that holds")


def words(turn: Turn) -> str:
    """What is said in a turn, without the white space around it."""
    return str(turn.get("content") or "").strip()


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
    return made | {"content": _content(content)}


def _content(content: Any) -> str | None:
    """Text, or a list of parts that are all text."""
    if isinstance(content, Mapping):
        content = [content]
    if not isinstance(content, list):
        return None if content is None else as_text(content)
    if not all(isinstance(part, Mapping) and isinstance(part.get("text"), str) for part in content):
        raise RefusedRowError("conversation with contents that are not text")
    return "".join(part["text"] for part in content)


def _calls(content: Any) -> list[dict[str, Any]]:
    calls = _objects(content, "conversation with a function_call that is")
    if not all({"name", "arguments"} <= call.keys() for call in calls):
        raise RefusedRowError("conversation with a function_call that lacks its name or arguments")
    return [{"type": "function", "function": call} for call in calls]


def _objects(value: Any, what: str) -> list[dict[str, Any]]:
    """A list of mappings, or one, each of them or all as JSON text, too."""
    held = parsed(value)
    held = [parsed(one) for one in held] if isinstance(held, list) else [held]
    if not all(isinstance(one, Mapping) for one in held):
        raise RefusedRowError(f"{what} no JSON objects")
    return [dict(one) for one in held]
