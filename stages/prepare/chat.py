"""The model's own chat template: a conversation as the text that the model was taught to continue.

Chat templates are Jinja programs. They are rendered as transformers renders them (same options, same functions, in
Jinja's sandbox), because preparing data does without torch and transformers.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import partial
from os.path import commonprefix
from pathlib import Path
from typing import Any, Final, NoReturn

from jinja2 import Template, TemplateError
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import Node, Scope
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from salf.errors import UserError
from salf.files import digest_of, read_json
from stages.prepare.forms import Turn, words
from stages.prepare.rows import RefusedRowError, reach

Tools = Sequence[Mapping[str, Any]]

_ANSWER: Final = "\ue000answer\ue001"  # in the answer's place: private-use characters, which a template takes as text
_TODAY: Final = date(2025, 1, 1)  # for templates that ask: with the real date, every day's data would differ
# Names under which data hold an answer's thoughts; transformers lets every template find them under the first two.
_THOUGHTS: Final = ("reasoning_content", "thinking", "reasoning")
_FILE: Final = "chat_template.jinja"
_SETTINGS: Final = "tokenizer_config.json"
_LONGEST: Final = 10_000_000  # characters of a rendered conversation

_REWRITTEN: Final = "with a prompt that the chat template writes differently when the model has to answer it"
_TEXT: Final = "with a call whose arguments are text, which the chat template quotes once more: make them an object"
_CUT: Final = "with an answer of which the chat template leaves out a part (thoughts, for example)"


@dataclass(frozen=True)
class Cut:
    """A rendered conversation, cut where its last answer begins and ends; ``lead`` is the white space between them."""

    prompt: str
    lead: str
    answer: str
    notes: tuple[str, ...] = ()
    turn_end: int = 0  # characters of the prompt up to the end of the last turn before the answer


class ChatTemplate:
    """A tokenizer's chat template; ``closing`` is what it writes after an answer."""

    def __init__(self, text: str, special: Mapping[str, str], for_tools: str | None = None) -> None:
        """Compile a template; ``special`` maps names of tokens (``bos_token``) to their texts."""
        self.digest = digest_of([text, dict(special), *([for_tools] if for_tools else [])])
        self._special = dict(special)
        asked: list[Turn] = [{"role": "user", "content": "?"}]
        try:
            self._template = _compile(text)
            self._for_tools = _compile(for_tools) if for_tools else self._template
            _, self.closing = self._around(asked, None)
            self._invites = self.render(asked, prompt=True) != self.render(asked)
        except Exception as error:  # a template is its author's program: it may fail in any way
            raise UserError(
                f"prepare.chat_template: the model's chat template cannot be used: {_on_one_line(error)}"
            ) from None

    @classmethod
    def of(cls, folder: Path) -> "ChatTemplate":
        """Read the template of a model's folder: ``chat_template.jinja``, or an entry of ``tokenizer_config.json``."""
        config = read_json(folder / _SETTINGS) if (folder / _SETTINGS).exists() else {}
        held = config.get("chat_template")
        held = held if isinstance(held, list) else [{"name": "default", "template": held}]
        named: dict[str, str] = {one["name"]: one["template"] for one in held}
        for name, place in (("default", _FILE), ("tool_use", "additional_chat_templates/tool_use.jinja")):
            if (folder / place).exists():
                named[name] = (folder / place).read_text(encoding="utf-8")
        if not named.get("default"):
            raise UserError(
                f"prepare.chat_template: the tokenizer in {folder} has no chat template: "
                "take a model that was tuned for chat, or set it to false"
            )
        tokens = {name: value for name, value in config.items() if name.endswith("_token") and value}
        special = {name: value["content"] if isinstance(value, Mapping) else value for name, value in tokens.items()}
        special = {name: value for name, value in special.items() if isinstance(value, str)}
        return cls(named["default"], special, named.get("tool_use"))

    @staticmethod
    def file(folder: Path) -> Path:
        """The file of a model's folder that holds the template."""
        return folder / (_FILE if (folder / _FILE).exists() else _SETTINGS)

    def render(self, turns: Sequence[Turn], tools: Tools | None = None, *, prompt: bool = False) -> str:
        """Render a conversation as transformers' ``apply_chat_template``; ``prompt``: ``add_generation_prompt``."""
        template = self._template if tools is None else self._for_tools
        context = {
            **self._special,
            "messages": [_as_transformers(turn) for turn in turns],
            "tools": tools,
            "documents": None,  # some templates ask whether there are any
            "add_generation_prompt": prompt,
        }
        pieces, length = [], 0
        try:
            for piece in template.generate(context):
                pieces.append(piece)
                length += len(piece)
                if length > _LONGEST:
                    raise TemplateError(f"more than {_LONGEST:,} characters")
        except Exception as error:
            raise RefusedRowError(f"conversation that the chat template refuses: {_on_one_line(error)}") from error
        return "".join(pieces)

    def cut(self, turns: Sequence[Turn], answer: Turn, tools: Tools | None = None, *, bare: bool = False) -> Cut:
        """Render a whole conversation and cut it where the answer begins and ends.

        Prompt, lead, answer and ``closing`` together are the rendering. The prompt is what the model is given to
        continue, where the rendering begins so; else what precedes any answer, or as much of that as precedes this
        one. ``bare``: the answer is one of several after the same prompt, so only its content may depend on it.
        """
        conversation = [*turns, answer]
        whole = self.render(conversation, tools)
        self._check_calls(conversation, tools, whole)
        if not whole.endswith(self.closing):
            raise RefusedRowError(
                f"answer that the chat template does not close as it closes others ({self.closing.strip()!r})"
            )
        body = whole.removesuffix(self.closing)
        invited = self.render(turns, tools, prompt=True)
        before, _ = self._around(turns, tools)
        heads = [before] if bare else [*([invited] if self._invites else []), before]
        head = next((head for head in heads if body.startswith(head)), commonprefix([body, before]))  # noqa: RUF071
        asked = self.render(turns, tools)
        fits = head in heads or head.startswith(asked)
        if not fits or (bare and body[len(head) :] != answer["content"]):
            raise RefusedRowError(
                "conversation that the chat template writes differently with this answer than before it"
            )
        prompt = head.rstrip(" ")
        said = body[len(prompt) :]
        start = len(said) - len(said.lstrip())
        notes = [_REWRITTEN] if self._invites and not head.startswith(invited) else []
        noted = tuple(dict.fromkeys([*notes, *_notes(conversation, whole)]))
        turn_end = len(commonprefix([prompt, asked]))  # noqa: RUF071
        return Cut(prompt, said[:start], said[start:], noted, turn_end)

    def _around(self, turns: Sequence[Turn], tools: Tools | None) -> tuple[str, str]:
        """The text before and after any answer."""
        text = self.render([*turns, {"role": "assistant", "content": _ANSWER}], tools)
        before, found, after = text.rpartition(_ANSWER)
        if not found:
            raise RefusedRowError("conversation whose answer the chat template leaves out")
        return before, after

    def _check_calls(self, turns: Sequence[Turn], tools: Tools | None, whole: str) -> None:
        """Refuse a conversation that is rendered in the same way without a turn's calls."""
        for at, turn in enumerate(turns):
            if not turn.get("tool_calls"):
                continue
            try:
                silent = self.render([*turns[:at], {**turn, "tool_calls": None}, *turns[at + 1 :]], tools)
            except RefusedRowError:  # so the template looks for them
                continue
            if silent == whole:
                raise RefusedRowError("conversation whose tool calls the chat template leaves out")


def render_sample(file: str) -> None:
    """Render short conversations with the template that a file of a model's folder holds."""
    ChatTemplate.of(Path(file).parent)


def _notes(conversation: Sequence[Turn], whole: str) -> list[str]:
    """The parts of a conversation that its rendering leaves out or quotes twice."""
    bare = "".join(whole.split())

    def lacks(part: str) -> bool:
        return "".join(part.split()) not in bare and json.dumps(part, ensure_ascii=False)[1:-1] not in whole

    *turns, answer = conversation
    notes = [
        f"with a {turn['role']} turn that the chat template leaves out"
        for turn in turns
        if turn["role"] != "assistant" and lacks(words(turn))
    ]
    notes += [_CUT for key in ("content", *_THOUGHTS) if lacks(str(answer.get(key) or ""))]
    calls = [call for turn in conversation for call in turn.get("tool_calls") or ()]
    given = [reach(call, path) for call in calls for path in ("function.arguments", "arguments")]
    return notes + [_TEXT for one in given if isinstance(one, str) and json.dumps(one, ensure_ascii=False) in whole]


def _on_one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _as_transformers(turn: Turn) -> Turn:
    """A turn as transformers hands it to templates: without empty keys, its thoughts under the names they know."""
    given = {key: value for key, value in turn.items() if value is not None}
    thoughts = next((given[key] for key in _THOUGHTS if key in given), None)
    return given if thoughts is None else {"thinking": thoughts, **given, "reasoning_content": thoughts}


class _Generation(Extension):
    """``{% generation %}``, which marks the assistant's words for training and renders as they are."""

    tags = {"generation"}  # noqa: RUF012 (as Jinja declares it)

    def parse(self, parser: Parser) -> Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return Scope(body).set_lineno(line)


class _Namespace(Namespace):
    """Jinja's ``namespace`` without names that lead into Python itself."""

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise SecurityError(f"a namespace holds no name like {name!r}")
        super().__setitem__(name, value)


def _compile(text: str) -> Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation]
    )
    environment.filters["tojson"] = partial(json.dumps, ensure_ascii=False)  # Jinja's own writes HTML's escapes
    for idle in ("cycler", "joiner", "lipsum"):
        del environment.globals[idle]
    environment.globals |= {
        "dict": lambda *args, **kwargs: dict(*args, **kwargs),
        "namespace": _Namespace,
        "raise_exception": _raise,
        "strftime_now": _TODAY.strftime,
    }
    return environment.from_string(text)


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)
