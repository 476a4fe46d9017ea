"""Plain text: documents become blocks, nothing is lost, and what makes no sense for text is refused."""

import json
import random
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ruamel.yaml import YAML
from tokenizers import Tokenizer

from salf.blocks import document_of
from salf.errors import UserError
from stages.common.params import load_params
from tests.prepare.making import byte_level_tokenizer, write_base, write_jsonl, write_params

BLOCK = 16
TEXT = {"task": "text", "template": "{text}", "text": {"block_tokens": BLOCK, "separator": None}}
WORDS = ["the", "cat", "sat", "mat", "looked", "moon", "while", "near", "quick", "brown", "fox", "over", "lazy", "dogs"]


def document(n: int) -> str:
    """Of 3 to 60 words, no two alike."""
    return " ".join([f"no {n}", *random.Random(n).choices(WORDS, k=3 + 19 * n % 58)])


DOCUMENTS = [document(n) for n in range(40)]


def read(folder):
    """Every block of all splits, and meta.json."""
    rows = [
        {**row, "split": split}
        for split in ("train", "validation", "test")
        for row in pq.read_table(folder / f"{split}.parquet").to_pylist()
    ]
    return rows, json.loads((folder / "meta.json").read_text(encoding="utf-8"))


@pytest.fixture(params=["with a token in front", "with none"])
def tokenizer(request) -> Tokenizer:
    tokenizer = byte_level_tokenizer()
    if request.param == "with none":
        tokenizer.post_processor = None
    return tokenizer


def test_every_token_of_every_document_is_predicted_once_and_blocks_hold_one_document(tmp_path, workspace, tokenizer):
    write_jsonl(tmp_path / "rows.jsonl", [{"text": text} for text in DOCUMENTS])
    prepared = workspace(TEXT, base_folder=write_base(tmp_path / "base", tokenizer))
    rows, meta = read(prepared)
    ids = {text: tokenizer.encode(text, add_special_tokens=False).ids for text in DOCUMENTS}
    start = [0] if tokenizer.post_processor else []
    of_document: dict[str, list[dict]] = {}
    for row in rows:
        of_document.setdefault(document_of(row["example_id"]), []).append(row)
    assert len(of_document) == len(DOCUMENTS)
    for blocks in of_document.values():
        assert len({row["split"] for row in blocks}) == 1
        text = blocks[0]["prompt"] + "".join(row["answer"] for row in blocks)
        own = ids[text]  # the documents, character by character
        read_on = list(own) if start else own[1:]
        for before, row in zip([None, *blocks], blocks, strict=False):
            context = row["prompt_ids"][len(start) :]
            assert row["prompt_ids"][: len(start)] == start
            assert context == (before["answer_ids"][-1:] if before else own[: 0 if start else 1])
            assert row["answer_ids"] == read_on[: len(row["answer_ids"])]
            del read_on[: len(row["answer_ids"])]
        assert not read_on
        full = [len(row["prompt_ids"]) + len(row["answer_ids"]) for row in blocks]
        assert all(length == BLOCK for length in full[:-1])
        assert full[-1] <= BLOCK
    for name, split in meta["splits"].items():
        mine = [row for row in rows if row["split"] == name]
        lengths = [len(row["prompt_ids"]) + len(row["answer_ids"]) for row in mine]
        assert split["rows"] == len(mine)
        assert split["documents"] == len({document_of(row["example_id"]) for row in mine})
        assert split["short_blocks"] == sum(length < BLOCK for length in lengths)
        assert split["answer_tokens"] == sum(len(row["answer_ids"]) for row in mine)
    predicted = sum(split["answer_tokens"] for split in meta["splits"].values())
    assert predicted == sum(len(one) - (not start) for one in ids.values())
    assert (meta["task"], meta["labels"], meta["end_token_id"], meta["shared_prefix_tokens"]) == ("text", [], None, 0)


def test_documents_that_leak_or_hold_nothing_are_dropped_and_counted(tmp_path, workspace, base, capsys):
    write_jsonl(tmp_path / "raw/train.jsonl", [{"text": t} for t in [*DOCUMENTS[:30], DOCUMENTS[35], "", "  \n"]])
    write_jsonl(tmp_path / "raw/test.jsonl", [{"text": text.upper()} for text in DOCUMENTS[30:]])
    splits = {"train": "train", "validation": None, "test": "test"}
    _, meta = read(workspace({**TEXT, "path": "raw", "splits": splits}))
    assert meta["dropped"] == {"train row that is a near-duplicate of one in test": 1}
    assert meta["refused"] == [{"split": "train", "reason": "empty text", "count": 2}]
    assert meta["splits"]["test"]["documents"] == 10
    said = " ".join(capsys.readouterr().out.split())
    assert f"10 documents, {meta['splits']['test']['short_blocks']} short" in said
    assert "train: 2 empty text" in said


def test_a_document_of_one_token_has_none_to_predict(tmp_path, workspace):
    tokenizer = byte_level_tokenizer()
    tokenizer.post_processor = None
    write_jsonl(tmp_path / "rows.jsonl", [{"text": text} for text in [*DOCUMENTS, "q"]])
    _, meta = read(workspace(TEXT, base_folder=write_base(tmp_path / "base", tokenizer)))
    assert [one["reason"] for one in meta["refused"]] == ["document without a token to predict"]


def csv(folder):
    (folder / "raw.csv").write_text("\n".join(["text", *DOCUMENTS]), encoding="utf-8")
    return "raw.csv"


def tsv(folder):
    (folder / "raw.tsv").write_text("\n".join(["text\tn", *(f"{text}\t1" for text in DOCUMENTS)]), encoding="utf-8")
    return "raw.tsv"


def listed(folder):
    (folder / "raw.json").write_text(json.dumps([{"text": text} for text in DOCUMENTS]), encoding="utf-8")
    return "raw.json"


def parquet(folder):
    pq.write_table(pa.table({"text": DOCUMENTS}), folder / "raw.parquet")
    return "raw.parquet"


def one_text(folder):
    (folder / "raw.txt").write_text("\n\n".join(DOCUMENTS), encoding="utf-8")
    return "raw.txt"


def text_files(folder):
    (folder / "raw/train/more").mkdir(parents=True)
    for n, text in enumerate(DOCUMENTS):
        (folder / "raw/train" / ("more" * (n % 2)) / f"{n}.txt").write_text(text, encoding="utf-8")
    return "raw"


@pytest.mark.parametrize("write", [csv, tsv, listed, parquet, one_text, text_files])
def test_every_kind_of_file_gives_the_same_documents(write, tmp_path, workspace):
    text = {"block_tokens": 200, "separator": r"\n\s*\n" if write is one_text else None}
    rows, _ = read(workspace({**TEXT, "text": text, "path": write(tmp_path)}, base_folder=write_base(tmp_path / "b")))
    assert sorted(row["text"] for row in rows) == sorted(DOCUMENTS)


def test_a_split_may_be_a_text_file_and_a_document_may_have_several_columns(tmp_path, workspace):
    for split in ("train", "test"):
        (tmp_path / "raw").mkdir(exist_ok=True)
        part = DOCUMENTS[:25] if split == "train" else DOCUMENTS[25:]
        (tmp_path / f"raw/{split}.txt").write_text("\n---\n".join(part), encoding="utf-8")
    changes = {
        **TEXT,
        "path": "raw",
        "template": "{label}:\n{text}",
        "text": {"block_tokens": 200, "separator": "\n---\n"},
        "splits": {"train": "train", "validation": None, "test": "test"},
    }
    rows, _ = read(workspace(changes))
    assert sorted(row["text"] for row in rows if row["split"] == "test")[-1] == f"raw:\n{DOCUMENTS[25]}"


REFUSED = [
    ({"text": {"block_tokens": 1, "separator": None}}, {}, "data.text.block_tokens = 1: Input should be greater"),
    ({"text": {"block_tokens": 2, "separator": None}}, {}, "a block of 2 tokens holds nothing after its context"),
    ({"text": {"block_tokens": 257, "separator": None}}, {}, "block_tokens = 257: the model reads 256 tokens at most"),
    ({"text": {"block_tokens": 16, "separator": "("}}, {}, "data.text.separator = '(': no regular expression"),
    ({"text": {"block_tokens": 16, "separator": "(a)"}}, {}, "write (?:...) for a group"),
    ({"template": "Once:\n{text}"}, {}, "neither prompt nor answer: take 'Once:' out of data.template"),
    ({"template": "{body}"}, {}, "data.template: no column 'body'; the data has: text"),
    ({"label_words": {"a": "b"}}, {}, "take {'a': 'b'} out of data.label_words"),
    ({"messages": "turns"}, {"chat_template": True}, "take 'turns' out of data.messages"),
    (
        {"choices": {"column": "text", "answer": "text", "score": "sum", "first": 0}},
        {},
        "take 'text' out of data.choices.column",
    ),
    ({}, {"chat_template": True}, "take True out of prepare.chat_template"),
]


@pytest.mark.parametrize(("data", "prepare", "words"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_makes_no_sense_for_text_is_refused_in_one_line(data, prepare, words, tmp_path, workspace):
    write_jsonl(tmp_path / "rows.jsonl", [{"text": text} for text in DOCUMENTS])
    with pytest.raises(UserError) as refused:
        workspace({**TEXT, **data}, prepare)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "prepared").exists()


@pytest.mark.parametrize(
    ("group", "change", "words"),
    [
        ("signals", {"kinds": ["grad-norm", "probe"]}, "take ['probe'] out of signals.kinds"),
        ("compare", {"methods": ["full", "half+answer"]}, "half+answer: data.task = text cannot be"),
        ("evaluate", {"answer_marker": "####"}, "take '####' out of evaluate.answer_marker"),
    ],
)
def test_settings_of_other_stages_are_refused_too(group, change, words, tmp_path):
    path = tmp_path / "params.yaml"
    write_params(path, TEXT, {})
    yaml = YAML(typ="safe", pure=True)
    params = yaml.load(path.read_text(encoding="utf-8"))
    params[group] |= change
    with path.open("w", encoding="utf-8") as file:
        yaml.dump(params, file)
    with pytest.raises(UserError, match=re.escape(words)):
        load_params(path)


@pytest.mark.parametrize(
    ("folder", "changes", "fewest"),
    [
        ("tinystories_sample", {"splits": {"train": "train", "validation": None, "test": "validation"}}, 1800),
        (
            "wikitext2_valid_test",
            {
                "splits": {"train": "validation", "validation": None, "test": "test"},
                "text": {"block_tokens": 128, "separator": "\n(?= = [^=\n]+ = \n \n)"},
            },
            55,
        ),
    ],
)
def test_real_text_is_cut_into_blocks(folder, changes, fewest, shared, tmp_path, workspace):
    changes = {**TEXT, "text": {"block_tokens": 128, "separator": None}, **changes}
    base = shared / "models/stories260K"
    rows, meta = read(workspace({**changes, "path": str(shared / "data" / folder)}, base_folder=base))
    test = [row for row in rows if row["split"] == "test"]
    assert meta["splits"]["test"]["documents"] >= fewest
    assert sum(len(row["answer_ids"]) for row in test) == meta["splits"]["test"]["answer_tokens"] > 400_000
    if folder.startswith("wikitext"):
        tokens = Tokenizer.from_file(str(base / "tokenizer.json"))
        whole = (shared / "data" / folder / "test.txt").read_text(encoding="utf-8")
        together = len(tokens.encode(whole, add_special_tokens=False).ids)
        assert abs(meta["splits"]["test"]["answer_tokens"] - together) < 200  # a few tokens at each border
