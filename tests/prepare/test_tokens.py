import json

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from salf.errors import UserError
from stages.prepare.rows import Example
from stages.prepare.tokens import PromptTokenizer, label_ids, shared_prefix, tokenise
from tests.prepare.making import write_base


def example(prompt: str, answer: str, label: str | None = None, name: str = "e") -> Example:
    return Example(name, None, label, prompt, prompt, answer)


@pytest.fixture(scope="module")
def tokenizer(base) -> PromptTokenizer:
    return PromptTokenizer(base)


@pytest.fixture(scope="module")
def raw(base) -> Tokenizer:
    return Tokenizer.from_file(str(base / "tokenizer.json"))


def test_prompts_start_with_what_the_tokenizer_adds_and_do_not_end_with_it(tokenizer, raw):
    ids = tokenizer.prompts(["the cat"])[0]
    assert [*ids, 1] == raw.encode("the cat").ids  # </s> is 1
    assert ids[0] == 0
    assert tokenizer.start == [0]


@pytest.mark.parametrize("prompt", ["the cat\nLabel:", "the cat\nLabel: ", "the cat\n"])
def test_prompt_and_answer_are_the_whole_text_with_one_space_between(tokenizer, raw, prompt):
    made, _ = tokenise(tokenizer, [example(prompt, "sports and science")], None, 200)
    row = made[0]
    assert row.answer_ids[-1] == tokenizer.end == 1
    text = raw.decode(row.prompt_ids + row.answer_ids, skip_special_tokens=True)
    assert text == prompt + ("" if prompt[-1].isspace() else " ") + "sports and science"


def test_answers_that_merge_with_the_prompt_are_tokenised_apart(tokenizer, raw):
    # "Label: " ends in a space token; together with the answer the space would join the word.
    joint = raw.encode("Label: sports", add_special_tokens=False).tokens
    assert any(token.startswith("Ġs") for token in joint)
    made, _ = tokenise(tokenizer, [example("Label: ", "sports")], None, 200)
    assert made[0].answer_ids[:-1] == raw.encode("sports", add_special_tokens=False).ids


def test_label_tokens_are_the_same_behind_every_prompt(tokenizer, raw):
    examples = [
        example(f"{words}\nLabel:", word, word) for words in ("a cat", "a dog x") for word in ("sports", "world")
    ]
    labels = label_ids(tokenizer, examples)
    assert labels == {w: raw.encode(f" {w}", add_special_tokens=False).ids for w in ("sports", "world")}
    made, _ = tokenise(tokenizer, examples, labels, 200)
    assert {tuple(row.answer_ids) for row in made if row.example.label == "world"} == {tuple(labels["world"])}
    begin_alike = [example("x\nLabel:", word, word) for word in ("very good", "very bad", "good")]
    assert set(label_ids(tokenizer, begin_alike)) == {"very good", "very bad", "good"}


def test_sentencepiece_like_tokenizers_do_not_get_a_second_space(tmp_path):
    vocabulary = {"<unk>": 0, "▁": 1, "▁Label": 2, ":": 3, "▁yes": 4, "▁no": 5, "▁cat": 6}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.normalizer = normalizers.Replace("  ", " ")
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(prepend_scheme="first"), pre_tokenizers.Punctuation()]
    )
    raw.decoder = decoders.Metaspace()
    tokenizer = PromptTokenizer(write_base(tmp_path, raw))
    labels = label_ids(tokenizer, [example("cat Label:", word, word) for word in ("yes", "no")])
    assert labels == {"yes": [4], "no": [5]}


def test_words_that_cannot_be_told_apart_are_both_named(tokenizer):
    examples = [example("x\nLabel:", "yes", label) for label in ("first", "second")]
    with pytest.raises(
        UserError, match=r"cannot tell 'yes' .*first.* from 'yes' .*second.*equal or begin those of the other; give one"
    ):
        label_ids(tokenizer, examples)


@pytest.mark.parametrize(
    "words",
    [
        ("sports", "sports now", "world"),
        [str(n) for n in range(1, 13)],  # huggingface/trl and others: ratings, a token a digit
        ("pto_request", "pto_request_status", "pay"),
        ("a", "a a", "a a a"),
    ],
)
def test_words_of_which_one_begins_another_all_close_with_the_end_token(tokenizer, raw, words):
    examples = [example("x\nLabel:", word, word) for word in words]
    ids = label_ids(tokenizer, examples)
    assert ids == {word: [*raw.encode(f" {word}", add_special_tokens=False).ids, 1] for word in words}
    made, _ = tokenise(tokenizer, examples, ids, 200)
    assert [row.answer_ids for row in made] == [ids[word] for word in words]


def test_words_of_which_one_begins_another_need_an_end_token(tmp_path):
    folder = write_base(tmp_path)
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer_config.json").unlink()
    examples = [example("x\nLabel:", word, word) for word in ("sports", "sports now")]
    with pytest.raises(UserError, match=r"cannot tell 'sports' .* from 'sports now' .*names no end-of-sequence token"):
        label_ids(PromptTokenizer(folder), examples)


@pytest.mark.parametrize("end", [1, 338, [400, 1]])
def test_tokens_beyond_the_embedding_are_named_with_both_numbers(tmp_path, raw, end):
    """huggingface/transformers#12763 and #11102, hiyouga/LLaMA-Factory#9338."""
    folder, text = write_base(tmp_path), "a moon Label: sports"
    worst = max(raw.encode(text).ids)
    (folder / "config.json").write_text(json.dumps({"vocab_size": worst, "eos_token_id": end}))
    first = end[0] if isinstance(end, list) else max(end, worst)
    name = f"token {raw.id_to_token(first)!r}" if raw.id_to_token(first) else "eos_token_id"
    with pytest.raises(UserError) as told:
        tokenise(PromptTokenizer(folder), [example(text, "yes")], None, 200)
    assert f"{name} has the id {first}, and the embedding has {worst} rows (ids 0 to {worst - 1}):" in str(told.value)


@pytest.mark.parametrize(
    ("text", "answer", "notes"),
    [
        ("a < b > c", "yes", []),
        ("a </s> b </s>", "yes", ["with text that holds a special token of the tokenizer: '</s>'"]),
        ("<s>", "no", ["with text that holds a special token of the tokenizer: '<s>'"]),
        (
            "a",
            "yes </s> no",
            [
                "with text that holds a special token of the tokenizer: '</s>'",
                "with an answer that holds the token that ends answers",
            ],
        ),
    ],
)
def test_texts_that_hold_special_tokens_are_noted(tokenizer, raw, text, answer, notes):
    """As transformers, the tokenizer reads them as its own: FranxYao/Long-Context-Data-Engineering#14."""
    made, _ = tokenise(tokenizer, [example(text, answer)], None, 200)
    assert tokenizer.notes(made[0]) == notes
    own = [token for token in (*made[0].prompt_ids[1:], *made[0].answer_ids[:-1]) if token < 2]
    assert bool(own) == bool(notes)


def test_unknown_words_of_a_word_level_vocabulary_cannot_be_told_apart(tmp_path):
    raw = Tokenizer(models.WordLevel({"<unk>": 0, "x": 1}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PromptTokenizer(write_base(tmp_path, raw))
    with pytest.raises(UserError, match=r"cannot tell 'apple' .* from 'pear'"):
        label_ids(tokenizer, [example("x", "apple", "a"), example("x", "pear", "b")])


def test_long_prompts_lose_their_left_end_and_keep_the_start_token(tokenizer, raw):
    prompt = "the cat sat on the mat and looked at the moon Label:"
    whole = tokenizer.prompts([prompt])[0]
    labels = {"yes": raw.encode(" yes", add_special_tokens=False).ids, "no": raw.encode(" no").ids[1:-1]}
    limit = 14
    made, refused = tokenise(tokenizer, [example(prompt, "yes", "yes"), example("cat", "yes", "yes")], labels, limit)
    room = limit - max(map(len, labels.values()))
    assert made[0].prompt_ids == [0, *whole[len(whole) - room + 1 :]]
    assert [row.cut for row in made] == [True, False]
    assert not refused


@pytest.mark.parametrize("name", ["max_position_embeddings", "n_positions"])
def test_the_models_context_caps_the_length(tmp_path, name):
    folder = write_base(tmp_path)
    (folder / "config.json").write_text(json.dumps({name: 12, "eos_token_id": 1}))
    made, _ = tokenise(PromptTokenizer(folder), [example("the cat sat on the mat " * 9, "a")], None, 500)
    assert len(made[0].prompt_ids) + len(made[0].answer_ids) == 12


def test_an_answer_that_leaves_no_room_is_refused(tokenizer):
    made, refused = tokenise(tokenizer, [example("cat", "so long an answer " * 20), example("cat", "no")], None, 20)
    assert len(made) == 1
    assert list(refused.values()) == [1]


def test_free_answers_need_an_end_token(tmp_path):
    folder = write_base(tmp_path)
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "</s>"}}))
    assert PromptTokenizer(folder).end == 1
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(UserError, match="end-of-sequence"):
        tokenise(PromptTokenizer(folder), [example("a", "b")], None, 20)


def test_missing_and_damaged_tokenizers(tmp_path):
    with pytest.raises(UserError, match=r"tokenizer\.json: no such file.* base"):
        PromptTokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="damaged tokenizer"):
        PromptTokenizer(tmp_path)


@pytest.mark.parametrize(
    ("prompts", "length"),
    [
        ([[1, 2, 3, 4], [1, 2, 3, 5], [1, 2, 9, 9]], 2),
        ([[1, 2, 3], [1, 2, 3]], 2),  # at least one token of its own is left to every prompt
        ([[1, 2], [1, 2, 3, 4]], 1),
        ([[1], [1, 2]], 0),
        ([[5], [6]], 0),
        ([], 0),
    ],
)
def test_shared_prefix(prompts, length):
    assert shared_prefix(prompts) == length


def test_real_llama_tokenizer(shared):
    tokenizer = PromptTokenizer(shared / "models" / "stories260K")
    raw = Tokenizer.from_file(str(shared / "models" / "stories260K" / "tokenizer.json"))
    prompt = "Once upon a time\nLabel:"
    labels = label_ids(tokenizer, [example(prompt, word, word) for word in ("happy", "sad")])
    both = tokenizer.prompts([prompt])[0] + labels["happy"]
    assert raw.encode(f"{prompt} happy", add_special_tokens=False).ids == both[len(tokenizer.start) :]
