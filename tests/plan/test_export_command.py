"""``salf export``: what it writes does in the other tools what the plan does."""

import re

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from ruamel.yaml import YAML
from transformers import (
    AutoTokenizer,
    Trainer,
    TrainingArguments,
)
from trl import SFTConfig, SFTTrainer

from salf.cli import main
from salf.export import FORMATS
from tests.plan.test_exports import tiny, trained_by_the_plan

YAML_FILE = YAML(typ="safe", pure=True)


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def tied(request):
    return request.param


@pytest.fixture
def make(workspace, tied):
    if not tied:
        workspace.untie()

    def plan(boundary):
        if boundary in (0, 6):
            return workspace.plan(selector="full" if boundary == 0 else "none")
        return workspace.plan(selector="last-n", last_n=6 - boundary)

    return plan


@pytest.fixture
def export(workspace, capsys):
    def written(form):
        capsys.readouterr()
        main(["export", "--plan", str(workspace.out), "--format", form])
        return capsys.readouterr().out

    return written


def python(text):
    names = {}
    exec(text, names)
    return names


@pytest.mark.parametrize("boundary", [1, 4])
@pytest.mark.parametrize("form", ["peft", "trl"])
def test_the_adapters_settings_make_pefts_own_adapters(make, export, tied, form, boundary):
    make(boundary)
    lora = python(export(form))["lora"]
    assert isinstance(lora, LoraConfig)
    adapted = get_peft_model(tiny(tied), lora)
    trained = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
    assert {int(re.search(r"layers\.(\d+)\.", name).group(1)) for name in trained} == set(range(boundary, 6))


@pytest.mark.parametrize("boundary", [0, 1, 4, 6])
@pytest.mark.parametrize("form", ["trainer", "trl"])
def test_the_function_freezes_as_the_plan_does_without_this_project(make, export, tied, form, boundary):
    plan = make(boundary)
    code = export(form)
    assert "stages" not in code
    model, ours = tiny(tied), tiny(tied)
    returned = python(code)["apply_freeze_plan"](model)
    assert {n for n, p in model.named_parameters() if p.requires_grad} == trained_by_the_plan(plan, ours)
    assert [p.shape for p in returned] == [p.shape for p in plan.apply(ours)]


def test_the_function_refuses_another_model(make, export, tied):
    make(4)
    with pytest.raises(ValueError, match="the freeze plan is for tiny, this is another model"):
        python(export("trainer"))["apply_freeze_plan"](tiny(not tied))


def test_a_trainer_trains_what_the_function_left(make, export, tied, tmp_path):
    make(4)
    model = tiny(tied)
    python(export("trainer"))["apply_freeze_plan"](model)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    rows = [{"input_ids": [1, 2, 3, 4], "labels": [1, 2, 3, 4]}] * 2
    settings = {"max_steps": 1, "learning_rate": 0.1, "report_to": "none", "use_cpu": True, "disable_tqdm": True}
    Trainer(model, TrainingArguments(str(tmp_path / "out"), **settings), train_dataset=rows).train()
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(before[name], parameter)}
    assert changed == {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("adapters", [False, True], ids=["weights", "adapters"])
def test_trls_own_trainer_trains_what_the_export_says(make, export, tied, tmp_path, hub_folder, adapters):
    make(4)
    written, model = python(export("trl")), tiny(tied)
    if not adapters:
        written["apply_freeze_plan"](model)
    settings = {"max_steps": 1, "learning_rate": 0.1, "report_to": "none", "use_cpu": True, "disable_tqdm": True}
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(str(tmp_path / "out"), gradient_checkpointing=False, bf16=False, **settings),
        train_dataset=Dataset.from_dict({"input_ids": [[1, 2, 3, 4]] * 2}),
        processing_class=AutoTokenizer.from_pretrained(hub_folder),
        peft_config=written["lora"] if adapters else None,
    )
    before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    trainer.train()
    changed = {n for n, p in trainer.model.named_parameters() if not torch.equal(before[n], p)}
    layers = {int(match[1]) for match in (re.search(r"layers\.(\d+)\.", name) for name in changed) if match}
    assert layers == {4, 5}
    beside = {name for name in changed if ".layers." not in name}
    assert beside == (set() if adapters else {"model.norm.weight"} | ({"lm_head.weight"} if not tied else set()))
    assert all(".lora_" in name for name in changed) == adapters


def test_axolotl_and_llama_factory_get_yaml_of_the_plans_settings(make, export):
    plan = make(4)
    assert YAML_FILE.load(export("axolotl")) == {"unfrozen_parameters": plan.exports.axolotl}
    assert YAML_FILE.load(export("llama-factory")) == plan.exports.llama_factory


def test_axolotl_gets_the_adapters_settings_as_comments(make, export):
    plan = make(4)
    comments = [line.removeprefix("# ") for line in export("axolotl").splitlines() if line.startswith("# ")]
    # What axolotl hands to peft: axolotl/loaders/adapter.py.
    settings = YAML_FILE.load("\n".join(comments[1:]))
    assert settings["adapter"] == "lora"
    assert settings["lora_target_modules"] == plan.exports.peft["target_modules"]
    assert settings["peft_layers_to_transform"] == [4, 5]
    assert settings["peft_layers_pattern"] == ["layers"]


def test_names_are_the_plans_one_a_line(make, export):
    plan = make(4)
    assert export("names").split() == plan.exports.parameter_names["trained"]


def test_what_a_tool_cannot_express_is_refused_in_the_plans_words(make, workspace, export, tied, capsys):
    make(6)
    refused = {"peft": "PEFT: no layer is left to adapt"}
    if tied:
        refused["llama-factory"] = "LLaMA-Factory: cannot train the final norm alone"
    for form, reason in refused.items():
        assert main(["export", "--plan", str(workspace.out), "--format", form]) == 2
        assert reason in capsys.readouterr().err
    assert "lora" not in python(export("trl"))


def test_a_file_is_written_on_demand(make, workspace, tmp_path, capsys):
    plan = make(4)
    target = tmp_path / "new" / "names.txt"
    target.parent.mkdir()
    main(["export", "--plan", str(workspace.out / "freeze_plan.json"), "--format", "names", "--out", str(target)])
    assert target.read_text().split() == plan.exports.parameter_names["trained"]


def test_bad_usage_names_the_formats(capsys):
    with pytest.raises(SystemExit):
        main(["export", "--format", "caffe"])
    told = capsys.readouterr().err
    assert all(name in told for name in FORMATS)
    assert main(["export", "--plan", "nowhere.json", "--format", "names"]) == 2
    assert capsys.readouterr().err.startswith("error: nowhere.json: no such file")
