"""Unwanted continuations by log probabilities of Hugging Face's own model, and on a model that was taught them."""

import json
import re

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from salf.engine.answers import Reader
from salf.engine.batches import Split
from salf.engine.models.adapter import take_apart
from salf.engine.rules import CandidateRule
from salf.engine.runtime import choose_runtime
from salf.errors import UserError
from salf.settings import Device
from stages.common.params import load_params
from stages.evaluate.compare import Sampling, compare
from stages.evaluate.pairs import preferences, read_pairs
from stages.evaluate.scores import Bootstrap
from tests.conftest import PROJECT
from tests.docs_blocks import blocks, run_python

RUNTIME = choose_runtime(Device(kind="cpu", dtype="float32"))
ASKED = load_params(PROJECT / "params.yaml").evaluate
PAIRS = [("the doctor is", f"a good person {n}", f"bad {n * n}") for n in range(12)]


def write_pairs(path, pairs):
    names = ("prompt", "wanted", "unwanted")
    if path.suffix == ".csv":
        lines = [",".join(names), *(",".join(pair) for pair in pairs)]
    else:
        lines = [json.dumps(dict(zip(names, pair, strict=True))) for pair in pairs]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def read(network, examples):
    return Reader(take_apart(network.eval()), RUNTIME, CandidateRule("character"), 256).read(Split(examples, 0))


def measured(network, examples):
    measures = preferences(read(network, examples))
    return {name: np.average(values, weights=weights) for name, (values, weights) in measures.items()}


def test_rate_and_margin_are_those_of_hugging_faces_log_probabilities(tmp_path, hub_folder):
    network = AutoModelForCausalLM.from_pretrained(hub_folder)
    tokenizer = Tokenizer.from_file(str(hub_folder / "tokenizer.json"))
    margins = []
    for prompt, *both in PAIRS:
        start = len(tokenizer.encode(prompt).ids)
        nats = []
        for text in both:
            ids = torch.tensor([tokenizer.encode(f"{prompt} {text}").ids])
            with torch.no_grad():
                logits = network(ids).logits[0, :-1].log_softmax(-1)
            nats.append(float(logits.gather(1, ids[0, 1:, None])[start - 1 :].sum()) / len(text))
        margins.append(nats[1] - nats[0])
    for name in ("pairs.csv", "pairs.jsonl"):
        found = measured(network, read_pairs(write_pairs(tmp_path / name, PAIRS), hub_folder))
        assert found["unwanted_margin"] == pytest.approx(np.mean(margins), abs=1e-5)
        assert found["unwanted_rate"] == np.mean(np.array(margins) > 0)
    swapped = [(prompt, unwanted, wanted) for prompt, wanted, unwanted in PAIRS]
    other = measured(network, read_pairs(write_pairs(tmp_path / "swapped.csv", swapped), hub_folder))
    assert other["unwanted_rate"] == pytest.approx(1 - found["unwanted_rate"])
    assert other["unwanted_margin"] == pytest.approx(-found["unwanted_margin"])


def teach(network, examples, wanted, steps):
    """Plain steps on one of the two continuations of every pair."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    for _ in range(steps):
        for example in examples:
            answer = example.candidates[0 if wanted else 1].ids
            ids = torch.tensor([[*example.prompt_ids, *answer]])
            labels = ids.where(torch.arange(ids.shape[1]) >= len(example.prompt_ids), -100)
            network.train()(input_ids=ids, labels=labels).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    network.requires_grad_(False)
    said = read(network, examples)
    network.requires_grad_(True)
    return said


def test_what_was_planted_is_preferred_and_a_shorter_removal_keeps_more_of_it(tmp_path, hub_folder):
    examples = read_pairs(write_pairs(tmp_path / "pairs.csv", PAIRS), hub_folder)
    network = AutoModelForCausalLM.from_pretrained(hub_folder)
    said = {"untrained": teach(network, examples, wanted=False, steps=3)}
    said["half-seed1"] = teach(network, examples, wanted=True, steps=1)
    said["full-seed1"] = teach(network, examples, wanted=True, steps=4)
    sampling = Sampling(ASKED, {name: [f"{name}-seed1"] for name in ("half", "full")})
    found = sampling.panel({name: preferences(answers) for name, answers in said.items()})
    rates = {name: one.scores["unwanted_rate"].value for name, one in found.models.items()}
    assert (rates["untrained"], rates["full"]) == (1, 0)
    margin = {name: one.scores["unwanted_margin"].value for name, one in found.models.items()}
    share = found.models["half"].share_of_full["unwanted_margin"]
    expected = (margin["half"] - margin["untrained"]) / (margin["full"] - margin["untrained"])
    assert share.value == pytest.approx(expected)
    assert 0 < share.low <= share.value <= share.high < 1
    assert found.models["full"].minus_base["unwanted_margin"].high < 0


def test_a_change_that_is_not_significant_has_no_share():
    values = np.random.default_rng(0).normal(size=(3, 40))
    bootstrap = Bootstrap(40, 100, 0.95, 0)
    own = {name: {"x": bootstrap.mean(one)} for name, one in zip(("untrained", "full", "half"), values, strict=True)}
    assert compare(own)["half"].share_of_full == {}


@pytest.mark.parametrize(
    ("pairs", "told"),
    [
        ([], r"it holds no rows"),
        ([("p", "w", "w")], r"row 1: prompt and continuations must not be empty, and two"),
        ([("p", "w", "u"), ("p", "", "u")], r"row 2: prompt and continuations"),
    ],
)
def test_faults_are_one_line(tmp_path, hub_folder, pairs, told):
    path = write_pairs(tmp_path / "pairs.csv", pairs)
    with pytest.raises(UserError, match=told) as raised:
        read_pairs(path, hub_folder)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "text"), [("a.csv", "prompt,wanted\na,b\n"), ("a.csv", "prompt,wanted,unwanted\na\n"), ("a.jsonl", "[1]")]
)
def test_a_file_of_another_form_is_one_line(tmp_path, hub_folder, name, text):
    (tmp_path / name).write_text(text)
    told = (
        f"{re.escape(str(tmp_path / name))}: evaluate.pairs needs a csv, or JSON lines, with the columns prompt, wanted"
    )
    with pytest.raises(UserError, match=told):
        read_pairs(tmp_path / name, hub_folder)


def test_the_documented_recipe_makes_pairs_of_crows_pairs(tmp_path, hub_folder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "crows_pairs_anonymized.csv").write_text(
        ",sent_more,sent_less,stereo_antistereo,bias_type\n"
        '0,"Old people, they say, are slow.","Young people, they say, are slow.",stereo,age\n'
        "1,Rich people are kind.,Poor people are kind.,antistereo,socioeconomic\n"
    )
    (block,) = (text for _, text in blocks("measuring.md", "python", "Unwanted answers"))
    run_python(block, {}, "measuring.md")
    first, second = read_pairs(tmp_path / "data/crows_pairs.jsonl", hub_folder)
    assert [one.text for one in first.candidates] == [
        "Young people, they say, are slow.",
        "Old people, they say, are slow.",
    ]
    assert second.text == first.text == "Somebody said:"
