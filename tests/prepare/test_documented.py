"""The public datasets in docs/your-data.md are prepared by the very settings that the page gives."""

import json

import pytest
from dvc.utils.hydra import apply_overrides
from ruamel.yaml import YAML

from stages.prepare.__main__ import main
from tests.docs_blocks import blocks, commands, overrides
from tests.prepare.making import write_base, write_params

SHARED = "../shared/data"
SETTINGS = [given for command in commands("your-data.md") if SHARED in str(given := overrides(command, "-S"))]
CLASSES = {"trec": 6, "sst5": 5, "arc_easy": 0, "commonsense_qa": 0, "tinystories_sample": 0}


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


def test_they_are_all_there():
    assert {name(given) for given in SETTINGS} == set(CLASSES)
