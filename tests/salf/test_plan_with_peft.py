"""A plan on models that PEFT has wrapped, by real adapters of several kinds."""

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, PromptTuningConfig, get_peft_model

from salf.errors import UserError
from salf.parameters import NetworkParameters
from salf.plan import apply_freeze_plan
from tests.engine.models.tiny import tiny_network
from tests.plan_data import LAYERS
from tests.salf.test_plan import saved, tiny

ADAPTERS = {
    "lora": LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"),
    "dora": LoraConfig(r=2, target_modules=["q_proj", "down_proj"], use_dora=True, task_type="CAUSAL_LM"),
    "ia3": IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"], task_type="CAUSAL_LM"),
    "biases": LoraConfig(r=2, target_modules=["q_proj"], bias="all", task_type="CAUSAL_LM"),
}


def training(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def above(names, boundary):
    """Of PEFT's names (base_model.model.model.layers.3...), those in layers above the boundary."""
    return {name for name in names if int(name.split(".layers.")[1].split(".")[0]) >= boundary}


@pytest.mark.parametrize("boundary", [0, 3])
@pytest.mark.parametrize("kind", ADAPTERS)
def test_adapters_below_the_boundary_are_frozen_and_the_others_stay(tmp_path, kind, boundary):
    adapted = get_peft_model(tiny(), ADAPTERS[kind])
    before = training(adapted)
    returned = saved(tmp_path, boundary=boundary).apply(adapted)
    assert training(adapted) == above(before, boundary)
    assert len(returned) == len(above(before, boundary))
    assert all(parameter.requires_grad for parameter in returned)


def test_a_step_changes_adapters_above_the_boundary_and_nothing_else(tmp_path):
    adapted = get_peft_model(tiny(), ADAPTERS["lora"])
    before = {name: parameter.detach().clone() for name, parameter in adapted.named_parameters()}
    optimizer = torch.optim.AdamW(saved(tmp_path, boundary=3).apply(adapted), lr=0.1, weight_decay=0.5)
    adapted(input_ids=torch.arange(12).reshape(2, 6)).logits.square().mean().backward()
    optimizer.step()
    changed = {name for name, parameter in adapted.named_parameters() if not torch.equal(before[name], parameter)}
    assert changed
    assert changed == {name for name in above(changed, 3) if ".lora_" in name}


@pytest.mark.parametrize("kind", ADAPTERS)
def test_peft_adapts_below_the_boundary_of_a_plan_that_came_before_until_it_is_applied_again(tmp_path, kind):
    model, plan = tiny(), saved(tmp_path, boundary=2)
    plan.apply(model)
    adapted = get_peft_model(model, ADAPTERS[kind])
    put = training(adapted)
    assert put > above(put, 2)
    returned = plan.apply(adapted)
    assert training(adapted) == above(put, 2)
    assert {id(p) for p in returned} == {id(p) for p in adapted.parameters() if p.requires_grad}


def test_a_plan_before_peft_and_again_after_it_lets_no_adapter_learn_below_the_boundary(tmp_path):
    model, plan = tiny(), saved(tmp_path, boundary=2)
    plan.apply(model)
    adapted = get_peft_model(model, ADAPTERS["lora"])
    before = {name: parameter.detach().clone() for name, parameter in adapted.named_parameters()}
    optimizer = torch.optim.AdamW(plan.apply(adapted), lr=0.1, weight_decay=0.5)
    adapted(input_ids=torch.arange(12).reshape(2, 6)).logits.square().mean().backward()
    optimizer.step()
    changed = {name for name, parameter in adapted.named_parameters() if not torch.equal(before[name], parameter)}
    assert changed
    assert changed == {name for name in above(changed, 2) if ".lora_" in name}


@pytest.mark.parametrize(("tied", "boundary", "trains"), [(False, 2, True), (True, 2, False), (True, 0, True)])
def test_a_whole_copy_of_the_head_shares_the_heads_fate(tmp_path, tied, boundary, trains):
    model = get_peft_model(tiny(tied=tied), LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"]))
    saved(tmp_path, boundary=boundary, tied=tied).apply(model)
    assert any("lm_head" in name for name in training(model)) == trains
    assert not any("original_module" in name for name in training(model))


def test_adapters_beside_the_embeddings_are_frozen_with_them(tmp_path):
    model = get_peft_model(tiny(), LoraConfig(r=2, target_modules=["embed_tokens", "q_proj"]))
    assert any("embed_tokens" in name for name in training(model))
    saved(tmp_path, boundary=1).apply(model)
    assert not any("embed_tokens" in name for name in training(model))


def test_adapters_beside_experts_are_told_from_the_experts_own_weights():
    network = tiny_network("mixtral")
    own = {name for name, _ in network.named_parameters()}
    config = LoraConfig(r=2, target_modules=["q_proj"], target_parameters=["experts.gate_up_proj", "experts.down_proj"])
    parts = NetworkParameters.of(get_peft_model(network, config))
    assert set(parts.own) == own
    assert len(parts.added) == LAYERS * 3 * 2
    assert all("lora_" in name and name.startswith("model.layers.") for name in parts.added)


def test_a_loaded_adapter_trains_when_it_was_loaded_to_be_trained(tmp_path):
    get_peft_model(tiny(), ADAPTERS["lora"]).save_pretrained(tmp_path / "adapter")
    plan = saved(tmp_path)
    with pytest.raises(UserError, match=r"nothing is left to train: .*is_trainable=True"):
        plan.apply(PeftModel.from_pretrained(tiny(), tmp_path / "adapter"))
    assert plan.apply(PeftModel.from_pretrained(tiny(), tmp_path / "adapter", is_trainable=True))


def test_no_adapter_above_the_boundary_is_one_line(tmp_path):
    layers = {"layers_to_transform": [0], "layers_pattern": "layers"}
    adapted = get_peft_model(tiny(), LoraConfig(r=2, target_modules=["q_proj"], **layers))
    with pytest.raises(UserError, match="above boundary 2 nothing is left to train"):
        saved(tmp_path).apply(adapted)


def test_another_model_under_peft_is_refused(tmp_path):
    adapted = get_peft_model(tiny(num_hidden_layers=3), ADAPTERS["lora"])
    with pytest.raises(UserError, match="layers: 3 instead of 4"):
        saved(tmp_path).apply(adapted)


def test_trained_prompts_are_refused_because_no_boundary_lies_below_them(tmp_path):
    prompted = get_peft_model(tiny(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with pytest.raises(UserError, match="this model differs"):
        saved(tmp_path).apply(prompted)


def test_merged_adapters_leave_a_plain_model(tmp_path):
    merged = get_peft_model(tiny(), ADAPTERS["lora"]).merge_and_unload()
    assert len(saved(tmp_path, boundary=0).apply(merged)) == len(list(merged.parameters()))


def test_the_function_takes_a_plan_its_file_or_its_folder(tmp_path):
    plan = saved(tmp_path, boundary=3)
    wanted = training_after(plan)
    assert wanted == training_after(tmp_path / "freeze_plan.json") == training_after(str(tmp_path))


def training_after(plan):
    model = tiny()
    apply_freeze_plan(model, plan)
    return training(model)
