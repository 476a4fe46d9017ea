"""The whole chain on other architectures than Llama's: fused maps, padded layers, a mixture of experts."""

import json
import shutil

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoTokenizer

from salf.errors import UserError
from tests.conftest import write_tiny_task
from tests.engine.models.tiny import save_tiny
from tests.test_chain import Chain

METHODS = ["salf", "salf+lora"]


def prepare(folder, hub_folder, model_type, **overrides):
    source = folder / "source"
    shutil.copytree(hub_folder, source)
    (source / "config.json").unlink()
    save_tiny(source, model_type, vocab_size=258, bos_token_id=0, eos_token_id=1, pad_token_id=1, **overrides)
    return prepare_source(folder, source)


def prepare_source(folder, source, **changes):
    write_tiny_task(
        folder,
        source,
        compare__methods=METHODS,
        finetune__epochs=1,
        data__limits={"train": 40, "validation": 8, "test": 8},
        **changes,
    )
    return Chain(folder)


@pytest.mark.chain
@pytest.mark.parametrize(
    "model_type",
    ["gpt2", *(pytest.param(name, marks=pytest.mark.slow) for name in ("falcon", "gemma2", "qwen3_moe", "opt"))],
)
def test_a_family_goes_through_every_stage(tmp_path, hub_folder, model_type):
    chain = prepare(tmp_path, hub_folder, model_type).run(METHODS)
    plan = chain.json("data/plan/freeze_plan.json")
    network = AutoModelForCausalLM.from_pretrained(tmp_path / "data/base")
    assert plan["parameters"]["total"] == sum(p.numel() for p in network.parameters())
    for method in METHODS:
        folder = tmp_path / "data/models" / f"{method}-seed1"
        run = json.loads((folder / "run.json").read_text())
        frozen = [f"layer-{k:02d}" for k in range(1, run["boundary"] + 1)]
        assert not {*frozen, *(["embedding"] if frozen else [])} & set(run["changed_units"])
        assert any(unit.startswith("layer") for unit in run["changed_units"])
        AutoModelForCausalLM.from_pretrained(folder)
        AutoTokenizer.from_pretrained(folder)
    check_adapters(tmp_path)
    assert set(chain.json("reports/metrics.json")) > {"schema"}


def check_adapters(root):
    """PEFT finds the base model, which is the user's folder, and computes what the merged folder computes."""
    folder, ids = root / "data/models/salf+lora-seed1", torch.tensor([[5, 6, 7, 8]])
    settings = json.loads((folder / "adapter/adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(root / "source")
    card = (folder / "adapter/README.md").read_text(encoding="utf-8")
    assert json.loads((root / "data/base/base.json").read_text())["weights_sha256"] in card
    with torch.no_grad():
        merged = AutoModelForCausalLM.from_pretrained(folder)(ids).logits
        adapted = AutoPeftModelForCausalLM.from_pretrained(folder / "adapter")(ids).logits
        plain = AutoModelForCausalLM.from_pretrained(root / "source")(ids).logits
    torch.testing.assert_close(adapted, merged, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(adapted, plain, rtol=1e-3, atol=1e-4)
    assert not list(folder.rglob(".work"))
    AutoTokenizer.from_pretrained(folder / "adapter")


@pytest.mark.slow
@pytest.mark.chain
def test_a_type_outside_the_table_goes_as_far_as_its_cost_is_known(tmp_path, hub_folder):
    """StableLM's layers are Llama's but for their norms: found by name, traced, and not given a cost."""
    with pytest.raises(UserError, match=r"the cost model reads [\d,]+ parameters a layer.* model type 'stablelm'"):
        prepare(tmp_path, hub_folder, "stablelm").run(METHODS)
    assert (tmp_path / "data/traces").exists()
