"""Frozen layers held in fewer bits or outside memory, against the same model held whole."""

import json

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from salf.engine.models import adapter
from salf.engine.models.adapter import Frozen, open_model
from salf.errors import UserError
from tests.conftest import write_tiny_task
from tests.engine.models.tiny import save_tiny, tiny_network
from tests.test_chain import Chain

CPU = torch.device("cpu")
PROMPT = torch.arange(3, 40)[None]
WIDE = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}  # bitsandbytes quantises in blocks of 64


def opened(folder, held, layers, dtype=torch.float32):
    return open_model(folder, CPU, dtype, frozen=Frozen(layers, held))


@torch.no_grad()
def logits(model):
    return model.network(PROMPT).logits


@pytest.mark.parametrize(
    ("model_type", "layers"),
    [("llama", 2), ("llama", None), ("gpt2", 2), ("gemma2", 2), ("bloom", None), ("qwen3_moe", 2), ("mamba", 2)],
)
def test_offloaded_layers_are_read_from_the_files_and_say_the_same(tmp_path, model_type, layers):
    save_tiny(tmp_path / "model", model_type)
    whole, model = (opened(tmp_path / "model", held, layers) for held in ("whole", "offload"))
    outside = {name for name, parameter in model.network.named_parameters() if parameter.device.type == "meta"}
    parts = [f"{model.family.layers}.{number}." for number in range(model.depth)[:layers]]
    assert outside == {name for name, _ in model.network.named_parameters() if name.startswith(tuple(parts))}
    assert outside
    assert torch.equal(logits(model), logits(whole))


@pytest.mark.parametrize(("held", "kind"), [("int8", "Linear8bitLt"), ("nf4", "Linear4bit")])
@pytest.mark.parametrize("model_type", ["llama", "qwen3", "gpt_neox"])
def test_only_frozen_layers_are_quantised_and_compute_with_their_own_values(tmp_path, model_type, held, kind):
    """A plain copy that is given what bitsandbytes says its weights stand for computes the same."""
    bnb = pytest.importorskip("bitsandbytes")
    save_tiny(tmp_path / "model", model_type, **WIDE)
    model = opened(tmp_path / "model", held, 3)
    quantised = {name: part for name, part in model.network.named_modules() if type(part).__name__ == kind}
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    parts = tuple(f"{model.family.layers}.{number}." for number in range(3))
    assert set(quantised) == {n for n, p in plain.named_modules() if isinstance(p, nn.Linear) and n.startswith(parts)}
    untouched = logits(opened(tmp_path / "model", "whole", 3))
    with torch.no_grad():
        for name, part in quantised.items():
            weight = part.weight
            if held == "nf4":
                values = bnb.functional.dequantize_4bit(weight.data, weight.quant_state)
            else:
                values = weight.data * part.state.SCB[:, None] / 127  # of the largest value of each row
            plain.get_submodule(name).weight.copy_(values)
        expected = plain(PROMPT).logits
    far = (logits(model) - expected).norm() / expected.norm()
    from_whole = (expected - untouched).norm() / untouched.norm()
    # int8 rounds the layer's inputs as well, so it is as far from its own weights' answer as rounding goes.
    assert far < (1e-5 if held == "nf4" else 0.05)
    assert from_whole > 1e-3


@pytest.mark.parametrize(
    ("kind", "free", "outside"), [("cuda", 2**40, "cpu"), ("cuda", 0, "disk"), ("cpu", 2**40, "disk")]
)
def test_beside_a_gpu_layers_stay_in_main_memory_if_they_fit(tmp_path, monkeypatch, kind, free, outside):
    save_tiny(tmp_path / "model")
    monkeypatch.setattr(adapter, "free_memory_bytes", lambda: free)
    config = AutoConfig.from_pretrained(tmp_path / "model")
    held = Frozen(2, "offload").options(config, torch.device(kind), torch.float32, trust_remote_code=False)
    layers = {"model.layers.0": outside, "model.layers.1": outside, "model.layers.2": kind, "model.layers.3": kind}
    rest = ["model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"]
    assert held == {"device_map": {**layers, **dict.fromkeys(rest, kind)}}


@pytest.mark.parametrize("held", ["offload", "int8", "nf4"])
def test_where_no_layer_is_frozen_the_model_is_opened_as_it_always_is(tmp_path, held):
    save_tiny(tmp_path / "model")
    model = opened(tmp_path / "model", held, 0)
    assert {type(part) for part in model.layers.modules()} == {type(p) for p in tiny_network().model.layers.modules()}
    assert not hasattr(model.network, "hf_device_map")
    config = AutoConfig.from_pretrained(tmp_path / "model")
    assert Frozen(0, held).options(config, CPU, torch.float32, trust_remote_code=False) == {}


def test_without_bitsandbytes_it_says_what_to_install(tmp_path, monkeypatch):
    save_tiny(tmp_path / "model")
    monkeypatch.setattr(adapter, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"device.frozen_weights = int8: .* pip install"):
        opened(tmp_path / "model", "int8", 2)


METHODS = ["full", "freeze-2", "freeze-2+lora", "none"]


def run_chain(folder, hub_folder, held, cache):
    folder.mkdir()
    write_tiny_task(
        folder,
        hub_folder,
        device__frozen_weights=held,
        compare__methods=METHODS,
        signals__kinds=["block-influence", "probe"],
        finetune__cache=cache,
        finetune__epochs=1,
        data__limits={"train": 24, "validation": 8, "test": 12},
    )
    return Chain(folder).run(METHODS)


@pytest.mark.slow
@pytest.mark.chain
@pytest.mark.parametrize("cache", ["memory", "off"])
def test_a_chain_with_offloaded_layers_gives_the_same_bits(tmp_path, hub_folder, cache):
    whole, offloaded = (run_chain(tmp_path / held, hub_folder, held, cache) for held in ("whole", "offload"))
    for method in METHODS:
        one, other = (
            json.loads((chain.root / f"data/models/{method}-seed1/run.json").read_text())
            for chain in (whole, offloaded)
        )
        assert one["shards"] == other["shards"]
        assert one["curve"] == other["curve"]
    assert whole.json("reports/metrics.json") == offloaded.json("reports/metrics.json")


@pytest.mark.chain
@pytest.mark.parametrize("held", ["nf4", pytest.param("int8", marks=pytest.mark.slow)])
def test_a_chain_with_quantised_layers_trains_the_others_and_keeps_the_files_of_these(tmp_path, hub_folder, held):
    pytest.importorskip("bitsandbytes")
    chain = run_chain(tmp_path / held, hub_folder, held, "memory")
    base = chain.json("data/base/base.json")["shards"]
    for method in METHODS[1:]:
        run = chain.json(f"data/models/{method}-seed1/run.json")
        frozen = [f"layer-{layer:02d}.safetensors" for layer in range(1, run["boundary"] + 1)]
        assert [run["shards"][shard] for shard in frozen] == [base[shard] for shard in frozen]
        saved = AutoModelForCausalLM.from_pretrained(chain.root / f"data/models/{method}-seed1")
        assert {parameter.dtype for parameter in saved.parameters()} == {torch.float32}
        assert run["changed_units"]
