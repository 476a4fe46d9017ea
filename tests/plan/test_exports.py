"""Exports do in the other tools what the plan does: played through on a real (random) model."""

import re

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def tied(request):
    return request.param


@pytest.fixture
def plan(workspace, tied):
    def make(boundary):
        if not tied and "untied" not in workspace.base.name:
            workspace.untie()
        return workspace.plan(
            **(
                {"selector": "last-n", "last_n": 6 - boundary}
                if 0 < boundary < 6
                else {"selector": "full" if boundary == 0 else "none"}
            )
        )

    return make


def tiny(tied):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(
        LlamaConfig(
            vocab_size=53,
            hidden_size=32,
            intermediate_size=56,
            num_hidden_layers=6,
            num_attention_heads=4,
            num_key_value_heads=2,
            tie_word_embeddings=tied,
        )
    )


def trained_by_the_plan(plan, model):
    plan.apply(model)
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("boundary", [0, 1, 4, 6])
def test_the_plain_list_names_what_the_plan_trains(plan, tied, boundary):
    made = plan(boundary)
    assert made.boundary == boundary
    assert set(made.exports.parameter_names["trained"]) == trained_by_the_plan(made, tiny(tied))


@pytest.mark.parametrize("boundary", [0, 1, 4, 6])
def test_axolotls_patterns_match_what_the_plan_trains(plan, tied, boundary):
    made, model = plan(boundary), tiny(tied)
    # As its documentation says: dots are literal, a pattern matches from the beginning of the name.
    patterns = [re.compile(pattern.replace(".", r"\.")) for pattern in made.exports.axolotl]
    matched = {name for name, _ in model.named_parameters() if any(p.match(name) for p in patterns)}
    assert matched == trained_by_the_plan(made, model)


@pytest.mark.parametrize("applied", [False, True], ids=["alone", "after-the-plan"])
@pytest.mark.parametrize("boundary", [0, 1, 4])
def test_peft_adapts_the_trained_layers_and_no_other(plan, tied, boundary, applied):
    made, model = plan(boundary), tiny(tied)
    if applied:
        made.apply(model)
    adapted = get_peft_model(model, LoraConfig(r=2, **made.exports.peft))
    trained = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
    layers = {int(re.search(r"layers\.(\d+)\.", name).group(1)) for name in trained}
    assert layers == set(range(boundary, 6))
    assert len(trained) == (6 - boundary) * 7 * 2


def test_peft_gets_nothing_where_no_layer_is_left(plan):
    # peft reads an empty layers_to_transform as every layer.
    made = plan(6)
    assert made.exports.peft == {}
    assert any("PEFT" in note for note in made.exports.notes)


@pytest.mark.parametrize("boundary", [1, 4])
def test_llama_factory_trains_the_same_layers_and_a_note_says_what_it_leaves_out(plan, tied, boundary):
    made, model = plan(boundary), tiny(tied)
    settings = made.exports.llama_factory
    # As its source does: the last n layers by ".{index}.", extra modules by substring.
    parts = [f".{index}." for index in range(6 - settings["freeze_trainable_layers"], 6)]
    parts += [extra for extra in settings.get("freeze_extra_modules", "").split(",") if extra]
    matched = {name for name, _ in model.named_parameters() if any(part in name for part in parts)}
    assert trained_by_the_plan(made, model) - matched == {"model.norm.weight"}
    assert matched <= trained_by_the_plan(made, model)
    assert any("final norm" in note for note in made.exports.notes)


def test_llama_factory_full_and_none(plan, tied):
    assert plan(0).exports.llama_factory == {"finetuning_type": "full"}
    none = plan(6).exports
    assert bool(none.llama_factory) == (not tied)
    assert any("LLaMA-Factory" in note for note in none.notes)
