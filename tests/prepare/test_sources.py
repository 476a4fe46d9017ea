import json

import pandas as pd
import pytest

from stages.common.artifacts import sha256_file
from stages.common.command import UserError
from stages.common.params import Limits, Splits
from stages.prepare.sources import load_rows
from tests.prepare.making import make_data, write_jsonl

ROWS = [{"text": f'line {at}, "quoted"\nand broken', "label": at % 2} for at in range(6)]
COLUMNS = ("text", "label")


def write_table(path, rows):
    frame = pd.DataFrame(rows)
    if path.suffix in (".csv", ".tsv"):
        frame.to_csv(path, index=False, sep="\t" if path.suffix == ".tsv" else ",")
    elif path.suffix == ".parquet":
        frame.to_parquet(path)
    else:
        frame.to_json(path, orient="records", lines=path.suffix == ".jsonl")


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".json", ".jsonl", ".parquet"])
def test_every_format_gives_the_same_rows(tmp_path, suffix):
    path = tmp_path / f"rows{suffix}"
    write_table(path, ROWS)
    loaded = load_rows(make_data(path=str(path)), COLUMNS)
    assert list(loaded.rows) == ["train"]
    assert [row.values["text"] for row in loaded.rows["train"]] == [row["text"] for row in ROWS]
    assert [str(row.values["label"]) for row in loaded.rows["train"]] == [str(row["label"]) for row in ROWS]
    assert loaded.columns == COLUMNS
    assert loaded.identity["sha256"] == {path.name: sha256_file(path)}
    assert len({row.example_id for row in loaded.rows["train"]}) == len(ROWS)


def test_a_folder_holds_one_file_per_split(tmp_path):
    for name, n in (("train", 4), ("dev", 2), ("test", 3)):
        write_jsonl(tmp_path / f"{name}.jsonl", ROWS[:n])
    splits = Splits(train="train", validation="dev", test="test")
    loaded = load_rows(make_data(path=str(tmp_path), splits=splits), COLUMNS)
    assert {split: len(rows) for split, rows in loaded.rows.items()} == {"train": 4, "validation": 2, "test": 3}


def test_a_missing_split_names_the_files_there_are(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", ROWS)
    splits = Splits(train="train", validation=None, test="eval")
    with pytest.raises(UserError, match=r"no file for split 'eval' .*found train\.jsonl"):
        load_rows(make_data(path=str(tmp_path), splits=splits), COLUMNS)


def test_two_files_for_one_split_are_refused(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", ROWS)
    write_table(tmp_path / "train.csv", ROWS)
    with pytest.raises(UserError, match=r"two files: train\.csv, train\.jsonl"):
        load_rows(make_data(path=str(tmp_path)), COLUMNS)


def test_numbered_parts_of_a_split_are_read_in_order(tmp_path):
    write_table(tmp_path / "train-00000-of-00002.parquet", ROWS[:4])
    write_table(tmp_path / "train-00001-of-00002.parquet", ROWS[4:])
    loaded = load_rows(make_data(path=str(tmp_path)), COLUMNS)
    assert [row.values["text"] for row in loaded.rows["train"]] == [row["text"] for row in ROWS]
    assert len({row.example_id for row in loaded.rows["train"]}) == len(ROWS)
    assert set(loaded.identity["sha256"]) == {f"train-0000{n}-of-00002.parquet" for n in range(2)}
    (tmp_path / "train-00000-of-00002.parquet").unlink()
    with pytest.raises(UserError, match="split 'train' has 1 of 2 parts"):
        load_rows(make_data(path=str(tmp_path)), COLUMNS)


def test_a_split_may_be_a_folder_of_files(tmp_path):
    for split, n in (("train", 4), ("test", 2)):
        write_jsonl(tmp_path / split / "first.jsonl", ROWS[:n])
        (tmp_path / split / "more").mkdir()
        write_table(tmp_path / split / "more" / "second.csv", ROWS[n:])
    splits = Splits(train="train", validation=None, test="test")
    loaded = load_rows(make_data(path=str(tmp_path), splits=splits), COLUMNS)
    for rows in loaded.rows.values():
        assert [row.values["text"] for row in rows] == [row["text"] for row in ROWS]
    names = {row.example_id for rows in loaded.rows.values() for row in rows}
    assert len(names) == 2 * len(ROWS)
    write_jsonl(tmp_path / "train.jsonl", ROWS)
    with pytest.raises(UserError, match=r"two files: train\.jsonl, train/first\.jsonl; keep one"):
        load_rows(make_data(path=str(tmp_path), splits=splits), COLUMNS)


def test_a_folder_of_texts_for_every_class(tmp_path):
    for label in ("neg", "pos"):
        for number in range(3):
            file = tmp_path / "train" / label / f"{number}_7.txt"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"{label} text\n{number}", encoding="utf-8")
    loaded = load_rows(make_data(path=str(tmp_path)), COLUMNS)
    assert [(row.values["label"], row.values["text"]) for row in loaded.rows["train"]] == [
        (label, f"{label} text\n{number}") for label in ("neg", "pos") for number in range(3)
    ]
    assert loaded.columns == COLUMNS
    (tmp_path / "train/pos/1_7.txt").write_bytes(b"\xff")
    with pytest.raises(UserError, match=r"1_7\.txt: not UTF-8 text"):
        load_rows(make_data(path=str(tmp_path)), COLUMNS)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.jsonl", b'{"text": "a", "label": 1}\n{"text": \n', r"rows\.jsonl:2: damaged JSON"),
        ("rows.jsonl", b'{"text": "a"}\n\n[1]\n', r"rows\.jsonl:3: expected an object"),
        ("rows.json", b'[{"text": "a"},\n {"text" 1}]', r"rows\.json:2: damaged JSON"),
        ("rows.json", b"[1, 2]", "entry 1 is no object"),
        ("rows.csv", b"text,label\na,1\nb\n", r"rows\.csv:3: not the 2 fields"),
        ("rows.csv", b"text,label\na,1,2\n", r"rows\.csv:2: not the 2 fields"),
        ("rows.csv", b"text,label,text\na,1,b\n", r"rows\.csv: the header names text more than once"),
        ("rows.csv", b'text,label\n"a,1\n', r"rows\.csv:2: damaged csv"),
        ("rows.jsonl", b'{"text": "\xff\xfe"}\n', "not UTF-8"),
        ("rows.parquet", b"no parquet", "damaged parquet"),
        ("rows.xlsx", b"", "unknown format '.xlsx'"),
    ],
)
def test_damaged_files_are_one_line_that_says_where(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as raised:
        load_rows(make_data(path=str(path)), COLUMNS)
    assert "\n" not in str(raised.value)


def test_two_files_whose_rows_would_have_the_same_names(tmp_path):
    write_jsonl(tmp_path / "train" / "x.jsonl", ROWS)
    write_table(tmp_path / "train" / "x.csv", ROWS)
    with pytest.raises(UserError, match=r"x\.jsonl: stands beside x\.csv"):
        load_rows(make_data(path=str(tmp_path)), COLUMNS)


def test_a_missing_file(tmp_path):
    with pytest.raises(UserError, match=r"data\.path = .*nowhere\.csv: no such file or folder"):
        load_rows(make_data(path=str(tmp_path / "nowhere.csv")), COLUMNS)


@pytest.fixture
def hub_folder(tmp_path, monkeypatch):
    """A data set in the hub's layout, loaded by the hub's own library from a folder."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "my_set"
    folder.mkdir()
    for split, n in (("train", 6), ("test", 4)):
        write_table(folder / f"{split}.parquet", [row | {"extra": "unread"} for row in ROWS[:n]])
    return folder


def test_hub_splits_are_read_by_name(hub_folder):
    data = make_data(source="hub", name=str(hub_folder), splits=Splits(train="train", validation=None, test="test"))
    loaded = load_rows(data, COLUMNS)
    assert {split: len(rows) for split, rows in loaded.rows.items()} == {"train": 6, "test": 4}
    assert loaded.rows["train"][0].values == ROWS[0]
    assert set(loaded.columns) == {"text", "label", "extra"}
    assert set(loaded.identity["sha256"]) == {"train", "test"}


def test_a_branch_is_recorded_as_the_commit_that_it_stood_for(hub_folder, monkeypatch):
    import datasets

    commit, opened = "c0ffee" * 6 + "c0ff", []
    real = datasets.load_dataset_builder
    data = make_data(source="hub", name=str(hub_folder), revision="v1")
    assert load_rows(data, COLUMNS).identity["revision"] == "v1"  # a folder has no commit

    def builder(name, config, revision):
        """What the hub answers: the same data, and the commit in the place of a folder's hash."""
        opened.append(revision)
        found = real(name, config)
        found.hash = commit
        return found

    monkeypatch.setattr(datasets, "load_dataset_builder", builder)
    for stream in (None, 5):
        loaded = load_rows(make_data(source="hub", name=str(hub_folder), revision="main", stream=stream), COLUMNS)
        assert loaded.identity["revision"] == commit
        assert loaded.rows["train"][0].values in ROWS
    assert opened == ["main", "main"]


def test_hub_class_labels_are_read_by_their_names(hub_folder, tmp_path):
    import datasets

    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    folder = tmp_path / "named"
    datasets.Dataset.from_list(
        [{"text": "a", "label": 1}, {"text": "b", "label": 0}, {"text": "c", "label": None}], features=features
    ).to_parquet(folder / "train.parquet")
    loaded = load_rows(make_data(source="hub", name=str(folder)), COLUMNS)
    assert [row.values["label"] for row in loaded.rows["train"]] == ["yes", "no", None]


@pytest.mark.slow
def test_a_stream_reads_so_many_rows_drawn_by_the_seed(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = [{"text": f"text {n}", "label": n % 2, "extra": "unread"} for n in range(100)]
    features = datasets.Features(
        {
            "text": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["no", "yes"]),
            "extra": datasets.Value("string"),
        }
    )
    folder = tmp_path / "large"
    datasets.Dataset.from_list(rows, features=features).to_parquet(folder / "train.parquet")

    def read(**changes):
        return load_rows(make_data(source="hub", name=str(folder), **changes), COLUMNS)

    loaded = read(stream=30)
    texts = [row.values["text"] for row in loaded.rows["train"]]
    assert len(set(texts)) == len(texts) == 30
    for row in loaded.rows["train"]:
        assert row.values["label"] == ("no", "yes")[int(row.values["text"].split()[1]) % 2]
    assert texts != [f"text {n}" for n in range(30)]
    assert loaded.identity["streamed"] == 30
    assert set(loaded.columns) == {"text", "label", "extra"}
    assert read(stream=30).identity == loaded.identity
    assert read(stream=30, seed=2).identity["sha256"] != loaded.identity["sha256"]
    everything = {tuple(sorted(row.values.items())) for row in read(stream=1000).rows["train"]}
    assert everything == {tuple(sorted(row.values.items())) for row in read().rows["train"]}
    # A stream of JSON knows its columns only when it is read.
    write_jsonl(tmp_path / "lines" / "train.jsonl", rows)
    loaded = load_rows(make_data(source="hub", name=str(tmp_path / "lines"), stream=5), COLUMNS)
    assert [set(row.values) for row in loaded.rows["train"]] == [{"text", "label"}] * 5
    assert set(loaded.columns) == {"text", "label", "extra"}


def test_a_stream_that_breaks_off_is_one_line(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    write_jsonl(tmp_path / "torn" / "train.jsonl", ROWS)
    with (tmp_path / "torn" / "train.jsonl").open("a") as file:
        file.write('{"text": "unfinished')
    with pytest.raises(UserError, match="cannot be loaded") as raised:
        load_rows(make_data(source="hub", name=str(tmp_path / "torn"), stream=50), COLUMNS)
    assert "\n" not in str(raised.value)


def test_hub_faults_are_one_line(hub_folder, tmp_path):
    data = make_data(source="hub", name=str(hub_folder), splits=Splits(train="train", validation="dev", test=None))
    with pytest.raises(UserError, match="no split 'dev'; it has test, train"):
        load_rows(data, COLUMNS)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="cannot be loaded") as raised:
        load_rows(make_data(source="hub", name=str(tmp_path / "empty")), COLUMNS)
    assert "\n" not in str(raised.value)


def test_real_files(shared):
    data = make_data(
        path=str(shared / "data" / "trec"),
        splits=Splits(train="train", validation=None, test="test"),
        limits=Limits(train=10, validation=None, test=None),
    )
    loaded = load_rows(data, COLUMNS)
    assert {split: len(rows) for split, rows in loaded.rows.items()} == {"train": 5452, "test": 500}
    first = json.loads((shared / "data" / "trec" / "train.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert loaded.rows["train"][0].values == first
