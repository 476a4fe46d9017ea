"""Conversations as public datasets hold them, and as the text that the model was taught to continue.

Chat templates are Jinja programs. They are rendered as transformers renders them (same options, same functions, in
Jinja's sandbox), because preparing data does without torch and transformers.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import date
from functools import partial
from os.path import commonprefix
from pathlib import Path
from typing import Any, Final, NamedTuple, NoReturn

from jinja2 import Template, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import Node, Scope
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from salf.errors import UserError
from salf.files import digest_of, read_json
from stages.prepare.rows import RefusedRowError, as_text, described, reach

Turn = dict[str, Any]  # role (system, user, assistant or tool), content, and every other key that the row gives it
Tools = Sequence[Mapping[str, Any]]

# Columns that conversations may have: a row's tools, OpenAI's first name for them, and ShareGPT's system turn.
TOOLS, FUNCTIONS, SYSTEM = CHAT_COLUMNS = ("tools", "functions", "system")
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

_ANSWER: Final = "\ue000answer\ue001"  # in the answer's place: private-use characters, which a template takes as text
_TODAY: Final = date(2025, 1, 1)  # for templates that ask: with the real date, every day's data would differ
# Names under which data hold an answer's thoughts; transformers lets every template find them under the first two.
_THOUGHTS: Final = ("reasoning_content", "thinking", "reasoning")
_FILE: Final = "chat_template.jinja"
_SETTINGS: Final = "tokenizer_config.json"

_REWRITTEN: Final = "with a prompt that the chat template writes differently when the model has to answer it"
_TEXT: Final = "with a call whose arguments are text, which the chat template quotes once more: make them an object"
_CUT: Final = "with an answer of which the chat template leaves out a part (thoughts, for example)"


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
        with suppress(ValueError, RecursionError):
            return json.loads(held)
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
    parts = content if isinstance(content, list) else [content]
    texts = [p["text"] for p in parts if isinstance(p, Mapping) and isinstance(p.get("text"), str)]
    if len(texts) < len(parts) or not all(str(part.get("type", "text")).endswith("text") for part in parts):
        raise RefusedRowError("conversation with contents that are not text")
    return "".join(texts)


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


class Cut(NamedTuple):
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
            fault = _on_one_line(error)
            raise UserError(f"prepare.chat_template: the model's chat template cannot be used: {fault}") from None

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
            raise UserError(f"prepare.chat_template: {folder} has no chat template; take a chat model, or set false")
        tokens = {name: value for name, value in config.items() if name.endswith("_token") and value}
        texts = {name: value["content"] if isinstance(value, Mapping) else value for name, value in tokens.items()}
        special = {name: text for name, text in texts.items() if isinstance(text, str)}
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
        try:
            return template.render(context)
        except Exception as error:
            raise RefusedRowError(f"conversation that the chat template refuses: {_on_one_line(error)}") from error

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
            raise RefusedRowError(f"answer that the chat template does not close with {self.closing.strip()!r}")
        body = whole.removesuffix(self.closing)
        invited = self.render(turns, tools, prompt=True)
        before, _ = self._around(turns, tools)
        heads = [before] if bare else [*([invited] if self._invites else []), before]
        head = next((head for head in heads if body.startswith(head)), commonprefix([body, before]))  # noqa: RUF071
        asked = self.render(turns, tools)
        fits = head in heads or head.startswith(asked)
        if not fits or (bare and body[len(head) :] != answer["content"]):
            raise RefusedRowError("conversation that the chat template writes differently with this answer")
        prompt = head.rstrip(" ")
        said = body[len(prompt) :]
        start = len(said) - len(said.lstrip())
        notes = [_REWRITTEN] if self._invites and not head.startswith(invited) else []
        notes += _notes(conversation, whole)
        turn_end = len(commonprefix([prompt, asked]))  # noqa: RUF071
        return Cut(prompt, said[:start], said[start:], tuple(dict.fromkeys(notes)), turn_end)

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


def _compile(text: str) -> Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation]
    )
    environment.filters["tojson"] = partial(json.dumps, ensure_ascii=False)  # Jinja's own writes HTML's escapes
    for idle in ("cycler", "joiner", "lipsum"):
        del environment.globals[idle]
    environment.globals |= {
        "dict": lambda *args, **kwargs: dict(*args, **kwargs),
        "raise_exception": _raise,
        "strftime_now": _TODAY.strftime,
    }
    return environment.from_string(text)


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)
