"""Chat templates rendered as transformers renders them, and conversations as rows."""

import json
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

from salf import trial
from salf.errors import UserError
from stages.common.params import load_params
from stages.prepare.chat import ChatTemplate, read_conversation, read_tools, render_sample
from stages.prepare.examples import Filler, fill_rows
from stages.prepare.rows import Example, Loaded, RefusedRowError, Row
from stages.prepare.tokens import PromptTokenizer, label_ids, tokenise
from tests.conftest import write_params
from tests.prepare.making import byte_level_tokenizer, make_data, write_jsonl

# The forms that are in use, each with what is special about it.
TEMPLATES = {
    "chatml": (  # a system turn of its own
        "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
        "{{ '<|im_start|>system\nBe helpful<|im_end|>\n' }}{% endif %}"
        "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "llama3": (  # the start token, and contents trimmed
        "{% for message in messages %}"
        "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
        " + message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}"
        "{% endif %}{{ content }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
    ),
    "mistral": (  # refuses turns out of order; a space in front of the answer, the end token behind it
        "{{ bos_token }}{% for message in messages %}"
        "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
        "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
        "{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
    ),
    "close": (  # nothing between the assistant's mark and its words; parts for training marked
        "{%- for message in messages -%}\n    {%- if message.role == 'assistant' -%}\n"
        "{% generation %}{{- '<|assistant|>' + message.content + '<|end|>' -}}{% endgeneration %}\n"
        "    {%- else -%}\n{{- '<|' + message.role + '|>' + message.content -}}\n    {%- endif -%}\n{%- endfor -%}\n"
        "{%- if add_generation_prompt -%}\n{{- '<|assistant|>' -}}\n{%- endif -%}"
    ),
    "tools": (  # asks for tools, which are never given
        "{% if tools is not none %}{{ 'Tools: ' + tools | tojson + '\n' }}{% endif %}"
        "{% if documents is not none %}{{ 'Documents\n' }}{% endif %}"
        "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
    ),
    "json": (  # functions, name spaces, loop controls
        "{%- set ns = namespace(seen=0) -%}{%- for message in messages -%}"
        "{%- if ns.seen > 8 -%}{%- break -%}{%- endif -%}"
        "{{- message | tojson + '\n' -}}{%- set ns.seen = ns.seen + 1 -%}{%- endfor -%}"
        '{%- if add_generation_prompt -%}{{- \'{"role": "assistant", "content": "\' -}}{%- endif -%}'
    ),
}
SPECIAL = [
    *("<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    *("[INST]", "[/INST]", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"),
]
ENDS = {
    "chatml": "<|im_end|>",
    "llama3": "<|eot_id|>",
    "mistral": "</s>",
    "close": "<|end|>",
    "tools": "<|end|>",
    "json": "</s>",
}
USER = {"role": "user", "content": "the cat <b>sat</b> on"}
TURNS = [
    [USER],
    [{"role": "system", "content": "be brief"}, USER],
    [USER, {"role": "assistant", "content": "the mat"}, {"role": "user", "content": "and looked at"}],
]


def write_chat_base(folder: Path, template: str | None, tokenizer=None) -> Path:
    """A folder as transformers itself saves a tokenizer with a chat template."""
    raw = tokenizer or byte_level_tokenizer()
    raw.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    fast = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>", chat_template=template)
    fast.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"max_position_embeddings": 2048, "eos_token_id": 1}))
    return folder


@pytest.fixture(scope="module", params=list(TEMPLATES))
def named(request, tmp_path_factory):
    return request.param, write_chat_base(tmp_path_factory.mktemp("chat"), TEMPLATES[request.param])


def cut_last(chat, turns, tools=None, **options):
    *asked, answer = read_conversation(turns)
    return chat.cut(asked, answer, tools, **options)


@pytest.mark.parametrize("turns", TURNS, ids=["one", "system", "three"])
def test_prompts_are_what_transformers_gives_to_be_continued(named, turns):
    name, folder = named
    reference = PreTrainedTokenizerFast.from_pretrained(folder)
    chat = ChatTemplate.of(folder)
    answered = [*turns, {"role": "assistant", "content": "a moon"}]
    if name == "mistral" and turns[0]["role"] == "system":
        with pytest.raises(RefusedRowError, match="refuses: Conversation roles must alternate"):
            cut_last(chat, answered)
        return
    expected = reference.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    for bare in (False, True):
        cut = cut_last(chat, answered, bare=bare)
        assert (cut.prompt + cut.lead).rstrip(" ") == expected
        whole = reference.apply_chat_template(answered, tokenize=False)
        assert cut.prompt + cut.lead + cut.answer + chat.closing == whole
        assert (cut.answer, cut.notes) == ("a moon", ())


def test_tokens_of_a_prompt_are_those_of_transformers_with_its_start_token_once(named):
    name, folder = named
    reference = PreTrainedTokenizerFast.from_pretrained(folder)
    chat = ChatTemplate.of(folder)
    tokenizer = PromptTokenizer(folder, chat)
    ids = tokenizer.prompts([cut_last(chat, [USER, {"role": "assistant", "content": "a"}]).prompt])[0]
    expected = reference.apply_chat_template([USER], add_generation_prompt=True, return_dict=False)
    assert ids == expected
    assert tokenizer.end == reference.convert_tokens_to_ids(ENDS[name])


def test_labels_of_which_one_begins_another_close_as_turns_do(named):
    name, folder = named
    reference = PreTrainedTokenizerFast.from_pretrained(folder)
    chat = ChatTemplate.of(folder)
    examples, wholes = [], []
    for label in ("1", "10", "2"):
        turns = [USER, {"role": "assistant", "content": label}]
        cut = cut_last(chat, turns, bare=True)
        examples.append(Example(label, None, label, "x", cut.prompt, cut.answer, lead=cut.lead))
        wholes.append(reference.apply_chat_template(turns, return_dict=False))
    tokenizer = PromptTokenizer(folder, chat)
    labels = label_ids(tokenizer, examples)
    made, _ = tokenise(tokenizer, examples, labels, 200)
    for row, whole in zip(made, wholes, strict=True):
        known = row.prompt_ids + row.answer_ids
        assert known[-1] == reference.convert_tokens_to_ids(ENDS[name])
        if name != "json":  # closes with text, and no token of the tokenizer's own
            assert known == whole[: len(known)]


CALL = [{"id": "abcdefgh1", "type": "function", "function": {"name": "weather", "arguments": {"town": "Ulm"}}}]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "now",
            "parameters": {"type": "object", "properties": {"town": {"type": "string", "description": "where"}}},
        },
    }
]
RESULT = {"role": "tool", "tool_call_id": "abcdefgh1", "name": "weather", "content": '15 "C"'}
SHAREGPT = [
    {"from": "human", "value": "how warm?"},
    {"from": "function_call", "value": json.dumps(CALL[0]["function"])},
    {"from": "observation", "value": "15"},
    {"from": "gpt", "value": "mild"},
]
OPENAI = [  # the same, as transformers takes it
    {"role": "user", "content": "how warm?"},
    {"role": "assistant", "tool_calls": [{"type": "function", "function": CALL[0]["function"]}]},
    {"role": "tool", "content": "15"},
    {"role": "assistant", "content": "mild"},
]


def said(content, **others):
    return {"role": "assistant", "content": content, **others}


CONVERSATIONS = {
    "plain": [USER, said("It is 4.")],
    "spaces": [USER, said(" It is 4.\n")],
    "marks": [USER, said("<b>4</b>")],
    "system": [{"role": "system", "content": "Be brief."}, USER, said("4")],
    "three": [USER, said("4"), {"role": "user", "content": "And 3 + 3?"}, said("6")],
    "thoughts inside": [USER, said("<think>\nadd them\n</think>\n\n4")],
    "thoughts beside": [USER, said("4", reasoning_content="add them")],
    "thoughts under an older name": [USER, said("4", reasoning="add them", reasoning_content=None)],
    "thoughts before": [USER, said("<think>\na\n</think>\n\n4"), USER, said("<think>\nb\n</think>\n\n5")],
    "thoughts beside before": [USER, said("4", reasoning_content="a"), USER, said("5", thinking="b")],
    "call": [USER, said(None, tool_calls=CALL)],
    "call with thoughts": [USER, said("", reasoning_content="must look", tool_calls=CALL)],
    "call with words": [USER, said("Let me see.", tool_calls=CALL), RESULT, said("15 degrees")],
    "called": [USER, said(None, tool_calls=CALL), RESULT, said("15 degrees")],
    "call between": [USER, said(None, tool_calls=CALL), USER, said("well")],
    "sharegpt": SHAREGPT,
}
# Real ones, of many makers; they show pictures, too, with contents that are lists of parts.
PUBLIC = Path(find_spec("trl").origin).parent / "chat_templates"
OF_TEXT = sorted(path for path in PUBLIC.glob("*.jinja") if not path.stem.startswith(("idefics", "llava", "smolvlm")))


class _TheDay(datetime):
    @classmethod
    def now(cls, *_):
        return cls(2025, 1, 1)


@pytest.fixture(scope="module")
def reference():
    """Renders any template as transformers does."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_level_tokenizer(), bos_token="<s>", eos_token="</s>")

    def render(template, turns, **options):
        return tokenizer.apply_chat_template(turns, chat_template=template, tokenize=False, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chat_template_utils, "datetime", _TheDay)
        yield render


def attempt(work, *args, **options):
    """What comes of it, and the words of what it raises."""
    try:
        return work(*args, **options), ""
    except Exception as error:
        return None, f"{error!r}"


@pytest.mark.parametrize("path", OF_TEXT, ids=lambda path: path.stem)
def test_public_templates_write_whole_conversations_as_in_transformers(reference, path):
    """Thoughts, tool calls, tools: huggingface/trl#6361, THUDM/slime#330, NVIDIA-NeMo/Automodel#1644 and #3024."""
    template = path.read_text(encoding="utf-8")
    chat = ChatTemplate(template, {"bos_token": "<s>", "eos_token": "</s>"})
    read = 0
    for name, turns in CONVERSATIONS.items():
        tools = TOOLS if "call" in name or name == "sharegpt" else None
        known = OPENAI if name == "sharegpt" else turns
        cut, refusal = attempt(cut_last, chat, turns, tools)
        whole, _ = attempt(reference, template, known, tools=tools)
        if whole is None:
            assert refusal, name
            continue
        if refusal:
            silent = [{key: value for key, value in turn.items() if key != "tool_calls"} for turn in known]
            left_out = "leaves out" in refusal and reference(template, silent, tools=tools) == whole
            assert left_out or ("does not close" in refusal and not whole.endswith(chat.closing)), name
            continue
        read += 1
        assert cut.prompt + cut.lead + cut.answer + chat.closing == whole, name
        asked = reference(template, known[:-1], tools=tools, add_generation_prompt=True)
        otherwise = any("writes differently" in note for note in cut.notes)
        assert otherwise or (cut.prompt + cut.lead).rstrip(" ").startswith(asked.rstrip(" ")), name
        assert len(reference(template, known[:-1], tools=tools).rstrip()) <= len(cut.prompt + cut.lead) or otherwise
    assert read >= 8


def test_templates_of_qwen3s_kind_train_thoughts_and_calls(reference):
    """The answer begins where the model is given to continue, with its thoughts, or the empty block of none."""
    template = (PUBLIC / "qwen3.jinja").read_text(encoding="utf-8")
    chat = ChatTemplate(template, {})
    answers = {name: cut_last(chat, CONVERSATIONS[name]).answer for name in CONVERSATIONS if "sharegpt" not in name}
    assert answers["plain"] == "<think>\n\n</think>\n\nIt is 4."
    for name in ("thoughts inside", "thoughts beside", "thoughts under an older name"):
        assert answers[name] == "<think>\nadd them\n</think>\n\n4"
    assert answers["thoughts before"] == answers["thoughts beside before"] == "<think>\nb\n</think>\n\n5"
    assert "must look" in answers["call with thoughts"]
    assert json.loads(answers["call"].split("<tool_call>")[1].split("</tool_call>")[0]) == CALL[0]["function"]
    bare = cut_last(chat, CONVERSATIONS["plain"], bare=True)
    assert (bare.prompt[-len("<think>\n\n</think>\n\n") :], bare.answer) == ("<think>\n\n</think>\n\n", "It is 4.")
    with pytest.raises(RefusedRowError, match="writes differently with this answer"):
        cut_last(chat, CONVERSATIONS["thoughts beside"], bare=True)


THINKS = (  # no generation prompt, and a block of thoughts before every last answer
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and (loop.last or m.reasoning_content) %}"
    "<think>\n{{ m.reasoning_content or '' }}\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
)
SYSTEM_LAST = (  # as Mistral's: the system turn stands in the last turn, which is the answer in a whole conversation
    "{% if messages[0].role == 'system' %}{% set system = messages[0].content %}{% set others = messages[1:] %}"
    "{% else %}{% set others = messages %}{% endif %}{% for m in others %}{% if m.role == 'user' %}[INST] "
    "{% if loop.last and system is defined %}{{ system }}\n\n{% endif %}{{ m.content }}[/INST]"
    "{% else %} {{ m.content }}</s>{% endif %}{% endfor %}"
)
OPENS = (  # as DeepSeek-R1's: the prompt opens thoughts, and the whole conversation has none
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content.split('</think>')[-1] }}"
    "{% if m.role == 'assistant' %}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|><think>\n{% endif %}"
)
LLAMA2 = (  # a space behind the answer, too
    "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }} </s>{% endif %}{% endfor %}"
)


@pytest.mark.parametrize(
    ("template", "name", "prompt", "answer", "noted"),
    [
        (THINKS, "thoughts beside", "<|im_start|>assistant\n<think>\n", "add them\n</think>\n\n4", ""),
        (THINKS, "plain", "<|im_start|>assistant\n<think>\n\n</think>\n\n", "It is 4.", ""),
        (
            SYSTEM_LAST,
            "system",
            "[INST] the cat <b>sat</b> on[/INST]",
            "4",
            "system turn that the chat template leaves out",
        ),
        (OPENS, "thoughts inside", "<|assistant|>", "4", "answer of which the chat template leaves out a part"),
        (OPENS, "marks", "<|assistant|>", "<b>4</b>", "prompt that the chat template writes differently"),
        (LLAMA2, "plain", "[/INST]", "It is 4.", ""),
    ],
)
def test_where_the_prompt_is_no_beginning_of_the_whole(reference, template, name, prompt, answer, noted):
    chat = ChatTemplate(template, {})
    cut = cut_last(chat, CONVERSATIONS[name])
    assert cut.prompt + cut.lead + cut.answer + chat.closing == reference(template, CONVERSATIONS[name])
    assert cut.prompt.endswith(prompt)
    assert cut.answer.lstrip() == answer
    assert noted in " ".join(cut.notes)
    assert bool(noted) == bool(cut.notes)


def test_what_stands_between_answer_and_end_is_trained(tmp_path):
    folder = write_chat_base(tmp_path, LLAMA2)
    chat = ChatTemplate.of(folder)
    tokenizer = PromptTokenizer(folder, chat)
    cut = cut_last(chat, [USER, said("the moon")])
    example = Example("e", None, None, "x", cut.prompt, cut.answer, lead=cut.lead)
    made, _ = tokenise(tokenizer, [example], None, 200)
    whole = PreTrainedTokenizerFast.from_pretrained(folder).apply_chat_template(
        [USER, said("the moon")], return_dict=False
    )
    assert made[0].prompt_ids + made[0].answer_ids == whole


@pytest.mark.parametrize(
    ("template", "turns"),
    [
        (TEMPLATES["chatml"].replace("message['content']", "(message.content or '')"), CONVERSATIONS["call between"]),
        (TEMPLATES["chatml"].replace("message['content']", "(message.content or '')"), CONVERSATIONS["call"]),
    ],
)
def test_calls_that_a_template_does_not_write_are_refused(template, turns):
    with pytest.raises(RefusedRowError, match="tool calls the chat template leaves out"):
        cut_last(ChatTemplate(template, {}), turns)


def test_a_template_for_tools_is_used_where_there_are_tools(tmp_path, reference):
    plain, tooled = TEMPLATES["close"], TEMPLATES["tools"]
    raw = PreTrainedTokenizerFast(
        tokenizer_object=byte_level_tokenizer(),
        bos_token="<s>",
        eos_token="</s>",
        chat_template={"default": plain, "tool_use": tooled},
    )
    raw.save_pretrained(tmp_path)
    chat, turns = ChatTemplate.of(tmp_path), [USER, said("a")]
    for tools in (None, TOOLS):
        cut = cut_last(chat, turns, tools)
        assert cut.prompt + cut.lead + cut.answer + chat.closing == raw.apply_chat_template(
            turns, tools=tools, tokenize=False
        )
    assert chat.digest != ChatTemplate(plain, {"bos_token": "<s>", "eos_token": "</s>"}).digest


def test_a_template_that_asks_for_the_date_gets_the_same_one_every_day():
    chat = ChatTemplate("{{ strftime_now('%d %b %Y') }}{% for m in messages %}|{{ m.content }}{% endfor %}", {})
    assert cut_last(chat, [USER, said("a")]).prompt == "01 Jan 2025|the cat <b>sat</b> on|"


def test_templates_in_the_configuration_are_found(tmp_path):
    for held in ("{{ messages[-1].content }}", [{"name": "default", "template": "{{ messages[-1].content }}"}]):
        config = {"chat_template": held, "bos_token": {"content": "<s>"}}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
        assert cut_last(ChatTemplate.of(tmp_path), [USER, said("a")]).answer == "a"


@pytest.mark.parametrize(
    ("template", "told"),
    [
        (None, "has no chat template"),
        ("{% for %}", "cannot be used"),
        ("{{ raise_exception('not today') }}", "not today"),
        ("{{ messages[0].content }}", "leaves out"),
        ("{{ messages.__class__.mro() }}", "unsafe"),
        ("{{ range(10 ** 9) }}", "Range too big"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "recursion"),
        ("{{ lipsum(n=9) }}", "'lipsum' is undefined"),
        ("{{ cycler('a').next() }}", "'cycler' is undefined"),
        ("{{ dict.update(messages[0], {'content': 'x'}) }}", "no attribute 'update'"),
        ("{% set ns = namespace(a=1) %}{{ ns.__class__.mro() }}", "unsafe"),
    ],
)
def test_absent_and_broken_templates_are_one_line(tmp_path, template, told):
    folder = write_chat_base(tmp_path, template)
    with pytest.raises(UserError, match=rf"prepare\.chat_template: .*{told}") as caught:
        ChatTemplate.of(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("fault", ["1 / 0", "'a' * 10 ** 16", "messages[9].content.x", "messages[0].content + 1"])
def test_a_template_that_fails_on_a_row_refuses_that_row(fault):
    chat = ChatTemplate(f"{{{{ {fault} if messages[0].content == 'b' }}}}{{{{ messages[-1].content }}}}", {})
    assert cut_last(chat, [USER, said("a")]).answer == "a"
    with pytest.raises(RefusedRowError, match=r"chat template refuses: \S"):
        cut_last(chat, [{"role": "user", "content": "b"}, said("a")])


HUNGRY = {  # a trial with a short text ends these
    "loops": ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "s of processor time"),
    "repeats": ("{{ 'a' * 10 ** 11 }}", "GiB of memory"),
    "doubles": (
        "{% set ns = namespace(a='aa') %}{% for n in range(99) %}{% set ns.a = ns.a ~ ns.a %}{% endfor %}",
        "GiB of memory",
    ),
    "indents": ("{{ messages | tojson(indent=999999999) }}", "GiB of memory"),
}


@pytest.mark.parametrize("name", HUNGRY)
def test_hungry_templates_end_in_one_line(tmp_path, monkeypatch, name):
    template, limit = HUNGRY[name]
    if "processor" in limit:
        monkeypatch.setattr(trial, "SECONDS", 0)
    folder = write_chat_base(tmp_path, template)
    with pytest.raises(UserError, match=rf"chat_template\.jinja: a trial .* took more than \d {limit}"):
        trial.try_out((render_sample, ChatTemplate.file(folder)))


def test_hungry_tokenizers_end_in_one_line(tmp_path):
    file = write_chat_base(tmp_path, TEMPLATES["chatml"]) / "tokenizer.json"
    trial.try_out((trial.tokenise_sample, file))
    held = json.loads(file.read_text(encoding="utf-8"))
    grow = {"type": "Replace", "pattern": {"String": "e"}, "content": "e" * 1000}
    held["normalizer"] = {"type": "Sequence", "normalizers": [grow, grow, grow]}
    file.write_text(json.dumps(held), encoding="utf-8")
    with pytest.raises(UserError, match=r"tokenizer\.json: a trial .* took more than 2 GiB of memory"):
        trial.try_out((trial.tokenise_sample, file))


def test_a_trial_leaves_other_faults_to_the_stage_and_does_not_hide_its_own(tmp_path, monkeypatch):
    folder = write_chat_base(tmp_path, "{% for %}")
    trial.try_out((render_sample, ChatTemplate.file(folder)))
    monkeypatch.setattr(trial, "_CHILD", "import no_such_module_anywhere")
    with pytest.raises(RuntimeError, match=r"did not begin: (.*\s)*.*no_such_module_anywhere"):
        trial.try_out((render_sample, folder))


ASKS = {"role": "user", "content": "a"}


@pytest.mark.parametrize(
    ("asks", "answers"),
    [
        (("from", "human", "value"), ("from", "gpt", "value")),
        (("role", " User", "content"), ("role", "ASSISTANT ", "content")),
        (("from", "USER", "value"), ("from", "ChatGPT", "value")),
        (("role", "user", "content"), ("role", "model", "content")),
        (("role", "prompter", "content"), ("role", "AI", "content")),
    ],
)
def test_roles_in_common_use_are_read(asks, answers):
    turns = [{key[0]: key[1], key[2]: text} for key, text in ((asks, "a"), (answers, " b"), (asks, "c"))]
    expected = [ASKS, said(" b")]
    assert read_conversation(turns) == expected
    assert read_conversation(json.dumps(turns)) == expected


def test_other_turns_keep_their_keys():
    told = read_conversation(
        [
            {"role": "Developer", "content": "brief", "name": "x"},
            {"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "text", "text": "y"}]},
            said(None, tool_calls=json.dumps(CALL), weight=0),
            {"role": "ipython", "content": "5", "tool_call_id": "abcdefgh1"},
            {"role": "function", "content": "6", "name": "f"},
            said("z", reasoning_content="r"),
        ]
    )
    assert told == [
        {"role": "system", "content": "brief", "name": "x"},
        {"role": "user", "content": "xy"},
        said(None, tool_calls=CALL, weight=0),
        {"role": "tool", "content": "5", "tool_call_id": "abcdefgh1"},
        {"role": "tool", "content": "6", "name": "f"},
        said("z", reasoning_content="r"),
    ]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "not a list of turns"),
        (["hello"], "not a list of turns"),
        ("[" * 100_000, "not a list of turns"),
        ([ASKS], "without an answer"),
        ([said("a")], "asks nothing"),
        ([ASKS, said(" ")], "missing answer"),
        ([ASKS, said(None, reasoning_content="hm")], "missing answer"),
        ([ASKS, said(None), ASKS, said("b")], "empty turn of the assistant"),
        ([ASKS, said("", tool_calls=[]), ASKS, said("b")], "empty turn of the assistant"),
        ([{"role": "narrator", "content": "a"}], r"unknown role \('narrator'\)"),
        ([{"content": "a"}], r"unknown role \(''\)"),
        ([{"role": "user", "content": [{"type": "image"}]}], "not text"),
        ([{"role": "tool", "content": {"a": 1}}], "not text"),
        ([{"from": "function_call", "value": "{}"}], "lacks its name or arguments"),
        ([{"from": "function_call", "value": "weather(Ulm)"}], "something other than JSON objects"),
        ([ASKS, said(None, tool_calls=["weather"])], "something other than JSON objects"),
        ([ASKS, said("a", function_call={"name": "f"})], "lacks its name or arguments"),
        ([ASKS, said("a", weight=0)], "not to be learned"),
        ([{"role": "user", "content": [{"type": "image", "text": ""}]}], "not text"),
        ([{"role": "user", "parts": [{"text": "a"}]}], "has no content: an object with the keys 'role', 'parts'"),
    ],
)
def test_conversations_that_cannot_be_used_are_refused_with_a_reason(value, reason):
    with pytest.raises(RefusedRowError, match=reason):
        read_conversation(value)


def test_tools_are_a_list_or_its_text():
    for value in (TOOLS, json.dumps(TOOLS), [json.dumps(tool) for tool in TOOLS]):
        assert read_tools({"tools": value}) == TOOLS
    assert [read_tools({"tools": value}) for value in (None, "", [])] == [None, None, []]
    assert read_tools({"functions": [tool["function"] for tool in TOOLS]}) == TOOLS
    with pytest.raises(RefusedRowError, match="column tools that holds something other than JSON objects"):
        read_tools({"tools": "hammer, saw"})


def test_what_openai_and_sharegpt_once_wrote_elsewhere_is_read():
    # diegosouzapw/OmniRoute#12692 (function_call), axolotl-ai-cloud/axolotl#2397 (a column for the system turn)
    call = {"name": "weather", "arguments": '{"town": "Ulm"}'}
    told = read_conversation([ASKS, said("let me see", function_call=call)], "be brief")
    calls = [{"type": "function", "function": call}]
    assert told == [{"role": "system", "content": "be brief"}, ASKS, said("let me see", tool_calls=calls)]
    own = [{"role": "system", "content": "my own"}, ASKS, said("a")]
    assert read_conversation(own, "be brief") == own
    assert read_conversation([ASKS, said("a")], None) == read_conversation([ASKS, said("a")], [1]) == [ASKS, said("a")]


@pytest.mark.parametrize(("arguments", "noted"), [('{"town": "Köln"}', True), ({"town": "Köln"}, False)])
def test_arguments_that_a_template_quotes_twice_are_noted(arguments, noted):
    # oumi-ai/oumi#2599: OpenAI's form holds them as JSON text, and many templates take an object
    chat = ChatTemplate(
        "{% for m in messages %}{{ m.role }}: {{ m.content or '' }}"
        "{% if m.tool_calls %}{{ m.tool_calls | tojson }}{% endif %};{% endfor %}",
        {},
    )
    call = [{"type": "function", "function": {"name": "weather", "arguments": arguments}}]
    cut = cut_last(chat, [USER, said("", tool_calls=call)])
    assert any("quotes once more" in note for note in cut.notes) == noted


def test_a_data_set_of_messages(tmp_path, workspace):
    base = write_chat_base(tmp_path / "base", TEMPLATES["mistral"])
    reference = PreTrainedTokenizerFast.from_pretrained(base)
    rows = [
        {"messages": [{"role": "user", "content": f"count {n}"}, {"role": "assistant", "content": f"sure {n}"}]}
        for n in range(40)
    ]
    twice = {"messages": [USER, USER, {"role": "assistant", "content": "x"}]}
    long = {"messages": [{"role": "user", "content": "a cat " * 200}, {"role": "assistant", "content": "x"}]}
    write_jsonl(tmp_path / "rows.jsonl", [*rows, twice, long, {"messages": []}])
    settings = {"task": "free", "messages": "messages"}
    out = workspace(settings, {"chat_template": True, "max_tokens": 80}, base)
    meta = json.loads((out / "meta.json").read_text(encoding="utf-8"))
    refused = {entry["reason"].partition(":")[0]: entry["count"] for entry in meta["refused"]}
    assert refused == {
        "conversation that the chat template refuses": 1,
        "conversation that is too long (max_tokens)": 1,
        "conversation without an answer of the assistant": 1,
    }
    assert (meta["truncated"], meta["end_token_id"]) == (0, 1)
    for row in pq.read_table(out / "train.parquet").to_pylist():
        number = row["answer"].removeprefix("sure ")
        turns = [{"role": "user", "content": f"count {number}"}, {"role": "assistant", "content": row["answer"]}]
        expected = reference.apply_chat_template(turns, return_dict=False)
        assert row["prompt_ids"] + row["answer_ids"] == expected


def test_a_data_set_of_tool_calls(tmp_path, workspace):
    base = write_chat_base(tmp_path / "base", (PUBLIC / "qwen2_5.jinja").read_text(encoding="utf-8"))
    reference = PreTrainedTokenizerFast.from_pretrained(base)
    called = [said(None, tool_calls=CALL), RESULT]
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"how warm in {n}?"},
                *(called[:1] if n % 2 else [*called, said(f"{n} degrees")]),
            ],
            "tools": json.dumps(TOOLS) if n % 3 else TOOLS,
        }
        for n in range(40)
    ]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    settings = {"chat_template": True, "max_tokens": 2000, "near_duplicate": 1.0}
    out = workspace({"task": "free", "messages": "messages"}, settings, base)
    known = [reference.apply_chat_template(row["messages"], tools=TOOLS, tokenize=False) for row in rows]
    made = [
        row for name in ("train", "validation", "test") for row in pq.read_table(out / f"{name}.parquet").to_pylist()
    ]
    assert sorted(row["prompt"] + row["answer"] + "<|im_end|>\n" for row in made) == sorted(known)
    assert sum(row["answer"].startswith("<tool_call>") for row in made) == 20
    meta = json.loads((out / "meta.json").read_text(encoding="utf-8"))
    assert (meta["refused"], meta["noted"]) == ([], [])


def test_conversations_that_share_a_long_system_turn_are_not_taken_for_each_other(tmp_path, workspace):
    base = write_chat_base(tmp_path / "base", TEMPLATES["chatml"])
    system = {"role": "system", "content": " ".join(f"rule{n}" for n in range(60))}
    rows = [
        {
            "messages": [
                system,
                {"role": "user", "content": f"ask {n} of {n * 7}"},
                {"role": "assistant", "content": f"a{n}"},
            ]
        }
        for n in range(40)
    ]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    out = workspace({"task": "free", "messages": "messages"}, {"chat_template": True, "max_tokens": 2000}, base)
    kept = [pq.read_table(out / f"{split}.parquet") for split in ("train", "validation", "test")]
    assert sum(len(table) for table in kept) == 40
    assert all("rule1" not in text for table in kept for text in table["text"].to_pylist())


def test_any_task_can_be_asked_in_the_chat_form(tmp_path, workspace):
    base = write_chat_base(tmp_path / "base", TEMPLATES["chatml"])
    reference = PreTrainedTokenizerFast.from_pretrained(base)
    write_jsonl(
        tmp_path / "rows.jsonl", [{"text": f"item {n}", "label": ["sports", "world"][n % 2]} for n in range(60)]
    )
    out = workspace({}, {"chat_template": True}, base)
    meta = json.loads((out / "meta.json").read_text(encoding="utf-8"))
    assert meta["chat_template"] == ChatTemplate.of(base).digest
    assert (meta["end_token_id"], meta["noted"]) == (None, [])
    for row in pq.read_table(out / "test.parquet").to_pylist():
        turns = [{"role": "user", "content": f"{row['text']}\nLabel:"}, {"role": "assistant", "content": row["label"]}]
        whole = reference.apply_chat_template(turns, return_dict=False)
        known = row["prompt_ids"] + row["answer_ids"]
        assert whole[: len(known)] == known
        assert whole[len(known)] == reference.convert_tokens_to_ids("<|im_end|>")


def test_conversations_may_be_classified():
    turns = [[USER, said(label)] for label in ("yes", " no ", None)]
    loaded = Loaded({"train": [Row(str(n), {"m": one}) for n, one in enumerate(turns)]}, ("m",), {})
    filler = Filler(make_data(messages="m"), ChatTemplate(TEMPLATES["close"], {}))
    examples, refused = fill_rows(loaded, filler)
    assert [(e.label, e.answer) for e in examples["train"]] == [("yes", "yes"), ("no", "no")]
    assert filler.classes == {"yes": 1, "no": 1}
    assert refused == {("train", "missing answer"): 1}


def test_conversations_need_the_chat_template(tmp_path):
    with pytest.raises(UserError, match=r"set prepare\.chat_template to true"):
        load_params(write_params(tmp_path, data__messages="messages"))
