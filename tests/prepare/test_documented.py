"""The public datasets in docs/your-data.md are prepared by the very settings that the page gives."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from dvc.utils.hydra import apply_overrides
from ruamel.yaml import YAML

from stages.prepare.__main__ import main
from tests.docs_blocks import blocks, commands, overrides
from tests.prepare.making import write_base, write_params

SHARED = "../shared/data"
SETTINGS = [given for command in commands("your-data.md") if SHARED in str(given := overrides(command, "-S"))]
CLASSES = {"cola": 2, "trec": 6, "sst5": 5, "arc_easy": 0, "commonsense_qa": 0, "tinystories_sample": 0}


def name(given: list[str]) -> str:
    return given[1].rsplit("/", 1)[-1]


@pytest.mark.parametrize("given", SETTINGS, ids=name)
def test_a_public_dataset_is_prepared(given, shared, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_params(tmp_path / "params.yaml", {"limits": {"train": 60, "validation": 12, "test": 24}}, {})
    apply_overrides("params.yaml", [value.replace(SHARED, str(shared / "data")) for value in given])
    main(["--base", str(write_base(tmp_path / "base", context=8192)), "--out", "prepared"])
    meta = json.loads((tmp_path / "prepared/meta.json").read_text(encoding="utf-8"))
    assert len(meta["labels"]) == CLASSES[name(given)]
    assert meta["splits"]["test"]["rows"] >= 20


def test_plain_text_is_prepared_by_the_block_that_the_page_gives(shared, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (block,) = (text for _, text in blocks("your-data.md", "yaml", "Plain text"))
    given = YAML(typ="safe", pure=True).load(block)["data"]
    given["path"] = given["path"].replace(SHARED, str(shared / "data"))
    write_params(tmp_path / "params.yaml", given, {})
    main(["--base", str(shared / "models/stories260K"), "--out", "prepared"])
    meta = json.loads((tmp_path / "prepared/meta.json").read_text(encoding="utf-8"))
    assert meta["splits"]["test"]["documents"] == 60
    for split in meta["splits"].values():
        tokens = split["tokens"] + split["rows"]  # the last token of a block is predicted and never read
        assert tokens <= given["text"]["block_tokens"] * split["rows"]
        assert split["short_blocks"] <= split["documents"]


def test_sentence_pairs_with_a_shifted_split_are_prepared_by_the_block_that_the_page_gives(tmp_path, monkeypatch):
    """MNLI and HANS as the Hub holds them: Parquet files whose labels are the numbers of their own classes."""
    monkeypatch.chdir(tmp_path)
    (block,) = (text for _, text in blocks("your-data.md", "yaml", "Other domains"))
    given = YAML(typ="safe", pure=True).load(block)["data"]
    folder = tmp_path / given["path"]
    (folder / "hans").mkdir(parents=True)
    three = ["entailment", "neutral", "contradiction"]
    for name, rows in (("train", 60), ("validation_matched", 30)):
        pairs = [(f"{name} {n} saw the {n * 7} doctors", f"the {n * 7} doctors were seen", n % 3) for n in range(rows)]
        write_pairs(folder / f"{name}-00000-of-00001.parquet", pairs, three)
    pairs = [(f"the judge {n} paid {n * 5} actors", f"actors {n * 5} paid the judge", n % 2) for n in range(40)]
    heuristics = [["lexical_overlap", "subsequence", "constituent"][n % 3] for n in range(40)]
    write_pairs(folder / "hans/0000.parquet", pairs, ["entailment", "non-entailment"], heuristics)
    write_params(tmp_path / "params.yaml", given, {"near_duplicate": 1.0})
    main(["--base", str(write_base(tmp_path / "base")), "--out", "prepared"])
    meta = json.loads((tmp_path / "prepared/meta.json").read_text(encoding="utf-8"))
    assert meta["merged_labels"] == {"no": ["1", "2"]}
    assert meta["splits"]["hans"]["label_counts"] == {"no": 20, "yes": 20}
    assert meta["splits"]["test"]["label_counts"] == {"no": 20, "yes": 10}
    hans = pq.read_table(tmp_path / "prepared/hans.parquet").to_pylist()
    assert {row["subgroup"] for row in hans} == set(heuristics)
    assert {(int(row["text"].split()[2]) % 2, row["answer"]) for row in hans} == {(0, "yes"), (1, "no")}


def write_pairs(path, pairs, classes, heuristics=None):
    """A Parquet file as `datasets` writes it: with the names of the classes in its metadata."""
    columns = dict(zip(("premise", "hypothesis", "label"), zip(*pairs, strict=True), strict=True))
    info = {"info": {"features": {"label": {"names": classes, "_type": "ClassLabel"}}}}
    table = pa.table(columns | ({"heuristic": heuristics} if heuristics else {}))
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(info)}), path)


def test_they_are_all_there():
    assert {name(given) for given in SETTINGS} == set(CLASSES)
