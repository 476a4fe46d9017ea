"""The callback inside a real Trainer."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainingArguments

from salf.callback import FreezePlanCallback
from salf.errors import UserError
from salf.plan import FreezePlan
from tests.salf.test_plan import saved, tiny

ROWS = [{"input_ids": list(range(n, n + 6)), "labels": list(range(n, n + 6))} for n in range(4)]


def make_trainer(tmp_path, model, callbacks=(), **more):
    settings = {"per_device_train_batch_size": 2, "max_steps": 2, "learning_rate": 0.01, "weight_decay": 0.1}
    arguments = TrainingArguments(str(tmp_path / "out"), report_to="none", use_cpu=True, disable_tqdm=True, **settings)
    return Trainer(model, arguments, train_dataset=ROWS, callbacks=list(callbacks), **more)


def test_a_trainer_trains_the_planned_parameters_and_no_other(tmp_path):
    model, plan = tiny(), saved(tmp_path, boundary=3)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    trainer = make_trainer(tmp_path, model, [FreezePlanCallback(tmp_path)])
    trainer.train()
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(before[name], parameter)}
    assert changed == {name for name in before if name.startswith("model.layers.3.")} | {"model.norm.weight"}
    held = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters() if p.requires_grad}
    assert FreezePlan.load(tmp_path / "out/checkpoint-2") == plan


def test_a_scope_takes_another_selectors_boundary(tmp_path):
    saved(tmp_path, boundary=3)
    model = tiny()
    make_trainer(tmp_path, model, [FreezePlanCallback(tmp_path, "none")])
    assert [name for name, p in model.named_parameters() if p.requires_grad] == ["model.norm.weight"]


def test_adapters_are_frozen_below_the_boundary(tmp_path):
    model = get_peft_model(tiny(), LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    make_trainer(tmp_path, model, [FreezePlanCallback(saved(tmp_path, boundary=3))]).train()
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert len(trained) == 2
    assert all(".layers.3." in name for name in trained)


def test_a_callback_that_comes_late_stops_the_training(tmp_path):
    trainer = make_trainer(tmp_path, tiny())
    trainer.add_callback(FreezePlanCallback(saved(tmp_path)))
    with pytest.raises(UserError, match="pass the callback when the Trainer is created"):
        trainer.train()


def test_an_optimizer_that_was_made_before_the_plan_stops_the_training(tmp_path):
    model = tiny()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    trainer = make_trainer(tmp_path, model, [FreezePlanCallback(saved(tmp_path))], optimizers=(optimizer, None))
    with pytest.raises(UserError, match=r"the optimizer holds \d+ parameters that the plan freezes"):
        trainer.train()
