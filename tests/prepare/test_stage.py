import json
import re
import subprocess
import sys
from decimal import Decimal

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer

from salf.errors import UserError
from salf.files import sha256_file
from salf.records import PreparedRecord
from stages.prepare.__main__ import PrepareRoom, main
from stages.prepare.docstrings import LIBRARIES
from stages.prepare.splits import NearDuplicates, shingles
from tests.prepare.making import PROJECT, write_base, write_jsonl, write_params

TOPICS = ("sports", "science", "world")


def rows(n: int, start: int = 0) -> list[dict]:
    return [
        {"text": f"item {at} number {at * 7} of the list {at * 13}", "label": TOPICS[at % 3]}
        for at in range(start, start + n)
    ]


def read(folder, split):
    return pq.read_table(folder / f"{split}.parquet").to_pylist()


def meta_of(folder):
    return json.loads((folder / "meta.json").read_text(encoding="utf-8"))


def test_files_hold_what_meta_says(tmp_path, workspace, base):
    write_jsonl(tmp_path / "rows.jsonl", rows(90))
    prepared = workspace({"limits": {"train": 30, "validation": 6, "test": 9}})
    meta = meta_of(prepared)
    raw = Tokenizer.from_file(str(base / "tokenizer.json"))
    words = {entry["label"]: entry for entry in meta["labels"]}
    assert [entry["label"] for entry in meta["labels"]] == sorted(TOPICS)
    prompts = []
    for split, n in (("train", 30), ("validation", 6), ("test", 9)):
        facts, part = meta["splits"][split], read(prepared, split)
        assert facts["rows"] == len(part) == n
        assert facts["tokens"] == sum(len(row["prompt_ids"]) + len(row["answer_ids"]) - 1 for row in part)
        assert facts["prompt_tokens_max"] == max(len(row["prompt_ids"]) for row in part)
        assert facts["label_counts"] == dict.fromkeys(TOPICS, n // 3)
        assert facts["sha256"] == sha256_file(prepared / f"{split}.parquet")
        for row in part:
            assert row["prompt"] == f"{row['text']}\nLabel:"
            assert [*row["prompt_ids"], 1] == raw.encode(row["prompt"]).ids
            assert row["answer"] == row["label"]
            assert row["answer_ids"] == words[row["label"]]["token_ids"]
            assert row["group"] is None
        prompts += [row["prompt_ids"] for row in part]
    shared = meta["shared_prefix_tokens"]
    assert len({tuple(ids[:shared]) for ids in prompts}) == 1
    assert len({tuple(ids[: shared + 1]) for ids in prompts}) > 1
    ids = [row["example_id"] for split in meta["splits"] for row in read(prepared, split)]
    assert len(set(ids)) == len(ids) == 45
    schema = pq.read_schema(prepared / "train.parquet")
    assert {str(schema.field(name).type) for name in ("prompt_ids", "answer_ids")} == {"list<element: int32>"}


def test_the_same_inputs_give_the_same_bytes_and_another_seed_other_rows(tmp_path, workspace):
    write_jsonl(tmp_path / "rows.jsonl", rows(60))
    runs = []
    for seed in (1, 1, 2):
        out = workspace({"seed": seed})
        runs.append({file.name: file.read_bytes() for file in out.iterdir()})
    assert runs[0] == runs[1]
    assert runs[0]["test.parquet"] != runs[2]["test.parquet"]


def test_dropped_refused_and_truncated_are_counted(tmp_path, workspace):
    train = [*rows(40), {"text": "", "label": "world"}, {"text": "no label here"}, rows(1)[0]]
    copied = {"text": "One two three four five six seven eight nine ten", "label": "world"}
    write_jsonl(tmp_path / "d" / "train.jsonl", [*train, copied])
    long = {"text": "a b c " * 100, "label": "world"}
    odd = {"text": "an odd one out", "label": "weather"}
    near = copied | {"text": copied["text"].lower() + "!"}
    write_jsonl(tmp_path / "d" / "test.jsonl", [*rows(6, start=100), long, odd, near])
    out = workspace({"path": "d", "splits": {"train": "train", "validation": None, "test": "test"}}, {"max_tokens": 60})
    meta = meta_of(out)
    assert [tuple(entry.values()) for entry in meta["refused"]] == [
        (1, "with a label that train lacks ('weather')", "test"),
        (1, "empty text", "train"),
        (1, "without a label", "train"),
    ]
    assert meta["classes_left_out"] == {"weather": 1}
    assert sum(meta["dropped"].values()) == 2  # the copy across splits and the row that stands twice
    assert meta["truncated"] == 1
    assert meta["splits"]["test"]["rows"] == 8


def test_the_length_that_held_is_told_where_the_models_context_is_shorter(tmp_path, workspace, capsys):
    long = [row | {"text": row["text"] + " and on" * 60} for row in rows(60)]
    write_jsonl(tmp_path / "rows.jsonl", long)
    write_base(tmp_path / "short", context=48)
    out = workspace({}, {"max_tokens": 400}, tmp_path / "short")
    meta = meta_of(out)
    assert meta["max_tokens"] == 48
    assert meta["truncated"] == sum(split["rows"] for split in meta["splits"].values())
    assert f"cut from the left at 48 tokens: {meta['truncated']}" in capsys.readouterr().out


SPLITS = {"train": "train", "validation": "validation", "test": "test"}


def test_one_class_has_one_name_in_every_format_and_split(tmp_path, workspace):
    texts = [f"item {at} number {at * 7} of the list {at * 13}" for at in range(60)]
    labels = [at % 2 for at in range(60)]
    (tmp_path / "d").mkdir()
    train = pd.DataFrame({"text": texts[:40], "label": [None, *labels[1:40]]})
    train.to_csv(tmp_path / "d" / "train.csv", index=False)  # 0.0 and 1.0, as one is missing
    write_jsonl(
        tmp_path / "d" / "test.jsonl",
        [{"text": t, "label": n} for t, n in zip(texts[40:50], labels[40:50], strict=True)],
    )
    exact = pa.array([Decimal(n) for n in labels[50:]], pa.decimal128(5, 2))
    pq.write_table(pa.table({"text": texts[50:], "label": exact}), tmp_path / "d" / "validation.parquet")
    out = workspace({"path": "d", "splits": SPLITS, "label_words": {0: "bad", 1: "good "}})
    meta = meta_of(out)
    assert [(entry["label"], entry["word"]) for entry in meta["labels"]] == [("0", "bad"), ("1", "good")]
    assert meta["refused"] == [{"split": "train", "reason": "without a label", "count": 1}]
    for split, n in (("train", 39), ("validation", 10), ("test", 10)):
        assert sum(meta["splits"][split]["label_counts"].values()) == n
        for row in read(out, split):
            at = texts.index(row["text"])
            assert (row["label"], row["answer"]) == (str(labels[at]), ("bad", "good")[labels[at]])


@pytest.mark.parametrize(
    ("label", "told"),
    [(-1, r"20 with a label that train lacks \('-1'\)"), (None, "20 without a label"), ("", "20 without a label")],
)
def test_a_test_split_whose_labels_are_held_back(tmp_path, workspace, label, told):
    write_jsonl(tmp_path / "d" / "train.jsonl", rows(60))
    write_jsonl(tmp_path / "d" / "test.jsonl", [row | {"label": label} for row in rows(20, start=70)])
    with pytest.raises(UserError, match=f"^data: no row is left of test.*: {told}$"):
        workspace({"path": "d", "splits": SPLITS | {"validation": None}})


def test_lists_in_every_row_are_an_error_that_says_what_to_write(tmp_path, workspace):
    turns = [{"prompt": [{"role": "user", "content": row["text"]}], "label": row["label"]} for row in rows(30)]
    write_jsonl(tmp_path / "rows.jsonl", turns)
    advice = r"name prompt\.0\.content in data\.template, or set data\.messages$"
    with pytest.raises(UserError, match=r"of train were left out: 30 with a list in column 'prompt': " + advice):
        workspace({"template": "{prompt}"})
    assert read(workspace({"template": "{prompt.0.content}"}), "train")


def test_a_class_whose_training_rows_are_all_too_long_is_left_out_and_named(tmp_path, workspace, base, capsys):
    (tmp_path / "chat").mkdir()
    for file in base.iterdir():
        (tmp_path / "chat" / file.name).write_bytes(file.read_bytes())
    (tmp_path / "chat" / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}\n{% endfor %}")
    long = [row | {"text": row["text"] * (9 if row["label"] == "world" else 1)} for row in rows(90)]
    write_jsonl(tmp_path / "rows.jsonl", long)
    out = workspace({"template": "{text}"}, {"chat_template": True, "max_tokens": 80}, tmp_path / "chat")
    meta = meta_of(out)
    assert [entry["label"] for entry in meta["labels"]] == ["science", "sports"]
    assert meta["classes_left_out"] == {"world": 30}
    assert {row["label"] for split in SPLITS for row in read(out, split)} == {"science", "sports"}
    assert "classes left out: world (30 rows)" in capsys.readouterr().out
    fates = {(entry["split"], entry["reason"]): entry["count"] for entry in meta["refused"]}
    assert fates["train", "conversation that is too long (max_tokens)"] == 21
    assert fates["test", "with a label that train lacks ('world')"] == 6
    write_jsonl(tmp_path / "rows.jsonl", [row for row in long if row["label"] != "sports"])
    with pytest.raises(UserError, match=r"only one class \('science'\) in train.* left out: 21 conv"):
        workspace({"template": "{text}"}, {"chat_template": True, "max_tokens": 80}, tmp_path / "chat")


def test_labels_of_which_one_begins_another_close_with_the_end_token(tmp_path, workspace, capsys):
    numbers = [{"text": f"</s> number {at} of {at * 7}", "label": at % 12 + 1} for at in range(120)]
    write_jsonl(tmp_path / "rows.jsonl", numbers)
    out = workspace({})
    meta = meta_of(out)
    words = {entry["label"]: entry["token_ids"] for entry in meta["labels"]}
    assert meta["end_token_id"] == 1
    assert words["1"][:-1] == words["10"][: len(words["1"]) - 1]
    assert all(ids[-1] == 1 for ids in words.values())
    assert all(row["answer_ids"] == words[row["label"]] for row in read(out, "train"))
    kept = sum(split["rows"] for split in meta["splits"].values())
    noted = "with text that holds a special token of the tokenizer: '</s>'"
    assert meta["noted"] == [{"reason": noted, "count": kept}]
    assert f"kept, but see: {kept} with text that holds a special token" in " ".join(capsys.readouterr().out.split())


def test_free_answers_end_with_the_end_token(tmp_path, workspace):
    write_jsonl(tmp_path / "rows.jsonl", [{"q": f"question {at}?", "a": f"so\nit is {at}"} for at in range(30)])
    out = workspace({"task": "free", "template": "Q: {q}\nA:", "answer_column": "a"})
    meta = meta_of(out)
    assert meta["labels"] == []
    for row in read(out, "train"):
        assert row["label"] is None
        assert row["answer_ids"][-1] == 1
        assert row["answer"].startswith("so\nit is ")


def test_a_group_has_one_name_in_every_format_and_split(tmp_path, workspace):
    # fastai/fastai#1868: pandas writes the number of a group as 1.0 where another row has none
    train = "text,label,file\n" + "".join(
        f"{row['text']},{row['label']},{at // 5}.0 \n" for at, row in enumerate(rows(60))
    )
    (tmp_path / "d").mkdir()
    (tmp_path / "d/train.csv").write_text(train, encoding="utf-8")
    write_jsonl(tmp_path / "d/test.jsonl", [row | {"file": at} for at, row in enumerate(rows(70)[64:])])
    splits = {"train": "train", "validation": None, "test": "test"}
    out = workspace({"path": "d", "splits": splits, "group_column": "file"}, {"near_duplicate": None})
    assert meta_of(out)["dropped"]["train row of a group that test holds"] > 20
    assert not {row["group"] for row in read(out, "train")} & {row["group"] for row in read(out, "test")}


def test_a_shifted_split_is_prepared_like_test_and_guarded_from_training(tmp_path, workspace, capsys):
    far = rows(20, start=200)
    odd = {"text": "an odd one out", "label": "weather"}
    write_jsonl(tmp_path / "d" / "train.jsonl", [*rows(60), *far[:4]])
    write_jsonl(tmp_path / "d" / "far.jsonl", [*far, odd])
    given = {"path": "d", "limits": {"train": None, "validation": None, "test": 9}}
    out = workspace({**given, "splits": SPLITS | {"validation": None, "test": None, "shifted": {"away": "far"}}})
    meta = meta_of(out)
    assert PreparedRecord.load(out).tests == ["test", "away"]
    like = "row that is a near-duplicate of one in away"
    assert meta["dropped"] == {f"train {like}": 3, f"validation {like}": 1}
    assert [(one["split"], one["reason"]) for one in meta["refused"]] == [
        ("away", "with a label that train lacks ('weather')")
    ]
    assert "away" in capsys.readouterr().out

    away = (out / "away.parquet").read_bytes()
    ids = [(split, row["example_id"]) for split in meta["splits"] for row in read(out, split)]
    named = pa.Table.from_pylist([{"name": "mine", "split": split, "example_id": name} for split, name in ids])
    pq.write_table(named, tmp_path / "ids.parquet")
    asked = {"path": "d", "examples": {"table": "ids.parquet", "name": "mine"}}
    out = workspace({**asked, "splits": SPLITS | {"validation": None, "test": None, "shifted": {"away": "far"}}})
    assert (out / "away.parquet").read_bytes() == away
    out = workspace({**given, "splits": SPLITS | {"validation": None, "test": "far"}})
    assert (out / "test.parquet").read_bytes() == away
    assert meta_of(out)["splits"]["test"] == meta["splits"]["away"]


def test_labels_with_one_word_are_merged_as_if_a_column_held_the_words(tmp_path, workspace, capsys):
    words = {"sports": "no", "science": "yes", "world": "no"}
    write_jsonl(tmp_path / "rows.jsonl", [row | {"by_hand": words[row["label"]]} for row in rows(90)])
    limits = {"train": 30, "validation": 6, "test": 9}
    by_hand = workspace({"answer_column": "by_hand", "limits": limits})
    expected = {file.name: file.read_bytes() for file in by_hand.glob("*.parquet")}
    plain = meta_of(by_hand)
    merged = workspace({"label_words": words, "limits": limits})
    assert {file.name: file.read_bytes() for file in merged.glob("*.parquet")} == expected
    assert meta_of(merged) == plain | {"merged_labels": {"no": ["sports", "world"]}}
    assert plain["splits"]["train"]["label_counts"] == {"no": 15, "yes": 15}
    assert "merged by data.label_words: no = sports, world" in capsys.readouterr().out


def test_subgroups_are_carried_to_every_split_and_change_nothing_else(tmp_path, workspace):
    write_jsonl(tmp_path / "rows.jsonl", [row | {"who": at % 4 or None} for at, row in enumerate(rows(60))])
    plain = {split: read(workspace({}), split) for split in SPLITS}
    out = workspace({"subgroup_column": "who"})
    for split, before in plain.items():
        after = read(out, split)
        assert [row | {"subgroup": one["subgroup"]} for row, one in zip(before, after, strict=True)] == after
        numbers = [int(row["text"].split()[1]) % 4 for row in after]
        assert [row["subgroup"] for row in after] == [str(n) if n else None for n in numbers]
    assert (meta_of(out)["subgroup_column"], meta_of(out)["blank"]) == ("who", {"who": 15})
    with pytest.raises(UserError, match=r"data\.subgroup_column: no column 'whom'; the data has: text, label, who"):
        workspace({"subgroup_column": "whom"})


def test_faults_leave_the_last_result_alone(tmp_path, workspace):
    write_jsonl(tmp_path / "rows.jsonl", rows(60))
    out = workspace({})
    before = (out / "meta.json").read_bytes()
    write_jsonl(tmp_path / "rows.jsonl", [row | {"label": "world"} for row in rows(60)])
    with pytest.raises(UserError, match="only one class"):
        workspace({})
    write_jsonl(tmp_path / "rows.jsonl", [])
    with pytest.raises(UserError, match="holds no rows"):
        workspace({})
    assert (out / "meta.json").read_bytes() == before


def test_the_summary_shows_rows_and_an_example(tmp_path, workspace, capsys):
    write_jsonl(tmp_path / "rows.jsonl", [row | {"text": f"[b]{row['text']}"} for row in rows(60)])
    workspace({})
    told = capsys.readouterr().out
    assert "3 of 14 rows" in told
    assert "cut from the left" in told
    assert "[b]item" in told  # the text's own brackets are no mark-up


def test_no_torch_and_one_line_on_bad_input(tmp_path):
    """The stage as a command: what it imports, and how a fault leaves the process."""
    write_base(tmp_path / "base")
    write_jsonl(tmp_path / "rows.jsonl", rows(60))
    write_params(tmp_path / "params.yaml", {}, {})
    script = (
        "import sys\n"
        "from stages.prepare.__main__ import main\n"
        "main(['--base', 'base', '--out', 'prepared'])\n"
        "print(sorted({'torch', 'transformers', 'datasets'} & set(sys.modules)))\n"
    )
    done = run(tmp_path, "-c", script)
    assert done.stdout.splitlines()[-1] == "[]"
    write_params(tmp_path / "params.yaml", {"template": "{txt}"}, {})
    done = run(tmp_path, "-m", "stages.prepare", "--base", "base", "--out", "prepared")
    assert done.returncode == 2
    assert done.stderr == "error: data.template: no column 'txt'; the data has: text, label\n"


def run(folder, *arguments: str) -> subprocess.CompletedProcess:
    environment = {"PYTHONPATH": str(PROJECT), "PATH": ""}
    return subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True)


def test_the_shipped_default_is_balanced_in_training_split_by_file_and_apart_from_its_worked_examples(
    tmp_path, monkeypatch
):
    params = (PROJECT / "params.yaml").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text(params.replace("max_tokens: 512", "max_tokens: 8000"), encoding="utf-8")
    main(["--base", str(write_base(tmp_path / "base", context=8192)), "--out", "prepared"])
    meta = meta_of(tmp_path / "prepared")
    limits = PrepareRoom.load().data.limits
    texts, files = [], []
    for split, limit in (("train", limits.train), ("validation", limits.validation), ("test", limits.test)):
        part = read(tmp_path / "prepared", split)
        assert len(part) == limit
        kept, source = meta["splits"][split]["label_counts"], meta["splits"][split]["source_label_counts"]
        even = dict.fromkeys(LIBRARIES, limit // len(LIBRARIES))
        natural = {label: limit * n / sum(source.values()) for label, n in source.items()}
        for label, expected in (even if split == "train" else natural).items():
            deviation = 0 if split == "train" else 4 * expected**0.5  # a binomial draw's standard deviation at most
            assert abs(kept.get(label, 0) - expected) <= deviation
        texts += [row["text"] for row in part]
        files.append({row["group"] for row in part})
    assert meta["balance"] == "train"
    assert sum(map(len, files)) == len(set().union(*files))
    assert len({text.lower() for text in texts}) == len(texts)
    assert meta["truncated"] == 0
    worked = [line for line in meta["template"].splitlines() if line and not line.startswith(("Library:", "{text}"))]
    assert len(worked) == len(LIBRARIES)
    examples = NearDuplicates(worked, 0.5)
    assert not any(examples.hold_one_like(shingles(text)) for text in texts)


def test_rows_that_a_table_names_are_taken_as_they_are(tmp_path, workspace):
    """Whatever limits, balance, near-duplicates and the seed of the draw say now: the files are the same bytes."""
    write_jsonl(tmp_path / "rows.jsonl", [*rows(90), *rows(9)])
    before = workspace({"limits": {"train": 30, "validation": 6, "test": 9}, "balance": "all"})
    ids = [(split, row["example_id"]) for split in ("test", "train", "validation") for row in read(before, split)]
    named = [{"name": "mine", "split": split, "example_id": name} for split, name in ids]
    other = [{"name": "other", "split": "train", "example_id": "none"}]
    leak = [{"name": "leak", "split": split, "example_id": ids[0][1]} for split in ("train", "test")]
    dev = [{"name": "dev", "split": "dev", "example_id": ids[0][1]}]
    pq.write_table(pa.Table.from_pylist([*other, *named, *leak, *dev]), tmp_path / "ids.parquet")
    files = {split: (before / f"{split}.parquet").read_bytes() for split in ("train", "validation", "test")}
    asked = {"examples": {"table": "ids.parquet", "name": "mine"}, "seed": 7, "balance": "none"}
    after = workspace(asked, {"near_duplicate": 0.01})
    assert {split: (after / f"{split}.parquet").read_bytes() for split in files} == files

    pq.write_table(pa.table({"name": ["mine"]}), tmp_path / "wrong.parquet")
    (tmp_path / "text.parquet").write_text("no table")
    refused = {
        ("none.parquet", "mine"): "none.parquet: not a Parquet table of name, split and example_id",
        ("text.parquet", "mine"): "text.parquet: not a Parquet table of name, split and example_id",
        ("wrong.parquet", "mine"): "wrong.parquet: not a Parquet table of name, split and example_id",
        ("ids.parquet", "yours"): "'yours' in ids.parquet has no rows; there are: 'dev', 'leak', 'mine', ... (4",
        ("ids.parquet", "leak"): f"'leak' in ids.parquet has rows listed twice: {ids[0][1]!r}",
        ("ids.parquet", "dev"): "'dev' in ids.parquet has splits other than train, validation, test: 'dev'",
        ("ids.parquet", "other"): "'other' in ids.parquet has rows that are not in the data, or cannot be used: 'none'",
    }
    for (table, name), line in refused.items():
        with pytest.raises(UserError, match=re.escape(line)):
            workspace({**asked, "examples": {"table": table, "name": name}})
