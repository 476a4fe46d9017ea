"""docs/tuning.md does what it says: its blocks run in their order on a small model."""

import copy
from functools import partial

import pytest
import torch
from transformers import AutoModelForCausalLM

import salf
from salf import UserError
from salf.engine.race import DEFAULTS
from salf.engine.training.step import Stepper
from salf.files import read_json
from salf.settings import Race
from stages.common.params import load_params
from tests.conftest import PROJECT
from tests.docs_blocks import blocks, commands, overrides, run_page
from tests.own_plan import write_plan_and_base

PAGE = "tuning.md"


@pytest.fixture(scope="module")
def page(tmp_path_factory, hub_folder):
    """The folder after all blocks, and the names that they left."""
    root = tmp_path_factory.mktemp("tuning")
    write_plan_and_base(root, hub_folder)
    return root, run_page(PAGE, root)


def test_the_winner_is_one_of_the_arms_and_opens_again(page):
    root, names = page
    record, model = names["raced"].record, names["raced"].model
    assert [(arm.method, arm.learning_rate) for arm in record.arms] == [
        ("full+answer+lora", 0.0005),
        ("full+answer+lora", 0.001),
        ("half", 0.0002),
    ]
    assert read_json(root / "out/raced/race.json") == record.model_dump(mode="json")
    ids = torch.tensor([names["train"][0]["input_ids"]])
    labels = torch.tensor([names["train"][0]["labels"]])
    if record.arms[record.winner].method == "half":
        opened = AutoModelForCausalLM.from_pretrained(root / "out/raced")
    else:
        opened = salf.AnswerSideModel.from_pretrained(
            root / "out/raced", AutoModelForCausalLM.from_pretrained(root / "data/base")
        )
    with torch.no_grad():
        assert torch.equal(opened(ids, labels=labels).logits, model(ids, labels=labels).logits)


def test_the_model_that_was_given_is_as_before(page):
    root, names = page
    fresh = AutoModelForCausalLM.from_pretrained(root / "data/base").state_dict()
    now = names["model"].state_dict()
    assert all(torch.equal(fresh[name], now[name]) for name in fresh)


def test_the_yaml_block_and_the_command_are_those_of_the_project():
    from ruamel.yaml import YAML

    (_, block), *_ = blocks(PAGE, "yaml")
    shipped = load_params(PROJECT / "params.yaml")
    assert Race.model_validate(YAML(typ="safe").load(block)["race"]) == shipped.race == Race()
    command, *_ = commands(PAGE)
    assert overrides(command, "-S") == ["compare.methods=[race]"]
    own = shipped.finetune.model_dump()
    aside = {
        "epochs",
        "learning_rate",
        "schedule",
        "evaluations_per_epoch",
        "cache",
        "cache_folder",
        "checkpoint_minutes",
    }
    assert {name: value for name, value in DEFAULTS.items() if name not in aside}.items() <= own.items()


ROW = {"input_ids": [5, 6, 7, 8], "labels": [-100, -100, 7, 8]}


def test_a_folder_is_resumed_by_the_same_race_and_by_no_other(page, tmp_path, monkeypatch):
    model, taken, take = page[1]["model"], [], Stepper.take
    monkeypatch.setattr(Stepper, "take", lambda self, *given: taken.append(given) or take(self, *given))
    common = {"arms": {"full": [0.001, 0.01]}, "train": [ROW] * 2, "validation": [ROW] * 2, "epochs": 2, "keep": 1}
    other_row = {**ROW, "input_ids": [5, 6, 9, 8], "labels": [-100, -100, 9, 8]}
    other_model = copy.deepcopy(model)
    other_model.lm_head.weight.data *= 2
    race = partial(salf.race, folder=tmp_path / "race")
    first = race(model, **common).record
    steps = len(taken)
    assert race(model, **common).record == first
    assert len(taken) == steps == 3
    for changes in ({"arms": {"full": [0.002, 0.02]}}, {"validation": [other_row] * 2}, {"seed": 2}, {"epochs": 3}):
        given = {**common, **changes}
        assert race(model, **given).record == salf.race(model, **given).record
    assert race(other_model, **common).record == salf.race(other_model, **common).record != first


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": {}}, "arms"),
        ({"arms": {"half": []}}, "learning_rate"),
        ({"arms": {"hlaf": 0.1}}, "no such method"),
        ({"arms": {"lora": 0.1, "full+lora": 0.1}}, "appears twice"),
        ({"arms": {"lisa": 0.1}}, "leave it out"),
        ({"keep": 0}, "keep"),
        ({"epoch": 2}, "epoch"),
        ({"validation": []}, "validation has no rows"),
        (
            {"validation": [{**ROW, "labels": [-100, -100, 7, -100]}] * 2},
            "validation, row 0: labels are -100 over a prompt",
        ),
        ({"validation": [{"input_ids": [5, 6, 7, 8]}] * 2}, "validation, row 0"),
        ({"arms": {"salf": 0.1}}, "salf"),
    ],
)
def test_what_cannot_be_raced_ends_in_one_line(page, changes, message):
    model = page[1]["model"]
    given = {"arms": {"half": 0.1}, "train": [ROW] * 2, "validation": [ROW] * 2, **changes}
    with pytest.raises(UserError, match=message):
        salf.race(model, **given)
