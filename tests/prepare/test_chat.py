"""Chat templates rendered as transformers renders them, and conversations as rows."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from stages.common.command import UserError
from stages.common.params import load_params
from stages.prepare.chat import ChatTemplate
from stages.prepare.conversations import read_conversation
from stages.prepare.rows import RefusedRowError
from stages.prepare.tokens import PromptTokenizer
from tests.conftest import write_params
from tests.prepare.making import byte_level_tokenizer, write_jsonl

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
    (folder / "config.json").write_text(json.dumps({"max_position_embeddings": 512, "eos_token_id": 1}))
    return folder


@pytest.fixture(scope="module", params=list(TEMPLATES))
def named(request, tmp_path_factory):
    return request.param, write_chat_base(tmp_path_factory.mktemp("chat"), TEMPLATES[request.param])


@pytest.mark.parametrize("turns", TURNS, ids=["one", "system", "three"])
def test_prompts_are_what_transformers_gives_to_be_continued(named, turns):
    name, folder = named
    reference = PreTrainedTokenizerFast.from_pretrained(folder)
    chat = ChatTemplate.of(folder)
    if name == "mistral" and turns[0]["role"] == "system":
        with pytest.raises(RefusedRowError, match="refuses: Conversation roles must alternate"):
            chat.open(turns)
        return
    opened = chat.open(turns)
    expected = reference.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    if name == "json":  # the order of a turn's keys, and nothing behind the prompt that belongs to the answer
        assert opened.prompt.endswith('"content": "')
    assert (opened.prompt + opened.lead).rstrip(" ") == expected
    whole = reference.apply_chat_template([*turns, {"role": "assistant", "content": "a moon"}], tokenize=False)
    assert opened.prompt + opened.lead + "a moon" + opened.closing == whole


def test_tokens_of_a_prompt_are_those_of_transformers_with_its_start_token_once(named):
    name, folder = named
    reference = PreTrainedTokenizerFast.from_pretrained(folder)
    chat = ChatTemplate.of(folder)
    tokenizer = PromptTokenizer(folder, chat)
    ids = tokenizer.prompts([chat.open([USER]).prompt])[0]
    expected = reference.apply_chat_template([USER], add_generation_prompt=True, return_dict=False)
    assert ids == expected
    assert tokenizer.end == reference.convert_tokens_to_ids(ENDS[name])


def test_a_template_that_asks_for_the_date_gets_the_same_one_every_day():
    chat = ChatTemplate("{{ strftime_now('%d %b %Y') }}{% for m in messages %}|{{ m.content }}{% endfor %}", {})
    assert chat.open([USER]).prompt == "01 Jan 2025|the cat <b>sat</b> on|"


def test_templates_in_the_configuration_are_found(tmp_path):
    for held in ("{{ messages[-1].content }}", [{"name": "default", "template": "{{ messages[-1].content }}"}]):
        config = {"chat_template": held, "bos_token": {"content": "<s>"}}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
        assert ChatTemplate.of(tmp_path).open([USER]).prompt == ""


@pytest.mark.parametrize(
    ("template", "told"),
    [
        (None, "has no chat template"),
        ("{% for %}", "cannot be used"),
        ("{{ raise_exception('not today') }}", "not today"),
        ("{{ messages[0].content }}", "leaves out"),
        ("{{ messages.__class__.mro() }}", "unsafe"),
    ],
)
def test_absent_and_broken_templates_are_one_line(tmp_path, template, told):
    folder = write_chat_base(tmp_path, template)
    with pytest.raises(UserError, match=rf"prepare\.chat_template: .*{told}") as caught:
        ChatTemplate.of(folder)
    assert "\n" not in str(caught.value)


def test_the_last_answer_is_what_is_asked_for():
    turns = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}, {"from": "human", "value": "c"}]
    assert read_conversation(turns) == ([{"role": "user", "content": "a"}], "b")
    parts = [{"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "text", "text": "y"}]}]
    assert read_conversation([*parts, {"role": "assistant", "content": "z"}])[0][0]["content"] == "xy"


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "no list of turns"),
        (["hello"], "no list of turns"),
        ([{"role": "user", "content": "a"}], "without an answer"),
        ([{"role": "assistant", "content": "a"}], "asks nothing"),
        ([{"role": "user", "content": "a"}, {"role": "assistant", "content": " "}], "missing answer"),
        ([{"role": "tool", "content": "a"}], "unknown role"),
        ([{"role": "user", "content": [{"type": "image"}]}], "not text"),
    ],
)
def test_conversations_that_cannot_be_used_are_refused_with_a_reason(value, reason):
    with pytest.raises(RefusedRowError, match=reason):
        read_conversation(value)


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
    for row in pq.read_table(out / "test.parquet").to_pylist():
        turns = [{"role": "user", "content": f"{row['text']}\nLabel:"}, {"role": "assistant", "content": row["label"]}]
        whole = reference.apply_chat_template(turns, return_dict=False)
        known = row["prompt_ids"] + row["answer_ids"]
        assert whole[: len(known)] == known
        assert whole[len(known)] == reference.convert_tokens_to_ids("<|im_end|>")


def test_conversations_need_the_chat_template(tmp_path):
    with pytest.raises(UserError, match=r"set prepare\.chat_template to true"):
        load_params(write_params(tmp_path, data__messages="messages"))
