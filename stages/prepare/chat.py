"""The model's own chat template: a conversation as the text that the model was taught to continue.

Chat templates are Jinja programs that come with a tokenizer. They are rendered here as transformers renders them
(same options, same functions, in Jinja's sandbox), because preparing data does without torch and transformers.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Final, NoReturn

from jinja2 import Template, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import Node, Scope
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from stages.common.artifacts import digest_of, read_json
from stages.common.command import UserError
from stages.prepare.conversations import Turn
from stages.prepare.rows import RefusedRowError

# Stands where the answer will: private-use characters, which no template treats as anything but text.
_ANSWER: Final = "\ue000answer\ue001"
# What a template gets that asks for today's date: with the real one, every day's data would be other data.
_TODAY: Final = date(2025, 1, 1)


@dataclass(frozen=True)
class Opened:
    """A conversation, cut where the answer goes.

    Attributes:
        prompt: all in front of it, without the spaces that set the answer off.
        lead: these spaces.
        closing: what the template writes behind an answer.
    """

    prompt: str
    lead: str
    closing: str


class ChatTemplate:
    """A tokenizer's chat template.

    Attributes:
        digest: SHA-256 of its text and of the special tokens that it may write.
        closing: what it writes behind an answer.
    """

    def __init__(self, text: str, special: Mapping[str, str]) -> None:
        """Compile a template; ``special``: names of tokens (``bos_token``) and their texts.

        Raises:
            UserError: it is no valid template.
        """
        self.digest = digest_of([text, dict(special)])
        self._special = dict(special)
        try:
            self._template = _compile(text)
            self.closing = self.open([{"role": "user", "content": "?"}]).closing
        except (TemplateError, RefusedRowError) as error:
            raise UserError(
                f"prepare.chat_template: the model's chat template cannot be used: {_on_one_line(error)}"
            ) from None

    @classmethod
    def of(cls, folder: Path) -> "ChatTemplate":
        """The template in a model's folder: ``chat_template.jinja``, or an entry of ``tokenizer_config.json``.

        Raises:
            UserError: there is none, or it is damaged.
        """
        path = folder / "tokenizer_config.json"
        config = read_json(path) if path.exists() else {}
        file = folder / "chat_template.jinja"
        text = file.read_text(encoding="utf-8") if file.exists() else _default(config.get("chat_template"))
        if not text:
            raise UserError(
                f"prepare.chat_template: the tokenizer in {folder} has no chat template: "
                "take a model that was tuned for chat, or set it to false"
            )
        return cls(text, _special_tokens(config))

    def open(self, turns: Sequence[Turn]) -> Opened:
        """Render a conversation up to the place where the assistant's next answer goes.

        Raises:
            RefusedRowError: the template refuses the conversation (two turns of one role, say), or leaves out answers.
        """
        answered = [*turns, {"role": "assistant", "content": _ANSWER}]
        try:
            # transformers names tools and documents to every template, and some ask whether there are any.
            nothing = {"tools": None, "documents": None, "add_generation_prompt": False}
            text = self._template.render(messages=answered, **nothing, **self._special)
        except (TemplateError, TypeError) as error:
            raise RefusedRowError(f"conversation that the chat template refuses: {_on_one_line(error)}") from None
        head, found, closing = text.rpartition(_ANSWER)
        if not found:
            raise RefusedRowError("conversation whose answer the chat template leaves out")
        prompt = head.rstrip(" ")
        return Opened(prompt, head[len(prompt) :], closing)


def _on_one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _default(held: Any) -> str | None:
    """The template of a configuration: text, or a list of named ones of which one is the default."""
    if isinstance(held, list):
        named = {one["name"]: one["template"] for one in held}
        return named.get("default")
    return held


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    tokens = {name: value for name, value in config.items() if name.endswith("_token") and value}
    return {
        name: value["content"] if isinstance(value, Mapping) else value
        for name, value in tokens.items()
        if isinstance(value, str | Mapping)
    }


class _Generation(Extension):
    """``{% generation %}``, which marks the assistant's words for training and renders as they are."""

    tags = {"generation"}  # noqa: RUF012 (as Jinja declares it)

    def parse(self, parser: Parser) -> Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return Scope(body).set_lineno(line)


def _compile(text: str) -> Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {"raise_exception": _raise, "strftime_now": _date}
    return environment.from_string(text)


def _to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    """Jinja's own filter writes HTML's escapes."""
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)


def _date(form: str) -> str:
    return _TODAY.strftime(form)
