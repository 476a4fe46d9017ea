"""Applying a plan to real (random) models, and reading damaged or foreign files."""

import json

import jsonschema
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, MistralConfig

from salf import plan as freeze_plan
from salf.errors import UserError
from salf.plan import FreezePlan
from tests.plan_data import LAYERS, artifact, selected

SIZES = {
    "vocab_size": 53,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def tiny(*, tied=True, **changes):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(LlamaConfig(**{**SIZES, **changes}, tie_word_embeddings=tied))


def saved(tmp_path, **options):
    path = tmp_path / "freeze_plan.json"
    path.write_text(json.dumps(artifact(**options)))
    return FreezePlan.load(path)


def step(model, trained):
    """One AdamW step with weight decay; returns the names of the parameters that it changed."""
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.AdamW(trained, lr=0.1, weight_decay=0.5)
    model(input_ids=torch.arange(12).reshape(2, 6)).logits.square().mean().backward()
    optimizer.step()
    return {name for name, parameter in model.named_parameters() if not torch.equal(before[name], parameter)}


def in_layer(name):
    return int(name.split(".")[2]) + 1 if name.startswith("model.layers.") else None


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("boundary", [0, 1, 2, 4])
def test_a_training_step_changes_the_planned_parameters_and_no_other(tmp_path, boundary, tied):
    model = tiny(tied=tied)
    changed = step(model, saved(tmp_path, boundary=boundary, tied=tied).apply(model))
    expected = {name for name, _ in model.named_parameters() if (in_layer(name) or 0) > boundary}
    expected |= {"model.norm.weight"}
    expected |= {"model.embed_tokens.weight"} if boundary == 0 else set()
    expected |= set() if tied else {"lm_head.weight"}
    assert changed == expected
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied


@pytest.mark.parametrize(
    ("scope", "first"),
    [("full", 1), ("last-n", 4), ("random", 2), ("none", None), ("freeze-1", 2), ("freeze-4", None), (None, 3)],
)
def test_a_scope_takes_another_selectors_boundary(tmp_path, scope, first):
    model = tiny()
    saved(tmp_path).apply(model, scope)
    layers = {in_layer(name) for name, parameter in model.named_parameters() if parameter.requires_grad} - {None}
    assert layers == (set() if first is None else set(range(first, LAYERS + 1)))


@pytest.mark.parametrize(
    ("scope", "message"),
    [
        ("oracle", r"no boundary of oracle: set plan\.oracle"),
        ("freeze-5", "freeze-5: tiny has 4 layers; allowed: freeze-0 to freeze-4"),
        ("last", "no boundary of last: no selector has this name"),
        ("affordable", "no boundary of affordable: an earlier version"),
    ],
)
def test_a_scope_that_the_plan_has_no_boundary_of_says_what_it_takes(tmp_path, scope, message):
    with pytest.raises(UserError, match=message):
        saved(tmp_path).apply(tiny(), scope)


def test_applying_again_releases_what_another_plan_froze(tmp_path):
    model, plan = tiny(), saved(tmp_path)
    plan.apply(model, "none")
    assert len(plan.apply(model, "full")) == len(list(model.parameters()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 3}, "layers: 3 instead of 4"),
        ({"vocab_size": 54}, r"embedding matrix: \(54, 16\) instead of \(53, 16\)"),
        ({"hidden_size": 32}, r"embedding matrix: \(53, 32\) instead of \(53, 16\)"),
        ({"tied": False}, "tied head: False instead of True"),
        ({"intermediate_size": 25}, r"parameters: \d+ instead of \d+"),
    ],
)
def test_another_model_is_refused_and_left_as_it_was(tmp_path, changes, message):
    model = tiny(**changes)
    with pytest.raises(UserError, match=message):
        saved(tmp_path).apply(model)
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    ("model_type", "built"),
    [
        (
            "mistral",
            MistralConfig(**SIZES, tie_word_embeddings=True),
        ),  # the same names, shapes and number of parameters
        ("gpt2", GPT2Config(vocab_size=53, n_embd=16, n_layer=LAYERS, n_head=4)),  # other names: nothing to compare
    ],
)
def test_another_model_type_is_refused_by_its_name(tmp_path, model_type, built):
    model, plan = AutoModelForCausalLM.from_config(built), saved(tmp_path)
    with pytest.raises(UserError, match=f"is for tiny, this model differs: model type: {model_type} instead of llama$"):
        plan.apply(model)
    assert all(parameter.requires_grad for parameter in model.parameters())
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    with pytest.raises(UserError, match=f"{model_type} instead of llama"):
        plan.apply(adapted)


def test_a_model_without_a_configuration_is_held_to_its_shape_alone(tmp_path):
    class Bare(torch.nn.Module):
        def __init__(self, network):
            super().__init__()
            self.model, self.lm_head = network.model, network.lm_head

    assert saved(tmp_path).apply(Bare(tiny()))
    with pytest.raises(UserError, match="layers: 3 instead of 4"):
        saved(tmp_path).apply(Bare(tiny(num_hidden_layers=3)))


def test_other_weights_of_the_same_shape_are_not_told_apart(tmp_path):
    """The limit that the docs name."""
    model = tiny()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    assert saved(tmp_path).apply(model)


def test_a_wrapped_model_is_refused_with_advice(tmp_path):
    wrapped = torch.nn.Module()
    wrapped.module = tiny()
    with pytest.raises(UserError, match="before DDP or FSDP wraps"):
        saved(tmp_path).apply(wrapped)


def test_a_parameter_of_no_known_part_is_refused(tmp_path):
    model = tiny()
    with torch.no_grad():
        model.model.norm.weight = torch.nn.Parameter(model.model.norm.weight[:-1].clone())
    model.model.prompt = torch.nn.Parameter(torch.zeros(1))  # the total stays the same
    with pytest.raises(UserError, match=r"model\.prompt belongs neither"):
        saved(tmp_path).apply(model)


def test_a_plan_survives_saving_and_is_read_from_a_folder(tmp_path):
    plan = saved(tmp_path)
    plan.save(tmp_path / "freeze_plan.json")
    assert FreezePlan.load(tmp_path) == plan


def test_the_published_schema_is_up_to_date_and_accepts_a_plan(tmp_path):
    freeze_plan.write_schema(tmp_path / "schema.json")
    published = freeze_plan.SCHEMA_FILE.read_text()
    assert (tmp_path / "schema.json").read_text() == published, "run salf.plan.write_schema()"
    jsonschema.validate(artifact(), json.loads(published))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**artifact(), "boundary": -1}, json.loads(published))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"schema_version": 1}, "version 1, not 3; run: dvc repro plan"),
        ({"boundary": "two"}, "boundary: Input should be a valid integer"),
        ({"surprise": 1}, "surprise: Extra inputs"),
        ({"boundary": 3}, "boundary is not the number of frozen layers"),
        ({"trained_layers": [4]}, r"not 1\.\.4 in order"),
        ({"boundaries": {"full": selected(0)}}, "no entry of salf"),
        ({"boundaries": {"salf": selected(5)}}, r"boundaries\.salf is not about the boundaries 0\.\.4"),
        ({"boundaries": {"salf": selected(2, scores=[0.5])}}, r"boundaries\.salf is not about"),
        ({"frontier": []}, "frontier"),
    ],
)
def test_a_damaged_or_foreign_plan_is_one_line(tmp_path, damage, message):
    path = tmp_path / "freeze_plan.json"
    path.write_text(json.dumps({**artifact(), **damage}))
    with pytest.raises(UserError, match=message) as fault:
        FreezePlan.load(path)
    assert str(path) in str(fault.value)
    assert "\n" not in str(fault.value)


def test_a_missing_plan_is_one_line(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        FreezePlan.load(tmp_path)
