"""Rows that are conversations: the turns in front of the last answer, and that answer."""

from collections.abc import Mapping
from typing import Any, Final

from stages.prepare.rows import RefusedRowError, as_text

Turn = dict[str, str]  # role (system, user or assistant) and content

# Two spellings are common: {"role", "content"}, and ShareGPT's {"from", "value"} with names of its own.
_SPEAKERS: Final = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant"}
_ROLES: Final = ("system", "user", "assistant")


def read_conversation(value: Any) -> tuple[list[Turn], str]:
    """The turns up to the last one of the assistant, and its text; what comes behind is left out.

    Raises:
        RefusedRowError: no list of turns, an unknown role, contents that are not text, no answer, or nothing asked.
    """
    if not isinstance(value, list) or not all(isinstance(turn, Mapping) for turn in value):
        raise RefusedRowError("conversation that is no list of turns")
    turns = [_turn(turn) for turn in value]
    answers = [at for at, turn in enumerate(turns) if turn["role"] == "assistant"]
    if not answers:
        raise RefusedRowError("conversation without an answer of the assistant")
    asked, answer = turns[: answers[-1]], turns[answers[-1]]["content"]
    if not any(turn["role"] == "user" and turn["content"] for turn in asked):
        raise RefusedRowError("conversation in which the user asks nothing")
    if not answer:
        raise RefusedRowError("missing answer")
    return asked, answer


def _turn(turn: Mapping[str, Any]) -> Turn:
    role = as_text(turn.get("role") or turn.get("from")).strip()
    role = _SPEAKERS.get(role, role)
    if role not in _ROLES:
        raise RefusedRowError("conversation with a turn of an unknown role")
    return {"role": role, "content": _content(turn["content"] if "content" in turn else turn.get("value")).strip()}


def _content(content: Any) -> str:
    """Text, or a list of parts that are all text."""
    if not isinstance(content, list):
        return as_text(content)
    if not all(isinstance(part, Mapping) and isinstance(part.get("text"), str) for part in content):
        raise RefusedRowError("conversation with contents that are not text")
    return "".join(part["text"] for part in content)
