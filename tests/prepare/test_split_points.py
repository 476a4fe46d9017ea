"""Where the data of a prompt end, in tokens: what answer-side tuning splits prompts by."""

import json

import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer
from tokenizers.models import BPE

from salf.engine.batches import read_examples
from salf.errors import UserError
from salf.settings import AnswerSide
from salf.split_point import split_points
from stages.prepare.chat import ChatTemplate
from stages.prepare.rows import Example
from stages.prepare.tokens import PromptTokenizer, tokenise
from tests.prepare.making import write_base, write_jsonl
from tests.prepare.test_chat import TEMPLATES, write_chat_base


@pytest.mark.parametrize("cut", [200, 24])
def test_a_template_s_data_end_with_its_last_column_whether_a_prompt_is_cut_or_not(tmp_path, workspace, base, cut):
    raw = Tokenizer.from_file(str(base / "tokenizer.json"))
    rows = [{"text": f"count {n} cats", "more": f"é{n}\n", "label": ["sports", "world"][n % 2]} for n in range(40)]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    out = workspace({"template": "Q {text}! {more}{{x}} Label:"}, {"max_tokens": cut})
    known = {row["text"]: row["more"] for row in rows}
    table = pq.read_table(out / "train.parquet").to_pylist()
    for row in table:
        data = f"Q {next(text for text in known if text in row['text'])}! "
        data += known[row["text"].split("\n")[0]]
        assert row["prompt"].startswith(data)
        inside = [end <= len(data) for _, end in raw.encode(row["prompt"], add_special_tokens=False).offsets]
        gone = 1 + len(inside) - len(row["prompt_ids"])  # <s> stays first
        assert row["field_end"] == 1 + sum(inside) - gone
        assert (gone > 0) == (cut < 200)
        assert row["turn_end"] is None
    meta = json.loads((out / "meta.json").read_text(encoding="utf-8"))
    assert meta["splits"]["train"]["field_tokens"] == sum(row["field_end"] for row in table)
    assert [one.field_end for one in read_examples(out, "train")] == [row["field_end"] for row in table]


def test_a_token_that_reaches_across_the_end_is_on_the_trained_side_and_counted(tmp_path):
    vocabulary = {token: at for at, token in enumerate(["</s>", "x", "a", "b", "c", "d", "bc"])}
    base = write_base(tmp_path, Tokenizer(BPE(vocab=vocabulary, merges=[("b", "c")])))
    made, _ = tokenise(PromptTokenizer(base), [Example("e", None, None, "ab", "abcd", "x", field_end=2)], None, 50)
    assert (made[0].prompt_ids, made[0].field_end, made[0].merged) == ([2, 6, 5], 1, ("field",))


@pytest.mark.parametrize("name", sorted(TEMPLATES))
@pytest.mark.parametrize("messages", [True, False])
def test_turns_end_where_the_template_begins_to_ask_for_the_answer(tmp_path, workspace, name, messages):
    base = write_chat_base(tmp_path / "base", TEMPLATES[name])
    said = [f"count {n} <b>cats</b>" for n in range(40)]
    rows = [
        {"text": text, "label": "yes", "m": [{"role": "user", "content": text}, {"role": "assistant", "content": "a"}]}
        for text in said
    ]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    settings = {"messages": "m"} if messages else {"template": " {text} again"}
    out = workspace({"task": "free", **settings}, {"chat_template": True, "max_tokens": 2000}, base)
    tokenizer = PromptTokenizer(base, chat := ChatTemplate.of(base))
    for row in pq.read_table(out / "train.parquet").to_pylist():
        content = row["text"] if messages else f" {row['text']} again"
        turn = chat.render([{"role": "user", "content": content}])
        asked = tokenizer.prompts([turn if row["prompt"].startswith(turn) else row["prompt"]])[0]
        assert row["prompt_ids"][: row["turn_end"]] == asked
        field = tokenizer.prompts([row["prompt"].partition(row["text"])[0] + row["text"]])[0]
        assert row["prompt_ids"][: row["field_end"]] == field


def test_the_base_never_reads_the_position_that_predicts_the_answer():
    field, more = AnswerSide(), AnswerSide(extra=2)
    assert split_points([9, 5, 3], [4, 5, 1], field) == [4, 4, 1]
    assert split_points([9, 5], [4, 5], more) == [2, 2]
    assert split_points([9], [8], AnswerSide.model_validate({"from": "turn"})) == [8]
    with pytest.raises(UserError, match="2 of 3 examples have no prompt part"):
        split_points([9, 5, 1], [2, 5, 1], more)
    with pytest.raises(UserError, match="where the field of a prompt ends: run prepare again"):
        split_points([9], [None], field)
    with pytest.raises(UserError, match=r"the turn of a prompt ends: set prepare\.chat_template"):
        split_points([9], [None], AnswerSide(start="turn"))
