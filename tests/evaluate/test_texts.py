"""What was forgotten, in perplexity: that of a plain transformers loop over the same blocks."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from salf.errors import UserError
from salf.files import read_json
from stages.evaluate.texts import main
from tests.conftest import write_params

TEXT = "the sky is blue and the grass is green . a red bird is on the tree . " * 8


@pytest.fixture
def project(tmp_path, hub_folder, monkeypatch):
    """A base, a model whose last layers differ, and the same text in two files."""
    write_params(tmp_path, device__kind="cpu", device__dtype="float32")
    for name in ("base", "tuned"):
        shutil.copytree(hub_folder, tmp_path / name)
    network = AutoModelForCausalLM.from_pretrained(tmp_path / "tuned")
    with torch.no_grad():
        for parameter in network.model.layers[2:].parameters():
            parameter.mul_(1.5)
    network.save_pretrained(tmp_path / "tuned")
    (tmp_path / "one.txt").write_text(TEXT)
    (tmp_path / "more.jsonl").write_text(json.dumps({"text": TEXT}) + "\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*texts):
    limits = ["--blocks", "2", "--tokens", "9"]
    main(["--base", "base", "--models", "tuned", "--texts", *texts, *limits, "--out", "out.json"])
    return read_json(Path("out.json"))["models"]


def loop(folder):
    """Two blocks of nine tokens: the second one begins with the last token of the first."""
    ids = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(TEXT, add_special_tokens=False).ids
    network, nats = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(), []
    for block in (ids[:9], ids[8:17]):
        with torch.no_grad():
            scores = network(torch.tensor([block])).logits[0, :-1].log_softmax(-1)
        nats += [-float(scores[at, token]) for at, token in enumerate(block[1:])]
    return float(torch.tensor(nats).mean().exp()), len(nats)


def test_perplexities_are_those_of_a_plain_loop(project):
    found = run("one=one.txt", "more=more.jsonl")
    for name in ("base", "tuned"):
        perplexity, tokens = loop(project / name)
        for text in ("one", "more"):
            assert found[name][text]["perplexity"] == pytest.approx(perplexity, rel=1e-4)
            assert found[name][text]["tokens"] == tokens == 16
    assert found["base"]["one"] != found["tuned"]["one"]


def test_a_pruned_model_reads_as_it_was_trained_to(project):
    """Layers that drop every earlier token leave each token alone."""
    network = AutoModelForCausalLM.from_pretrained(project / "tuned", dtype=torch.float32).eval()
    (project / "tuned/pruning").mkdir()
    parts = {"query": torch.zeros(2, network.config.hidden_size), "bias": torch.tensor([-9.0])}
    parts["key"] = parts["query"].clone()
    paths = [f"model.layers.{number}.self_attn.interaction." for number in range(network.config.num_hidden_layers)]
    saved = {path + name: part.clone() for path in paths for name, part in parts.items()}
    save_file(saved, project / "tuned/pruning/interactions.safetensors")
    ids = Tokenizer.from_file("base/tokenizer.json").encode(TEXT, add_special_tokens=False).ids[:17]
    with torch.no_grad():
        alone = [network(torch.tensor([[token]])).logits[0, 0].log_softmax(-1) for token in ids]
    nats = [-float(scores[following]) for scores, following in zip(alone, ids[1:], strict=False)]
    expected = float(torch.tensor(nats).mean().exp())
    assert run("one=one.txt")["tuned"]["one"]["perplexity"] == pytest.approx(expected, rel=1e-4)


def test_what_is_no_text_is_one_line(project):
    with pytest.raises(UserError, match=r"none\.txt: no such file"):
        run("one=none.txt")
    (project / "odd.jsonl").write_text('{"words": 1}\n')
    with pytest.raises(UserError, match=r"odd\.jsonl: no text in UTF-8, or no JSON lines with a text"):
        run("odd=odd.jsonl")
