"""Rows that are conversations: their turns up to the last answer, and the tools that the row offers."""

from collections.abc import Mapping
from typing import Any, Final

from stages.prepare.choices import parsed
from stages.prepare.rows import RefusedRowError, as_text, described

Turn = dict[str, Any]  # role (system, user, assistant or tool), content, and every other key that the row gives it

# Columns that are read where the source has them: a row's tools (OpenAI's first name for them comes second), and
# what ShareGPT's form sets apart as the system turn.
TOOLS: Final = "tools"
FUNCTIONS: Final = "functions"
SYSTEM: Final = "system"

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

    Raises:
        RefusedRowError: no list of turns, an unknown role, contents that are not text, a turn of the assistant that
            says and calls nothing, no answer, or nothing asked.
    """
    value = parsed(value)
    if not isinstance(value, list) or not all(isinstance(turn, Mapping) for turn in value):
        raise RefusedRowError("conversation that is no list of turns")
    turns = [_turn(turn) for turn in value]
    if turns and turns[0]["role"] != "system" and isinstance(system, str) and system.strip():
        turns.insert(0, {"role": "system", "content": system})
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
    if turns[-1].get("weight") == 0:
        raise RefusedRowError("answer that is not to be learned (weight 0)")
    return turns


def read_tools(values: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """Read the descriptions of a row's tools: a list, or its JSON text; ``None`` where the row has none.

    Raises:
        RefusedRowError: it is something else.
    """
    if values.get(TOOLS) not in (None, ""):
        return _objects(values[TOOLS], f"column {TOOLS} that holds")
    if values.get(FUNCTIONS) not in (None, ""):
        return _as_calls(_objects(values[FUNCTIONS], f"column {FUNCTIONS} that holds"))
    return None


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
    elif called := made.pop("function_call", None):
        made["tool_calls"] = _calls(called)
    if not {"content", "value", "tool_calls", "function_call"} & turn.keys():
        raise RefusedRowError(f"conversation with a turn that has no content: {described(turn)}")
    return made | {"content": _content(content)}


def _content(content: Any) -> str | None:
    """Text, or a list of parts that are all text (``text``, ``input_text``, ``output_text``)."""
    if isinstance(content, Mapping):
        content = [content]
    if not isinstance(content, list):
        return None if content is None else as_text(content)
    if not all(
        isinstance(part, Mapping)
        and isinstance(part.get("text"), str)
        and str(part.get("type", "text")).endswith("text")
        for part in content
    ):
        raise RefusedRowError("conversation with contents that are not text")
    return "".join(part["text"] for part in content)


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
        raise RefusedRowError(f"{what} no JSON objects")
    return [dict(one) for one in held]
