"""A fine-tuned folder in the hands of transformers and PEFT, which know nothing of this project."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftConfig, PeftModel
from transformers import AutoModelForCausalLM, GenerationConfig

from salf.engine.batches import Example
from salf.engine.models.adapter import open_model
from salf.engine.training.forms import Trainable
from salf.engine.training.scope import scope_of
from salf.files import lasting
from salf.methods import method_of
from salf.plan import FreezePlan
from salf.records import BaseRecord
from stages.finetune.save import Base, save_model
from tests.engine.training.tiny_training import params, run
from tests.finetune.test_heads import write_base
from tests.plan_data import artifact

END = 40
PROMPT, ANSWER = (5, 6, 7, 8), (30, 31)


@pytest.fixture
def base(tmp_path):
    """Its tokenizer is of no matter here, but for the names of its files."""
    folder = write_base(tmp_path / "base", tied=True)
    (folder / "generation_config.json").unlink(missing_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "base.json", "code.py"):
        (folder / name).write_text("{}")
    return folder


def settle(folder, name, **changes):
    said = json.loads((folder / name).read_text()) if (folder / name).exists() else {}
    (folder / name).write_text(json.dumps({**said, **changes}))


def contents(folder):
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir()) if file.is_file()}


def delivered(base, method="full", end=END, epochs=1, named=None, **changes):
    """The base fine-tuned on one example, whose answer ends with ``END``, and saved."""
    plan, folder = FreezePlan.model_validate(artifact(2, tied=True)), base.with_name("tuned")
    settings = params(epochs=epochs, warmup_share=0.0, schedule="constant", weight_decay=0.0, **changes)
    scope = scope_of(method_of(method), plan, settings, seed=1, first_n=None)
    model = open_model(base, torch.device("cpu"))
    made = Trainable.of(model, method_of(method), scope, settings, seed=1, steps=epochs)
    examples = [Example("", None, "", "", PROMPT, (*ANSWER, END))]
    run(made, examples, settings)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    save_model(made, base, folder, named or Base(str(base)), end)
    return folder


@pytest.mark.parametrize("own", [None, {"do_sample": True, "top_k": 1, "eos_token_id": 2}, {"pad_token_id": 2}])
def test_generation_without_arguments_stops_where_answers_were_taught_to_end(base, own):
    """The base's own settings would not stop there: hiyouga/LlamaFactory#7454, meta-llama/llama-cookbook#640."""
    if own is not None:
        settle(base, "generation_config.json", **own)
    folder = delivered(base, epochs=60)
    model = AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.tensor([PROMPT])
    assert tuple(model.generate(ids)[0].tolist()) == (*PROMPT, *ANSWER, END)
    model.generation_config = AutoModelForCausalLM.from_pretrained(base).generation_config
    assert len(model.generate(ids)[0]) > len((*PROMPT, *ANSWER, END))


@pytest.mark.parametrize(
    ("generation", "config", "stops", "stops_in_config"),
    [
        (None, 2, [END, 2], [END, 2]),
        (None, [2, 3], [END, 2, 3], [END, 2, 3]),
        (None, None, END, END),
        ({"eos_token_id": [2, 3], "max_new_tokens": 7, "top_p": 0.5, "unheard_of": [1]}, 2, [END, 2, 3], [END, 2]),
        ({"eos_token_id": [2, END]}, 2, [2, END], [END, 2]),
        ({"eos_token_id": END}, END, END, END),
        ({"eos_token_id": None}, 0, END, [END, 0]),
        ({"temperature": 0.5, "do_sample": True}, 2, END, [END, 2]),
    ],
)
def test_the_end_of_answers_is_added_and_nothing_is_lost(base, generation, config, stops, stops_in_config):
    settle(base, "config.json", eos_token_id=config)
    if generation is not None:
        settle(base, "generation_config.json", **generation)
    bytes_before = contents(base)
    folder = delivered(base)
    assert GenerationConfig.from_pretrained(folder).eos_token_id == stops
    before, after = (json.loads((each / "config.json").read_text()) for each in (base, folder))
    assert after == {**before, "eos_token_id": stops_in_config}
    if generation is not None:
        said = json.loads((folder / "generation_config.json").read_text())
        assert said == {**generation, "eos_token_id": stops}
    else:  # as transformers makes it of config.json
        expected = AutoModelForCausalLM.from_pretrained(base).generation_config.to_dict()
        found = AutoModelForCausalLM.from_pretrained(folder).generation_config.to_dict()
        differ = {key for key in expected if found.get(key) != expected[key]}
        assert differ <= {"eos_token_id", "_from_model_config"}
    assert contents(base) == bytes_before


def test_answers_that_end_with_no_token_leave_the_folder_as_its_base(base):
    settle(base, "generation_config.json", eos_token_id=[2, 3])
    folder = delivered(base, end=None)
    for name in ("config.json", "generation_config.json"):
        assert (folder / name).read_bytes() == (base / name).read_bytes()


def test_adapters_are_opened_by_peft_with_all_that_belongs_to_them(base):
    """Servers look for a base of exactly the recorded name: fastino-ai/GLiNER2#108."""
    settle(base, "generation_config.json", eos_token_id=2)
    folder = delivered(base, "salf+lora", epochs=3)
    assert {file.name for file in (folder / "adapter").iterdir()} - {".work", "README.md"} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "chat_template.jinja",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    settings = json.loads((folder / "adapter/adapter_config.json").read_text())
    assert settings["target_modules"] == sorted(settings["target_modules"])
    assert (settings["task_type"], settings["inference_mode"]) == ("CAUSAL_LM", True)
    assert (settings["base_model_name_or_path"], settings["revision"]) == (str(base), None)
    assert GenerationConfig.from_pretrained(folder / "adapter").eos_token_id == [END, 2]
    for name in ("tokenizer.json", "tokenizer_config.json"):  # which are none
        (folder / "adapter" / name).unlink()
    ids = torch.tensor([PROMPT])
    with torch.no_grad():
        merged = AutoModelForCausalLM.from_pretrained(folder)(ids).logits
        plain = AutoModelForCausalLM.from_pretrained(base)
        untouched = plain(ids).logits
        for opened in (
            AutoPeftModelForCausalLM.from_pretrained(folder / "adapter"),
            PeftModel.from_pretrained(plain, folder / "adapter"),
            AutoModelForCausalLM.from_pretrained(folder / "adapter"),
        ):
            torch.testing.assert_close(opened(ids).logits, merged, rtol=1e-4, atol=1e-5)
    assert (merged - untouched).abs().max() > 0.01


def test_peft_reads_the_hubs_name_and_revision_of_the_base(base):
    folder = delivered(base, "salf+lora", named=Base("org/name", "ab12"))
    settings = PeftConfig.from_pretrained(folder / "adapter")
    assert (settings.base_model_name_or_path, settings.revision) == ("org/name", "ab12")


@pytest.mark.parametrize(
    ("facts", "source", "named"),
    [
        ({"source": "embedded", "revision": "ab12"}, "embedded", ("{root}/data/base", None)),
        ({"source": "org/name", "revision": "ab12"}, "org/name", ("org/name", "ab12")),
        ({"source": "name", "revision": None}, "models/name", ("{root}/models/name", None)),
        ({"source": "name", "revision": None}, "/models/name", ("/models/name", None)),
        ({"source": "name", "revision": None}, "~/name", ("{home}/name", None)),
    ],
)
@pytest.mark.parametrize("place", [".", ".dvc/tmp/exps/standalone/tmpab12", ".dvc/tmp/exps/tmpab12"])
def test_adapters_name_a_base_that_outlives_the_experiment(tmp_path, monkeypatch, facts, source, named, place):
    """DVC runs an experiment in a copy of the project, which it removes."""
    root = tmp_path / "project"
    (root / place).mkdir(parents=True)
    monkeypatch.chdir(root / place)
    name = named[0].format(root=root, home=Path.home())
    base = BaseRecord.model_construct(**facts)
    assert Base.of(base, source, Path("data/base")) == (name, named[1])


def test_a_project_in_a_folder_of_a_repository_is_found_from_its_copy(tmp_path, monkeypatch):
    project = tmp_path / "repository/part"
    copied = project / ".dvc/tmp/exps/standalone/tmpab12/part"
    copied.mkdir(parents=True)
    monkeypatch.chdir(copied)
    assert lasting(Path("data/base")) == project / "data/base"
    assert lasting(Path("../models/x")) == tmp_path / "repository/models/x"
    assert lasting(tmp_path / "elsewhere") == tmp_path / "elsewhere"
