"""docs/own-script.md does what it says: its blocks run in their order on a small model."""

import json
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM

from stages.common.freeze_plan import FreezePlan
from tests.common.test_freeze_plan import artifact
from tests.docs_blocks import blocks, run_python

PAGE = "own-script.md"
BOUNDARY = 2


@pytest.fixture(scope="module")
def told(tmp_path_factory, hub_folder):
    """The folder after all blocks, and the names that they left."""
    root = tmp_path_factory.mktemp("own")
    shutil.copytree(hub_folder, root / "data/base")
    (root / "data/plan").mkdir()
    model = AutoModelForCausalLM.from_pretrained(hub_folder)
    plan = artifact(BOUNDARY)
    plan["model"] |= {"hidden": model.config.hidden_size, "vocabulary": model.config.vocab_size}
    plan["parameters"]["total"] = model.num_parameters()
    plan["exports"]["peft"] = {"target_modules": ["q_proj"], "layers_to_transform": [2, 3], "layers_pattern": "layers"}
    (root / "data/plan/freeze_plan.json").write_text(json.dumps(plan))
    names: dict = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        for _, block in blocks(PAGE, "python"):
            run_python(block, names, PAGE)
    return root, names


def changed_layers(root, folder):
    """Layers whose weights differ from the base's; what else differs by its name."""
    base, tuned = (AutoModelForCausalLM.from_pretrained(root / f).state_dict() for f in ("data/base", folder))
    changed = {name for name in base if not torch.equal(base[name], tuned[name])}
    return {name.split(".")[2] if ".layers." in name else name for name in changed}


@pytest.mark.parametrize("folder", ["out/plain", "out/trainer/checkpoint-2", "out/trl/checkpoint-1"])
def test_what_was_trained_lies_above_the_boundary(told, folder):
    root, _ = told
    assert changed_layers(root, folder) == {"2", "3", "model.norm.weight"}


@pytest.mark.parametrize("folder", ["out/plain", "out/trainer/checkpoint-2"])
def test_the_plan_lies_beside_the_weights(told, folder):
    root, names = told
    assert FreezePlan.load(root / folder) == names["plan"]


def test_adapters_train_above_the_boundary_alone(told):
    _, names = told
    trained = [name for name, parameter in names["adapted"].named_parameters() if parameter.requires_grad]
    assert len(trained) == len(names["trained"]) == 2 * 7 * 2
    assert all(".layers.2." in name or ".layers.3." in name for name in trained)
