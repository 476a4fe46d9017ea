"""docs/own-script.md does what it says: its blocks run in their order on a small model."""

import pytest

from salf.plan import FreezePlan
from tests.docs_blocks import run_page
from tests.own_plan import changed_parts, write_plan_and_base

PAGE = "own-script.md"
CACHED = ("out/cached", "out/cached-trainer/checkpoint-2", "out/cached-trl/checkpoint-1")


@pytest.fixture(scope="module")
def page(tmp_path_factory, hub_folder):
    """The folder after all blocks, and the names that they left."""
    root = tmp_path_factory.mktemp("own")
    write_plan_and_base(root, hub_folder)
    return root, run_page(PAGE, root)


@pytest.mark.parametrize("folder", ["out/plain", "out/trainer/checkpoint-2", "out/trl/checkpoint-1", *CACHED])
def test_what_was_trained_lies_above_the_boundary(page, folder):
    root, _ = page
    assert changed_parts(root, folder) == {"2", "3", "model.norm.weight"}


@pytest.mark.parametrize("folder", ["out/plain", "out/trainer/checkpoint-2"])
def test_the_plan_lies_beside_the_weights(page, folder):
    root, names = page
    assert FreezePlan.load(root / folder) == names["plan"]


def test_adapters_that_trl_makes_learn_above_the_boundary_alone(page):
    _, names = page
    # B begins at zero: where it is none any more, the adapter has learned.
    ups = {name: parameter for name, parameter in names["trainer"].model.named_parameters() if ".lora_B." in name}
    assert len(ups) == 4 * 7
    learned = {name for name, parameter in ups.items() if parameter.any()}
    assert learned == {name for name in ups if ".layers.2." in name or ".layers.3." in name}


def test_adapters_train_above_the_boundary_alone(page):
    _, names = page
    trained = [name for name, parameter in names["adapted"].named_parameters() if parameter.requires_grad]
    assert len(trained) == len(names["trained"]) == 2 * 7 * 2
    assert all(".layers.2." in name or ".layers.3." in name for name in trained)


def test_adapters_of_a_suffix_load_into_the_whole_model(page):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    root, names = page
    loaded = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(root / "data/base"), root / "out/cached-lora"
    )
    saved = {name: parameter for name, parameter in names["suffix"].named_parameters() if ".lora_A." in name}
    assert len(saved) == 2
    found = dict(loaded.named_parameters())
    assert all(found[name].equal(parameter) for name, parameter in saved.items())


def test_answer_side_folders_hold_what_trained_and_peft_activates_the_adapter(page):
    from salf import AnswerSideModel

    root, names = page
    assert names["served"].active_peft_config.alora_invocation_tokens == names["asked"][0][-names["tail"] :]
    ids, mask = (names["inputs"][name] for name in ("input_ids", "attention_mask"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        ours = AnswerSideModel.from_pretrained("out/answer-lora").generate(ids, mask, max_new_tokens=3)
        half = AnswerSideModel.from_pretrained("out/answer-trainer/checkpoint-2")
    assert ours.tolist() == names["alike"].tolist()
    assert len(names["scores"]) == len(names["rows"]) == 2
    base, trained = (dict(model.named_parameters()) for model in (half.base, half.trained))
    changed = {name for name, parameter in trained.items() if parameter is not base[name]}
    assert {name.split(".")[2] if ".layers." in name else name for name in changed} == {"2", "3", "model.norm.weight"}
