"""Published configurations against published numbers, and against transformers' own networks."""

import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from salf.errors import UserError
from salf.scale.inputs import configuration, published


@pytest.mark.parametrize("name", published())
def test_sizes_make_the_published_number_of_parameters(name):
    assert configuration(name).shape.parameters == published()[name]["parameters"]


def test_they_span_what_people_fine_tune():
    sizes = [entry["parameters"] for entry in published().values()]
    assert min(sizes) < 0.15e9
    assert max(sizes) > 70e9
    assert sizes == sorted(sizes)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["smollm2-135m", "pythia-160m", "qwen2.5-0.5b", "gemma2-2b", "qwen3-30b-a3b", "llama-70b"]
)
def test_transformers_builds_the_same_number_from_the_same_entries(name):
    config = dict(published()[name]["config"])
    with torch.device("meta"):
        network = AutoModelForCausalLM.from_config(AutoConfig.for_model(config.pop("model_type"), **config))
    assert configuration(name).shape.parameters == sum(parameter.numel() for parameter in network.parameters())


def test_a_folder_or_its_file_is_taken(tmp_path):
    entries = published()["llama-8b"]["config"]
    (tmp_path / "config.json").write_text(json.dumps(entries))
    for given in (tmp_path, tmp_path / "config.json"):
        assert configuration(str(given)).shape == configuration("llama-8b").shape


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("lama-70b", r"lama-70b: neither .* did you mean llama-70b\?"),
        ("zzz", r"known: gpt2, smollm2-135m"),
    ],
)
def test_an_unknown_name_is_one_line(given, message):
    with pytest.raises(UserError, match=message):
        configuration(given)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "damaged JSON"),
        ("[1]", "expected the entries of a config.json, found list"),
        ('{"model_type": "llama"}', "no entry 'num_hidden_layers'"),
    ],
)
def test_a_damaged_or_foreign_configuration_is_one_line(tmp_path, text, message):
    file = tmp_path / "config.json"
    file.write_text(text)
    with pytest.raises(UserError, match=message) as fault:
        configuration(str(file))
    assert str(file) in str(fault.value)
