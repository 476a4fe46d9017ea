import gzip
import json
import os
from decimal import Decimal
from time import process_time
from types import SimpleNamespace

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from salf.errors import UserError
from salf.files import sha256_file
from stages.common.params import Limits, Named, Splits
from stages.prepare.rows import as_text
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


def lay_out(folder, files: dict):
    """Write files: rows as a table, bytes and text as they are."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, list):
            write_table(path, content)
        else:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())


SPLITS = Splits(train="train", validation="dev", test="test")
ALONE = Splits(train="train", validation=None, test=None)
TEXTS = {f"train/{label}/{n}_7.txt": f"{label} text\n{n}" for label in ("neg", "pos") for n in range(3)}
PARTS = {f"train-0000{n}-of-00002.parquet": ROWS[3 * n : 3 * n + 3] for n in range(2)}


@pytest.mark.parametrize(
    ("files", "splits", "expected"),
    [
        (
            {f"{name}.jsonl": ROWS[:n] for name, n in (("train", 4), ("dev", 2), ("test", 3))},
            SPLITS,
            {"train": ROWS[:4], "validation": ROWS[:2], "test": ROWS[:3]},
        ),
        (PARTS, ALONE, {"train": ROWS}),
        ({"train/first.jsonl": ROWS[:4], "train/more/second.csv": ROWS[4:]}, ALONE, {"train": ROWS}),
        # fastai/fastai#200: copies and by-products of other programs
        (
            TEXTS | dict.fromkeys(("train/pos/._1_7.txt", "train/.ipynb_checkpoints/0.txt", "train/.x/r.csv"), "a,b"),
            ALONE,
            {"train": [{"text": text, "label": name.split("/")[1]} for name, text in TEXTS.items()]},
        ),
    ],
)
def test_splits_of_a_folder(tmp_path, files, splits, expected):
    lay_out(tmp_path, files)
    loaded = load_rows(make_data(path=str(tmp_path), splits=splits), COLUMNS)
    found = {split: [row.values["text"] for row in rows] for split, rows in loaded.rows.items()}
    assert found == {split: [row["text"] for row in rows] for split, rows in expected.items()}
    assert [str(row.values["label"]) for row in loaded.rows["train"]] == [
        str(row["label"]) for row in expected["train"]
    ]
    assert len({row.example_id for rows in loaded.rows.values() for row in rows}) == sum(map(len, found.values()))
    assert set(loaded.identity["sha256"]) == {name for name in files if "/." not in name}
    assert loaded.columns == COLUMNS


@pytest.mark.parametrize(
    ("files", "splits", "message"),
    [
        ({"train.jsonl": ROWS}, SPLITS, r"no file for split 'dev' .*found train\.jsonl"),
        ({"train.jsonl": ROWS, "train.csv": ROWS}, ALONE, r"two files: train\.csv, train\.jsonl; keep one"),
        ({"train.jsonl": ROWS, "train/a.csv": ROWS}, ALONE, r"two files: train\.jsonl, train/a\.csv; keep one"),
        (dict(list(PARTS.items())[1:]), ALONE, "split 'train' has 1 of 2 parts"),
        ({"train/neg/1_7.txt": b"\xff"}, ALONE, r"1_7\.txt: not UTF-8 text"),
        ({"train/x.jsonl": ROWS, "train/x.csv": ROWS}, ALONE, r"x\.jsonl: x\.csv would give its rows the same names"),
    ],
)
def test_folders_that_do_not_say_what_a_split_is(tmp_path, files, splits, message):
    lay_out(tmp_path, files)
    with pytest.raises(UserError, match=message):
        load_rows(make_data(path=str(tmp_path), splits=splits), COLUMNS)


ROW = b'{"text": "a", "label": "x"}'
LINES = ROW + b"\n" + ROW + b"\n"
DEEP = b"[" * 200_000 + b"]" * 200_000


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.jsonl", b'{"text": "a", "label": 1}\n{"text": \n', r"rows\.jsonl:2: damaged JSON"),
        ("rows.jsonl", b'{"text": "a"}\n\n[1]\n', r"rows\.jsonl:3: expected an object"),
        ("rows.jsonl", LINES + b'{"text": ' + DEEP + b"}", r"rows\.jsonl:3: damaged JSON: nested too deep"),
        (
            "rows.jsonl",
            LINES + b'{"n": ' + b"9" * 5000 + b"}",
            r"rows\.jsonl:3: damaged JSON: Exceeds the limit \(4300",
        ),
        ("rows.jsonl", b'{"text": ' + DEEP + b"}", r"rows\.jsonl:1: damaged JSON: nested too deep"),
        (
            "rows.jsonl",
            LINES + b'{"text": "a", "text": "b"}',
            r"rows\.jsonl:3: damaged JSON: the key 'text' occurs twice in an object",
        ),
        ("rows.json", b'[{"text": "a"},\n {"text" 1}]', r"rows\.json:2: damaged JSON"),
        ("rows.json", b'[{"text": "a"}\n {"text": "b"}]', r"rows\.json:2: damaged JSON: Expecting ',' delimiter"),
        ("rows.json", b'[{"text": "a"}', r"rows\.json:1: damaged JSON"),
        ("rows.json", b"[" + ROW + b",\n" + DEEP + b"]", r"rows\.json:1: damaged JSON: nested too deep"),
        ("rows.json", b"[" + ROW + b"] x", r"rows\.json:1: damaged JSON: Expecting value"),
        ("rows.json", b"[1, 2]", r"rows\.json:1: expected an object with columns, found a number"),
        ("rows.json", b'"[{}, {}]"', "expected an object with columns, found text"),
        ("rows.csv", b"text,label\na,1\nb\n", r"rows\.csv:3: not the 2 fields of the header \(text, label\)"),
        ("rows.csv", b"text,label\na,1,2\n", r"rows\.csv:2: not the 2 fields"),
        ("rows.csv", b"text,label,text\na,1,b\n", r"rows\.csv: the header names text more than once"),
        ("rows.csv", b'text,label\n"a,1\n', r"rows\.csv:2: damaged csv"),
        # cockroachdb/cockroach#39809, facebookresearch/pytext#777: a stray quote swallows rows up to the next one
        ("rows.tsv", b'text\tlabel\n"a\t1\nb\t2\nc"\t1\n', r"rows\.tsv:4: a text of several lines .* whole rows"),
        ("rows.tsv", b'label\ttext\n1\t"a\n2\tb"\n', r"rows\.tsv:3: a text of several lines .* whole rows"),
        ("rows.csv", b"text;label\na, b;1\n", r"rows\.csv:2: not the 1 fields of the header \(text;label\)"),
        ("rows.csv", "text,label\na,1\n".encode("utf-16"), "is UTF-16 text; save it as UTF-8"),
        ("rows.csv", "text,label\na,1\n".encode("utf-16-be"), "is UTF-16 text; save it as UTF-8"),
        ("rows.jsonl", gzip.compress(ROW, mtime=0), "is packed, or an Excel workbook; unpack it"),
        ("rows.csv", b"PK\x03\x04...", "is packed, or an Excel workbook; unpack it, or save its table as csv"),
        ("rows.parquet", b"version https://git-lfs.github.com/spec/v1\n", "is a git-lfs pointer"),
        ("rows.csv", b"PAR1...", "holds parquet; name it .parquet"),
        ("rows.jsonl", b'{"text": "\xff\xfe"}\n', "not UTF-8"),
        ("rows.parquet", b"no parquet", "damaged parquet"),
        ("rows.parquet", b"", "damaged parquet"),
        ("rows.jsonl.gz", b"", "unknown format '.gz'"),
        ("rows.xlsx", b"", "unknown format '.xlsx'"),
    ],
)
def test_damaged_files_are_one_line_that_says_where(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as raised:
        load_rows(make_data(path=str(path)), COLUMNS)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 300


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.jsonl", b"\xef\xbb\xbf" + LINES),
        ("rows.jsonl", ROW + b"\n\xef\xbb\xbf" + ROW),  # two files, joined
        ("rows.jsonl", json.dumps([json.loads(ROW)] * 2).encode()),
        ("rows.jsonl", b'{"text": "a",\n "label": "x"}\n{"text": "a",\n "label": "x"}\n'),
        ("rows.json", b"\n  [" + ROW + b" ,\n" + ROW + b"]\n"),
        ("rows.json", b"\xef\xbb\xbf" + LINES),
        ("rows.json", b"[" + ROW + b"]\n[" + ROW + b"]"),
        ("rows.csv", b'\xef\xbb\xbftext,label\r\n\r\na,x\r\n"a","x"\r\n'),
        ("rows.csv", b"other,text,label\r,a,x\r;,a,x\r"),
        ("rows.csv", b"\n\ntext,label,,\na,x,,\na,x,,\n"),
        ("rows.csv", b"text,label" + b"".join(b",%d" % n for n in range(50_000)) + 2 * (b"\na,x" + 50_000 * b",")),
    ],
)
def test_forms_that_programs_write_are_read(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    loaded = load_rows(make_data(path=str(tmp_path / name)), COLUMNS)
    assert [row.values for row in loaded.rows["train"]] == [json.loads(ROW)] * 2


def test_json_numbers_that_are_no_numbers(tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(b'{"text": "a", "label": NaN}\n{"text": "b", "label": -Infinity}\n')
    rows = load_rows(make_data(path=str(tmp_path / "rows.jsonl")), COLUMNS).rows["train"]
    assert [as_text(row.values["label"]) for row in rows] == ["", "-inf"]


def write_parquet(path, columns: dict[str, pa.Array], names=None):
    pq.write_table(pa.table(list(columns.values()), names=names or list(columns)), path)
    return make_data(path=str(path))


def test_parquet_columns_that_nobody_reads_do_no_harm_and_those_read_are_named(tmp_path):
    odd = {"text": pa.array(["a"]), "label": pa.array(["x"]), "when": pa.array([2**62], pa.timestamp("us"))}
    data = write_parquet(tmp_path / "rows.parquet", odd)
    loaded = load_rows(data, COLUMNS)
    assert loaded.rows["train"][0].values == {"text": "a", "label": "x"}
    assert loaded.columns == ("text", "label", "when")
    with pytest.raises(UserError, match=r"rows\.parquet: column 'when' cannot be read: .*out of range"):
        load_rows(data, ["text", "when"])
    twice = write_parquet(tmp_path / "twice.parquet", odd, names=["text", "label", "text"])
    with pytest.raises(UserError, match=r"twice\.parquet: the header names text more than once"):
        load_rows(twice, COLUMNS)


def test_parquet_values_are_read_as_text_in_their_own_precision(tmp_path):
    halves = pa.Array.from_buffers(
        pa.string(),
        2,
        [None, pa.py_buffer(bytes([0, 0, 0, 0, 1, 0, 0, 0, 4, 0, 0, 0])), pa.py_buffer(b"a\xed\xa0\xbd")],
    )
    columns = {
        "single": pa.array([0.1, None], pa.float32()),
        "half": pa.array([0.1, 2], pa.float16()),
        "exact": pa.array([Decimal("1.00"), Decimal("0.50")]),
        "cat": pa.array(["u", "v"]).dictionary_encode(),
        "q": pa.array([{"x": "in"}, None]),
        "q.x": pa.array(["whole", "w"]),
        "cut": halves,
    }
    rows = load_rows(write_parquet(tmp_path / "rows.parquet", columns), ["q.x", "q", *columns]).rows["train"]
    texts = {name: [as_text(row.values[name]) for row in rows] for name in columns if name != "q"}
    assert texts.pop("cut")[0] == "a"
    assert texts == {
        "single": ["0.1", ""],
        "half": ["0.1", "2"],
        "exact": ["1", "0.5"],
        "cat": ["u", "v"],
        "q.x": ["whole", "w"],
    }
    with pytest.raises(UnicodeEncodeError):
        rows[1].values["cut"].encode()  # half of a surrogate pair: such a row is refused


def test_keys_that_arrow_adds_to_an_object_are_not_read(tmp_path):
    # modelscope/ms-swift#10125: all objects of a column get the keys of all others, as nulls
    calls = [{"name": "f", "arguments": {"town": "Ulm"}}, {"name": "g", "arguments": {"days": [{"n": 3}, {"m": 0}]}}]
    pq.write_table(pa.table({"text": [[call] for call in calls], "label": ["x", None]}), tmp_path / "rows.parquet")
    rows = load_rows(make_data(path=str(tmp_path / "rows.parquet")), COLUMNS).rows["train"]
    assert [row.values for row in rows] == [{"text": [calls[0]], "label": "x"}, {"text": [calls[1]], "label": None}]


def test_indented_texts_in_a_tsv_are_read(tmp_path):
    for content in (b'text\tlabel\n"if a:\n\tb"\tx\n', b'label\ttext\nx\t"if a:\n\tb"\n'):
        (tmp_path / "rows.tsv").write_bytes(content)
        (row,) = load_rows(make_data(path=str(tmp_path / "rows.tsv")), COLUMNS).rows["train"]
        assert row.values == {"text": "if a:\n\tb", "label": "x"}


def test_what_is_no_plain_file_is_one_line(tmp_path):
    os.mkfifo(tmp_path / "rows.csv")
    for path in (tmp_path / "rows.csv", "/dev/zero"):
        with pytest.raises(UserError, match="is neither a file nor a folder"):
            load_rows(make_data(path=str(path)), COLUMNS)
    (tmp_path / "train.csv").mkdir()
    os.mkfifo(tmp_path / "train.jsonl")
    (tmp_path / "train.parquet").symlink_to("/dev/zero")
    (tmp_path / "train.tsv").symlink_to("nowhere")
    with pytest.raises(UserError, match="no file for split 'train'"):
        load_rows(make_data(path=str(tmp_path)), COLUMNS)
    for path in ("x" * 5000, "a\0b", tmp_path / "train.tsv", tmp_path / "nowhere.csv"):
        with pytest.raises(UserError, match=r"no such file or folder|cannot be read: File name too long"):
            load_rows(make_data(path=str(path)), COLUMNS)
    (tmp_path / "d" / "train").mkdir(parents=True)
    (tmp_path / "d" / "train" / os.fsdecode(b"caf\xe9.csv")).write_bytes(b"text,label\na,x\n")
    with pytest.raises(UserError, match=r"caf\\udce9\.csv': the file's name is not UTF-8"):
        load_rows(make_data(path=str(tmp_path / "d")), COLUMNS)


def test_of_very_many_rows_so_many_are_drawn_by_the_seed_as_they_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr("stages.prepare.sources._MOST", 30)
    texts = [f"text {n}" for n in range(100)]
    data = write_parquet(tmp_path / "rows.parquet", {"text": pa.array(texts), "label": pa.array(["x"] * 100)})

    def read(**changes):
        loaded = load_rows(data.model_copy(update=changes), COLUMNS)
        return [row.values["text"] for row in loaded.rows["train"]], loaded.refused

    limits = {"limits": Limits(train=1, validation=1, test=1)}
    drawn, refused = read(**limits)
    assert refused == {("train", "beyond the 30 rows drawn of very many"): 70}
    assert len(drawn) == 30
    assert drawn == sorted(drawn, key=texts.index)
    assert read(**limits)[0] == drawn
    assert read(**limits, seed=2)[0] != drawn
    assert len(read(limits=Limits(train=6, validation=1, test=1))[0]) == 60
    assert read() == (texts, {})  # no limit, no draw
    assert read(**limits, examples=Named(table="t", name="n")) == (texts, {})  # rows that a table names


def test_rows_that_do_not_fit_into_memory_are_refused_while_they_are_read(tmp_path, monkeypatch):
    grown = iter(range(0, 1000 << 20, 10 << 20))
    monkeypatch.setattr("stages.prepare.sources._WATCH", 10)
    monkeypatch.setattr("stages.prepare.sources.free_memory_bytes", lambda: 35 << 20)
    monkeypatch.setattr("psutil.Process", lambda: SimpleNamespace(memory_info=lambda: SimpleNamespace(rss=next(grown))))
    data = make_data(path=str(write_jsonl(tmp_path / "rows.jsonl", ROWS * 20)))
    with pytest.raises(
        UserError, match=r"data: 30 rows of train fill 35 MiB of memory, which is the limit; .*set data\.limits"
    ):
        load_rows(data, COLUMNS)


def test_a_single_file_has_no_other_splits(tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", ROWS)
    with pytest.raises(UserError, match=r"one file holds one split; set data\.splits\.validation and test to null"):
        load_rows(make_data(path=str(path), splits=SPLITS), COLUMNS)


def test_a_very_wide_table_is_read_at_once(tmp_path):
    names = [f"c{n}" for n in range(100_000)]
    (tmp_path / "rows.csv").write_text(",".join([*names, *COLUMNS]) + "\n" + "," * len(names) + "a,x\n")
    began = process_time()
    loaded = load_rows(make_data(path=str(tmp_path / "rows.csv")), COLUMNS)
    assert [row.values for row in loaded.rows["train"]] == [{"text": "a", "label": "x"}]
    assert len(loaded.columns) == 100_002
    assert process_time() - began < 5


def test_a_line_without_end_is_not_read_to_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr("stages.prepare.files._LONGEST", 1000)
    for name, content in (("rows.csv", "text,label\n" + "a" * 5000), ("rows.jsonl", '{"text": "' + "a" * 5000)):
        (tmp_path / name).write_text(content)
        with pytest.raises(UserError, match=r"rows\..*:\d: a line of more than 1,000 characters"):
            load_rows(make_data(path=str(tmp_path / name)), COLUMNS)


@pytest.fixture
def hub_folder(tmp_path, hub):
    """A dataset in the Hub's layout, loaded by the Hub's own library from a folder."""
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


def test_a_branch_is_recorded_as_the_commit_that_it_stood_for(hub, hub_folder, monkeypatch):
    commit, opened = "c0ffee" * 6 + "c0ff", []
    real = hub.load_dataset_builder
    data = make_data(source="hub", name=str(hub_folder), revision="v1")
    assert load_rows(data, COLUMNS).identity["revision"] == "v1"  # a folder has no commit

    def builder(name, config, revision):
        """What the hub answers: the same data, and the commit in the place of a folder's hash."""
        opened.append(revision)
        found = real(name, config)
        found.hash = commit
        return found

    monkeypatch.setattr(hub, "load_dataset_builder", builder)
    for stream in (None, 5):
        loaded = load_rows(make_data(source="hub", name=str(hub_folder), revision="main", stream=stream), COLUMNS)
        assert loaded.identity["revision"] == commit
        assert loaded.rows["train"][0].values in ROWS
    assert opened == ["main", "main"]


def test_hub_class_labels_are_read_by_their_names(hub, tmp_path):
    features = hub.Features({"text": hub.Value("string"), "label": hub.ClassLabel(names=["no", "yes"])})
    folder = tmp_path / "named"
    hub.Dataset.from_list(
        [{"text": "a", "label": 1}, {"text": "b", "label": 0}, {"text": "c", "label": None}], features=features
    ).to_parquet(folder / "train.parquet")
    loaded = load_rows(make_data(source="hub", name=str(folder)), COLUMNS)
    assert [row.values["label"] for row in loaded.rows["train"]] == ["yes", "no", None]


@pytest.mark.slow
def test_a_stream_reads_so_many_rows_drawn_by_the_seed(tmp_path, hub):
    rows = [{"text": f"text {n}", "label": n % 2, "extra": "unread"} for n in range(100)]
    text = hub.Value("string")
    features = hub.Features({"text": text, "label": hub.ClassLabel(names=["no", "yes"]), "extra": text})
    folder = tmp_path / "large"
    hub.Dataset.from_list(rows, features=features).to_parquet(folder / "train.parquet")

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


def test_a_stream_that_breaks_off_is_one_line(tmp_path, hub):
    write_jsonl(tmp_path / "torn" / "train.jsonl", ROWS)
    with (tmp_path / "torn" / "train.jsonl").open("a") as file:
        file.write('{"text": "unfinished')
    with pytest.raises(UserError, match="cannot be loaded") as raised:
        load_rows(make_data(source="hub", name=str(tmp_path / "torn"), stream=50), COLUMNS)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("columns", "label"),
    [
        ({"label": pa.array([0.1, None], pa.float32())}, ["0.1", ""]),
        ({"label": pa.array([Decimal("1.00"), Decimal("2.50")])}, ["1", "2.5"]),
        ({"label": pa.array([1, 0], pa.uint8())}, ["1", "0"]),
    ],
)
@pytest.mark.usefixtures("hub")
def test_hub_values_are_read_as_those_of_files(tmp_path, columns, label):
    (tmp_path / "h").mkdir()
    write_parquet(tmp_path / "h" / "train.parquet", {"text": pa.array(["a", "b"])} | columns)
    for data in (make_data(source="hub", name=str(tmp_path / "h")), make_data(path=str(tmp_path / "h"))):
        rows = load_rows(data, COLUMNS).rows["train"]
        assert [as_text(row.values["label"]) for row in rows] == label


def test_the_hubs_library_says_why_it_cannot_read_a_file(hub_folder):
    for split in ("train", "test"):
        (hub_folder / f"{split}.parquet").unlink()
    (hub_folder / "train.jsonl").write_text('{"text": "cut \\ud83d", "label": 1}\n')
    data = make_data(source="hub", name=str(hub_folder))
    with pytest.raises(UserError, match=r"the dataset cannot be loaded: .*surrogate") as raised:
        load_rows(data, COLUMNS)
    assert "\n" not in str(raised.value)


def test_hub_faults_are_one_line(hub_folder, tmp_path):
    data = make_data(source="hub", name=str(hub_folder), splits=Splits(train="train", validation="dev", test=None))
    with pytest.raises(UserError, match="no split 'dev'; it has test, train"):
        load_rows(data, COLUMNS)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="cannot be loaded") as raised:
        load_rows(make_data(source="hub", name=str(tmp_path / "empty")), COLUMNS)
    assert "\n" not in str(raised.value)
