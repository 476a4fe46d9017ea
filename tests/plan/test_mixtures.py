"""Exports for mixtures of experts, whose files hold every expert apart and whose loaded networks hold them joined."""

import json
import re
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from salf.export import FORMATS
from stages.base.__main__ import main as bring_base
from tests.conftest import write_params
from tests.engine.models.tiny import save_tiny
from tests.plan.conftest import LAYERS

BOUNDARIES = {0: {"selector": "full"}, 4: {"selector": "last-n", "last_n": 2}, LAYERS: {"selector": "none"}}
IDS = torch.arange(12).reshape(2, 6)


@pytest.fixture(
    params=["mixtral", "qwen3_moe", *(pytest.param(n, marks=pytest.mark.slow) for n in ("qwen2_moe", "olmoe"))]
)
def plan(request, workspace, hub_folder):
    """Makes the plan of a mixture that came through the base stage."""
    source = workspace.root / "source"
    shutil.copytree(hub_folder, source)
    (source / "config.json").unlink()
    save_tiny(source, request.param, vocab_size=258, num_hidden_layers=LAYERS)
    write_params(workspace.root, model__source=str(source))
    bring_base(["--out", "mixture"])
    workspace.base = workspace.root / "mixture"
    return lambda boundary: workspace.plan(**BOUNDARIES[boundary])


@pytest.fixture
def load(workspace):
    return lambda: AutoModelForCausalLM.from_pretrained(workspace.base)


def training(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_every_list_of_names_is_what_the_plan_trains_in_the_loaded_network(plan, load, workspace, boundary):
    made, model = plan(boundary), load()
    made.apply(model)
    stored = json.loads((workspace.base / "model.safetensors.index.json").read_text())["weight_map"]
    assert not training(model) <= set(stored) or boundary == LAYERS  # else this test would prove nothing
    assert set(made.exports.parameter_names["trained"]) == training(model)
    assert set(FORMATS["names"](made).split()) == training(model)
    patterns = [re.compile(pattern.replace(".", r"\.")) for pattern in made.exports.axolotl]
    assert {name for name, _ in model.named_parameters() if any(p.match(name) for p in patterns)} == training(model)


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_the_function_without_this_project_freezes_the_same(plan, load, boundary):
    made, ours, theirs = plan(boundary), load(), load()
    made.apply(ours)
    names: dict = {}
    exec(FORMATS["trainer"](made), names)
    names["apply_freeze_plan"](theirs)
    assert training(theirs) == training(ours)


@pytest.mark.parametrize("boundary", [0, 4])
def test_adapters_lie_in_the_trained_layers_and_the_model_runs_with_them(plan, load, boundary):
    adapted = get_peft_model(load(), LoraConfig(r=2, **plan(boundary).exports.peft))
    trained = training(adapted)
    assert {int(re.search(r"layers\.(\d+)\.", name)[1]) for name in trained} == set(range(boundary, LAYERS))
    assert {name for name in trained if ".q_proj.lora_A" in name}
    adapted(input_ids=IDS, labels=IDS).loss.backward()
    assert all(p.grad is not None for p in adapted.parameters() if p.requires_grad)
