"""From a folder in the hub's layout through the base's shards to a fine-tuned folder that transformers loads."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from salf.engine.models.adapter import open_model
from salf.engine.models.shards import shard_hashes
from salf.engine.training.forms import Trainable
from salf.engine.training.scope import Scope
from salf.families import FAMILIES
from salf.methods import Method
from stages.base.__main__ import main as bring_base
from stages.common.params import load_params
from stages.finetune.save import Base, save_model
from tests.conftest import PROJECT, write_params
from tests.engine.models.tiny import save_tiny

CPU = torch.device("cpu")
BOUNDARY = 2
IDS = torch.tensor([[5, 6, 7, 8, 9]])


def bring(tmp_path, monkeypatch, hub_folder, model_type):
    """The base stage's folder of a small random model, and its source."""
    source = tmp_path / "source"
    shutil.copytree(hub_folder, source)
    (source / "config.json").unlink()
    save_tiny(source, model_type, vocab_size=258)
    return source, bring_again(tmp_path, monkeypatch, source)


def bring_again(tmp_path, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    write_params(tmp_path, model__source=str(source))
    bring_base(["--out", "base"])
    return tmp_path / "base"


def logits(network):
    with torch.no_grad():
        return network.eval()(IDS).logits


# One type of every layout at once, all of them in the slow tests.
FIRST = {"bloom", "gemma2", "gpt2", "gpt_neox", "llama", "mamba", "mixtral", "opt", "phi3"}


@pytest.mark.parametrize(
    "model_type",
    # MiniMax, outside the table, stores buffers of its layers.
    [pytest.param(name, marks=[] if name in FIRST else pytest.mark.slow) for name in sorted({*FAMILIES, "minimax"})],
)
def test_a_trained_suffix_is_saved_reloaded_and_writes(tmp_path, monkeypatch, hub_folder, model_type):
    source, base = bring(tmp_path, monkeypatch, hub_folder, model_type)
    model = open_model(base, CPU)
    torch.testing.assert_close(logits(model.network), logits(AutoModelForCausalLM.from_pretrained(source)))

    scope = Scope.above(BOUNDARY, model.depth)
    made = Trainable.of(model, Method("full"), scope, load_params(PROJECT / "params.yaml").finetune, seed=1, steps=1)
    with torch.no_grad():
        for parameter in made.parameters:
            parameter.mul_(1.1)
    (tmp_path / "tuned").mkdir()
    changed = save_model(made, base, tmp_path / "tuned", Base("base"), None)
    assert [unit for unit in changed if unit != "final"] == ["layer-03", "layer-04"]
    before, after = shard_hashes(base), shard_hashes(tmp_path / "tuned")
    assert {name for name in after if after[name] == before[name]} >= {
        "embedding.safetensors",
        "layer-01.safetensors",
        "layer-02.safetensors",
    }
    shards = [load_file(file) for file in (tmp_path / "tuned").glob("*.safetensors")]
    index = json.loads((tmp_path / "tuned" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for shard in shards for tensor in shard.values())
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "tuned")
    torch.testing.assert_close(logits(again), logits(model.network))
    written = [network.generate(IDS, max_new_tokens=4, do_sample=False) for network in (again, model.network)]
    assert torch.equal(*written)


def test_the_base_tells_sizes_under_todays_names(tmp_path, monkeypatch, hub_folder):
    """GPT-2's configuration says n_layer, n_embd, and nothing of its tied head."""
    source, _ = bring(tmp_path, monkeypatch, hub_folder, "gpt2")
    raw = json.loads((source / "config.json").read_text())
    raw.pop("tie_word_embeddings", None)
    assert "num_hidden_layers" not in raw
    (source / "config.json").write_text(json.dumps(raw))
    base = bring_again(tmp_path, monkeypatch, source)
    facts, config = (json.loads((base / name).read_text()) for name in ("base.json", "config.json"))
    assert (facts["layers"], facts["hidden"], facts["vocabulary"], facts["tied_head"]) == (4, 32, 258, True)
    assert (config["num_hidden_layers"], config["hidden_size"], config["num_attention_heads"]) == (4, 32, 4)
    assert facts["parameters"]["embedding"] == 258 * 32 + 128 * 32  # positions among them


@pytest.mark.parametrize(
    ("model_type", "renamed"),
    [
        ("gpt2", lambda name: name.removeprefix("transformer.")),
        ("bloom", lambda name: name.removeprefix("transformer.")),
        ("gpt_neox", lambda name: name.replace("lm_head.", "embed_out.")),
    ],
)
def test_older_names_of_tensors_are_todays_in_the_base(tmp_path, monkeypatch, hub_folder, model_type, renamed):
    source, base = bring(tmp_path, monkeypatch, hub_folder, model_type)
    expected = shard_hashes(base)
    tensors = load_file(source / "model.safetensors")
    layers = FAMILIES[model_type].layers
    old = {renamed(name): tensor for name, tensor in tensors.items()}
    old |= {renamed(f"{layers}.{n}.attn.bias"): torch.ones(1, 1, 8, 8) for n in range(4)}  # a mask of older versions
    assert set(old) != set(tensors)
    save_file(old, source / "model.safetensors", {"format": "pt"})
    assert shard_hashes(bring_again(tmp_path, monkeypatch, source)) == expected
