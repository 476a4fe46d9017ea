"""Opening a model: what is refused, and with which words."""

import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from salf.engine.models.adapter import Frozen, _probe, difference, open_model, take_apart
from salf.errors import UserError
from salf.families import FAMILIES, family_of
from tests.engine.models.tiny import save_tiny, tiny_network

NORM = "model.norm.weight"


@torch.no_grad()
def far(model):
    return difference(*_probe(model))


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "bloom", "mixtral", "mamba"])
def test_a_folder_is_opened_and_checked(tmp_path, model_type):
    model = open_model(save_tiny(tmp_path, model_type), torch.device("cpu"))
    assert far(model) < 1e-5
    assert not any(parameter.requires_grad for parameter in model.network.parameters())


def test_half_the_precision_passes_the_check(tmp_path):
    for model_type in ("llama", "gemma2"):
        folder = save_tiny(tmp_path / model_type, model_type)
        assert far(open_model(folder, torch.device("cpu"), torch.bfloat16)) < 0.1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(NORM), rf"1 weights are missing or have another shape than config\.json says \({NORM}\)"),
        (lambda t: t.update({NORM: torch.ones(31)}), rf"1 weights are missing or have another shape .*\({NORM}\)"),
        (lambda t: t.pop("lm_head.weight"), r"1 weights are missing .*\(lm_head\.weight\)"),
        (lambda t: t[NORM].fill_(math.nan), rf"the weight {NORM} is not finite"),
        (lambda t: t[NORM].fill_(3e38), "its logits are not finite in torch.float32"),
    ],
)
def test_weights_that_lack_something_are_named(tmp_path, capfd, change, message):
    weights = save_tiny(tmp_path, tie_word_embeddings=False) / "model.safetensors"
    tensors = load_file(weights)
    change(tensors)
    save_file(tensors, weights, {"format": "pt"})
    capfd.readouterr()
    with pytest.raises(UserError, match=message) as told:
        open_model(tmp_path, torch.device("cpu"))
    assert "\n" not in str(told.value)
    assert "LOAD REPORT" not in capfd.readouterr().err


@pytest.mark.parametrize("held", ["int8", "nf4", "offload"])
def test_weights_that_lack_something_are_named_however_frozen_layers_are_held(tmp_path, held):
    weights = save_tiny(tmp_path, hidden_size=64) / "model.safetensors"
    tensors = load_file(weights)
    open_model(tmp_path, torch.device("cpu"), frozen=Frozen(2, held))
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, weights, {"format": "pt"})
    with pytest.raises(UserError, match=r"1 weights are missing .*\(model\.layers\.1\.mlp\.up_proj\.weight\)"):
        open_model(tmp_path, torch.device("cpu"), frozen=Frozen(2, held))


def test_files_that_cannot_be_read_are_one_line(tmp_path):
    weights = save_tiny(tmp_path) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(UserError, match="cannot be opened as a causal language model: SafetensorError"):
        open_model(tmp_path, torch.device("cpu"))


class Upside(nn.Module):
    """A final norm that the trunk applies twice over."""

    def __init__(self, norm):
        super().__init__()
        self.norm, self.weight = norm, norm.weight

    def forward(self, states):
        return self.norm(states).flip(-1) if states.ndim == 3 else self.norm(states)


def test_a_model_that_its_layers_do_not_make_is_refused():
    network = tiny_network("llama")
    network.model.norm = Upside(network.model.norm)
    with pytest.raises(UserError, match=r"'llama': its layers, run one by one, give other logits .* not supported"):
        take_apart(network)


def test_layers_that_cannot_be_called_alone_are_refused():
    network = tiny_network("llama")
    network.model.layers[2] = nn.Linear(32, 32)
    with pytest.raises(UserError, match=r"'llama': its layers cannot be run one by one"):
        take_apart(network)


def test_a_part_that_is_missing_is_named():
    network = tiny_network("opt", do_layer_norm_before=False)
    with pytest.raises(UserError, match=r"'opt': a part was not found: .*final_layer_norm"):
        take_apart(network)


LAYERS = [f"model.layers.{n}.{part}.weight" for n in range(3) for part in ("attn", "mlp.experts.0", "mlp.experts.11")]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["weight"], "its list of decoder layers .* was not found"),
        ([*LAYERS, "model.norm.weight"], "its embedding was not found by name"),
        ([*LAYERS, "model.embed.weight", "lm_head.weight"], "its norm was not found by name"),
        ([*LAYERS, "model.embed.weight", "model.norm.weight", "model.gate.weight"], r"what model\.gate is for"),
        ([*LAYERS, "model.embed.weight", "model.norm.weight", "model.norm2.weight"], r"what model\.norm2 is for"),
        ([*LAYERS, "model.embed.weight", "model.norm.weight", "head.weight", "value.weight"], "what value is for"),
    ],
)
def test_names_that_do_not_tell_the_parts_are_refused(names, message):
    with pytest.raises(UserError, match=f"model type 'new': {message}"):
        family_of("new", names)


def test_names_tell_the_parts_of_families_in_the_table():
    """The generic way finds what the table says, from the parameters' names alone."""
    for model_type, row in FAMILIES.items():
        if model_type == "olmo":
            continue  # its final norm has no weights, and so no name among them
        names = [name for name, _ in tiny_network(model_type).named_parameters(remove_duplicate=False)]
        found = family_of("new", names)
        for part in ("embedding", "layers", "norm", "head", "inputs"):
            assert getattr(found, part) == getattr(row, part), model_type
        assert not found.packed
