"""A model whose author ships its code: it runs where the user says so, and nowhere else."""

import json
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from salf.engine.boundary_cache.folder import key_of
from salf.engine.boundary_cache.states import Layout
from salf.engine.models.adapter import open_model
from salf.errors import UserError
from stages.base.__main__ import main as bring_base
from tests.conftest import write_params
from tests.engine.training.tiny_training import RUNTIME, SHARED, made_examples
from tests.test_families_chain import METHODS, prepare_source

CPU = torch.device("cpu")
IDS = torch.tensor([[5, 6, 7, 8, 9]])

CONFIGURATION = """
from pathlib import Path
from transformers import LlamaConfig

Path({marker!r}).touch()

class OwnConfig(LlamaConfig):
    model_type = "own-llama"
"""

# Another function than Llama's: a network that came out of transformers' own class gives other logits.
MODELING = """
from torch import nn
from transformers import LlamaForCausalLM
from .configuration_own import OwnConfig

class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig

    def __init__(self, config):
        super().__init__(config)
        for layer in self.model.layers:
            layer.mlp.act_fn = nn.Tanh()
"""

AUTO_MAP = {"AutoConfig": "configuration_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}


@pytest.fixture(scope="module", autouse=True)
def modules_aside(tmp_path_factory):
    """Where transformers copies a model's code to import it: one folder, for a process knows one package by a name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
        patch.syspath_prepend(".")  # undoes what is put into sys.path meanwhile
        yield


@pytest.fixture
def marker(tmp_path):
    """Is there as soon as any of the model's code has run."""
    return tmp_path / "code-ran"


@pytest.fixture
def source(tmp_path, hub_folder, marker):
    folder = tmp_path / "source"
    shutil.copytree(hub_folder, folder)
    change(folder / "config.json", model_type="own-llama", architectures=["OwnForCausalLM"], auto_map=AUTO_MAP)
    (folder / "configuration_own.py").write_text(CONFIGURATION.format(marker=str(marker)))
    (folder / "modeling_own.py").write_text(MODELING)
    return folder


def change(file, **entries):
    file.write_text(json.dumps({**json.loads(file.read_text()), **entries}))


def bring(tmp_path, monkeypatch, source, *, trusted):
    monkeypatch.chdir(tmp_path)
    write_params(tmp_path, model__source=str(source), model__trust_remote_code=trusted)
    bring_base(["--out", "base"])
    return tmp_path / "base"


def expected(hub_folder):
    """What the author's code computes, by transformers' own classes."""
    config = LlamaConfig.from_pretrained(hub_folder, hidden_act="tanh")
    with torch.no_grad():
        return LlamaForCausalLM.from_pretrained(hub_folder, config=config).eval()(IDS).logits


def test_with_consent_the_code_comes_along_and_computes(tmp_path, monkeypatch, source, hub_folder):
    base = bring(tmp_path, monkeypatch, source, trusted=True)
    assert json.loads((base / "config.json").read_text())["auto_map"] == AUTO_MAP
    assert {file.name for file in base.glob("*.py")} == {"configuration_own.py", "modeling_own.py"}
    with torch.no_grad():
        logits = open_model(base, CPU).network(IDS).logits
        torch.testing.assert_close(logits, expected(hub_folder))
        plain = AutoModelForCausalLM.from_pretrained(hub_folder)(IDS).logits
    assert (logits - plain).abs().max() > 0.01


def test_states_are_not_taken_that_other_code_computed(tmp_path, monkeypatch, source):
    def key():
        model = open_model(bring(tmp_path, monkeypatch, source, trusted=True), CPU)
        return key_of(model, RUNTIME, ["0"], Layout.of(made_examples(), SHARED, 64))

    first = key()
    assert key() == first
    (source / "modeling_own.py").write_text(MODELING.replace("Tanh", "ReLU"))
    assert key() != first


def test_without_consent_it_is_refused_in_one_line_and_no_code_ran(tmp_path, monkeypatch, source, marker):
    with pytest.raises(UserError, match=r"code that its author shipped.*set model\.trust_remote_code: true") as told:
        bring(tmp_path, monkeypatch, source, trusted=False)
    assert "\n" not in str(told.value)
    assert not (tmp_path / "base").exists()
    assert not marker.exists()


def test_a_base_that_was_brought_without_consent_never_runs_code(tmp_path, monkeypatch, source, marker):
    """Code and what calls it put there by hand: the consent is missing all the same."""
    base = bring(tmp_path, monkeypatch, source, trusted=True)
    marker.unlink()
    change(base / "base.json", trust_remote_code=False)
    (base / "configuration_own.py").write_text((base / "configuration_own.py").read_text() + "\n")
    with pytest.raises(UserError, match="cannot be opened as a causal language model"):
        open_model(base, CPU)
    assert not marker.exists()


def test_code_beside_a_model_that_transformers_knows_is_left_behind(tmp_path, monkeypatch, source, marker, hub_folder):
    change(source / "config.json", model_type="llama")
    change(source / "tokenizer_config.json", auto_map={"AutoTokenizer": ["tokenization_own.Own", None]})
    base = bring(tmp_path, monkeypatch, source, trusted=False)
    assert not list(base.glob("*.py"))
    assert not [file.name for file in base.glob("*.json") if "auto_map" in file.read_text()]
    with torch.no_grad():
        plain = AutoModelForCausalLM.from_pretrained(hub_folder)(IDS).logits
        torch.testing.assert_close(open_model(base, CPU).network(IDS).logits, plain)
    assert not marker.exists()


def test_code_in_another_repository_is_refused(tmp_path, monkeypatch, source, marker):
    change(source / "config.json", auto_map={name: f"somebody/else--{call}" for name, call in AUTO_MAP.items()})
    with pytest.raises(UserError, match=r"its code is in another repository \(somebody/else\)"):
        bring(tmp_path, monkeypatch, source, trusted=True)
    assert not marker.exists()


def test_consent_without_the_code_says_which_file_is_missing(tmp_path, monkeypatch, source):
    (source / "configuration_own.py").unlink()
    with pytest.raises(UserError, match=r"configuration_own\.py"):
        bring(tmp_path, monkeypatch, source, trusted=True)


def test_a_package_that_the_code_needs_and_nobody_has_is_named(tmp_path, monkeypatch, source):
    own = source / "configuration_own.py"
    own.write_text("import no_such_package_anywhere\n" + own.read_text())
    with pytest.raises(UserError, match="no_such_package_anywhere"):
        bring(tmp_path, monkeypatch, source, trusted=True)


@pytest.mark.parametrize("trusted", [True, False])
def test_code_is_downloaded_with_consent_only(tmp_path, monkeypatch, source, trusted):
    asked = []

    def download(name, revision, allow_patterns, ignore_patterns):
        asked.append("*.py" in allow_patterns)
        return str(source)

    monkeypatch.setattr("stages.base.sources.snapshot_download", download)
    if trusted:
        assert (bring(tmp_path, monkeypatch, "somebody/model", trusted=True) / "modeling_own.py").exists()
    else:
        with pytest.raises(UserError, match="trust_remote_code"):
            bring(tmp_path, monkeypatch, "somebody/model", trusted=False)
    assert asked == [trusted]


@pytest.mark.chain
@pytest.mark.slow
def test_the_code_goes_through_every_stage(tmp_path, source, hub_folder):
    chain = prepare_source(tmp_path, source, model__trust_remote_code=True).run(METHODS)
    for method in METHODS:
        tuned = tmp_path / "data/models" / f"{method}-seed1"
        network = AutoModelForCausalLM.from_pretrained(tuned, trust_remote_code=True)
        assert type(network).__name__ == "OwnForCausalLM"
    assert set(chain.json("reports/metrics.json")) > {"schema"}
