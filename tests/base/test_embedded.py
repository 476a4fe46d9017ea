"""The embedded model is the real one: it predicts English."""

import json
import random
import re

import pytest
import torch

from salf.engine.models.adapter import CausalModel, open_model
from salf.engine.models.shards import shard_hashes
from stages.base.sources import SHA256
from tests.conftest import PROJECT, write_params

pytestmark = pytest.mark.embedded


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    import os

    from stages.base.__main__ import main

    made = PROJECT / "data/base"
    if (made / "base.json").exists():
        facts = json.loads((made / "base.json").read_text(encoding="utf-8"))
        if (facts["revision"], facts["shards"]) == (SHA256, shard_hashes(made)):
            return made  # by a run of the project, and still what that run made
    folder = tmp_path_factory.mktemp("embedded")
    write_params(folder)
    before = os.getcwd()
    os.chdir(folder)
    try:
        main(["--out", "base"])
    finally:
        os.chdir(before)
    return folder / "base"


@pytest.fixture(scope="module")
def model(base) -> CausalModel:
    return open_model(base, torch.device("cpu"))


def perplexity(model, tokenizer, text):
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    with torch.no_grad():
        return float(model.network(ids, labels=ids).loss.exp())


def test_a_paragraph_of_the_readme_is_far_likelier_than_its_words_shuffled(base, model):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    readme = (PROJECT / "README.md").read_text(encoding="utf-8")
    prose = [re.sub(r"[`*\[\]]", "", p) for p in readme.split("\n\n") if p[:1].isalpha() and len(p.split()) > 25]
    words = prose[0].split()
    random.Random(0).shuffle(words)
    assert perplexity(model, tokenizer, prose[0]) < perplexity(model, tokenizer, " ".join(words)) / 4


def test_it_knows_the_capital_of_france(base, model):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    with torch.no_grad():
        logits = model.network(**tokenizer("The capital of France is", return_tensors="pt")).logits[0, -1]
    assert tokenizer.decode(int(logits.argmax())).strip() == "Paris"


def test_the_default_tasks_answers_start_with_different_tokens(base, tmp_path, monkeypatch):
    from stages.prepare.__main__ import main

    monkeypatch.chdir(tmp_path)
    write_params(tmp_path)
    main(["--base", str(base), "--out", "prepared"])
    meta = json.loads((tmp_path / "prepared/meta.json").read_text(encoding="utf-8"))
    assert len({entry["token_ids"][0] for entry in meta["labels"]}) == len(meta["labels"]) == 8


def test_its_origin_is_stated_and_its_shape_is_that_of_the_real_model(base):
    facts = json.loads((base / "base.json").read_text(encoding="utf-8"))
    assert "4-bit" in facts["origin"]
    assert (facts["layers"], facts["hidden"], facts["vocabulary"], facts["tied_head"]) == (30, 576, 49152, True)
    assert len(facts["shards"]) == 32
