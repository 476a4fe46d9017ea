"""The base stage: a local folder sharded by layer, and every way of going wrong."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from huggingface_hub.utils import filter_repo_objects
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer

from salf.engine.models.shards import INDEX
from salf.errors import UserError
from stages.base.sources import find_gguf
from tests.base.conftest import bring, facts_of
from tests.conftest import PROJECT
from tests.engine.models.tiny import save_tiny


def test_every_layer_has_a_shard_of_its_own(tmp_path, monkeypatch, hub_folder):
    base = bring(tmp_path, monkeypatch, hub_folder)
    for k in range(1, 5):
        with safe_open(base / f"layer-{k:02d}.safetensors", framework="pt") as shard:
            assert all(name.startswith(f"model.layers.{k - 1}.") for name in shard.keys())  # noqa: SIM118
    facts = facts_of(base)
    network = AutoModelForCausalLM.from_pretrained(hub_folder)
    assert sum(facts["parameters"]["per_layer"]) == sum(p.numel() for p in network.model.layers.parameters())
    assert facts["parameters"]["embedding"] == network.model.embed_tokens.weight.numel()
    assert facts["parameters"]["norm"] == network.model.norm.weight.numel()
    assert (facts["tied_head"], facts["parameters"]["head"]) == (True, 0)


def test_an_untied_head_is_kept(tmp_path, monkeypatch, source):
    save_tiny(source, vocab_size=258, tie_word_embeddings=False)
    base = bring(tmp_path, monkeypatch, source)
    facts = facts_of(base)
    assert (facts["tied_head"], facts["parameters"]["head"]) == (False, 258 * 32)
    ours, theirs = (AutoModelForCausalLM.from_pretrained(f) for f in (base, source))
    torch.testing.assert_close(ours.lm_head.weight, theirs.lm_head.weight, rtol=0, atol=0)


@pytest.fixture
def hub_checkpoint(source, hub_folder):
    """A sharded checkpoint with its index as transformers writes it, and the maker's own copy of the weights beside."""
    tensors = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    AutoModelForCausalLM.from_pretrained(hub_folder).save_pretrained(source, max_shard_size="20KB")
    assert len(list(source.glob("model-*.safetensors"))) > 2
    foreign = {
        name.replace("model.layers", "layers").replace("self_attn", "attention"): t for name, t in tensors.items()
    }
    save_file(foreign, source / "consolidated.safetensors")
    return source


def in_several_files(source):
    tensors = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    for n, names in enumerate([list(tensors)[::2], list(tensors)[1::2]]):
        save_file({name: tensors[name] for name in names}, source / f"model-{n}.safetensors", {"format": "pt"})


def with_another_form(source):
    save_file({"layers.0.wq.weight": torch.ones(2)}, source / "consolidated.safetensors")


@pytest.mark.parametrize("form", ["sharded", in_several_files, with_another_form])
def test_every_form_of_a_checkpoint_gives_the_same_bytes(tmp_path, monkeypatch, request, hub_folder, form):
    hashes = facts_of(bring(tmp_path, monkeypatch, hub_folder))["shards"]
    source = request.getfixturevalue("hub_checkpoint" if form == "sharded" else "source")
    if form != "sharded":
        form(source)
    assert facts_of(bring(tmp_path, monkeypatch, source))["shards"] == hashes


def test_an_index_that_does_not_fit_its_folder_is_refused(tmp_path, monkeypatch, hub_checkpoint):
    lost = sorted(hub_checkpoint.glob("model-*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(UserError, match=rf"index\.json names {lost.name}, which is missing; complete the folder"):
        bring(tmp_path, monkeypatch, hub_checkpoint)
    for content in ('{"weight_map": {}}', '{"metadata": {}}', '{"weight_map": null}'):
        (hub_checkpoint / INDEX).write_text(content)
        with pytest.raises(UserError, match="does not say which file holds which weight"):
            bring(tmp_path, monkeypatch, hub_checkpoint)


@pytest.mark.parametrize(("kind", "named"), [("llama", "Qwen2Tokenizer"), ("qwen2", None), ("gpt2", "GPT2Tokenizer")])
def test_texts_are_split_as_the_tokenizers_file_says(tmp_path, monkeypatch, source, capsys, kind, named):
    """transformers 5 puts its classes' rules in place of the file's: huggingface/transformers#48206, #45488."""
    save_tiny(source, kind, vocab_size=300)
    split = pre_tokenizers.Split(Regex(r"\d{1,2}| ?\p{L}+|."), behavior="isolated")
    theirs = Tokenizer(models.BPE())
    theirs.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(use_regex=False)])
    theirs.normalizer = normalizers.Lowercase()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    learnt = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    theirs.train_from_iterator(["1234 hello hello 12 34 56"] * 9, learnt)
    theirs.save(str(source / "tokenizer.json"))
    settings = {"eos_token": "</s>", **({"tokenizer_class": named} if named else {})}
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    base = bring(tmp_path, monkeypatch, source)
    text = "Hello 123456 x"
    assert Tokenizer.from_file(str(base / "tokenizer.json")).encode(text).ids == theirs.encode(text).ids
    assert "tokenizer.json is read as it is" in capsys.readouterr().out
    opened = AutoTokenizer.from_pretrained(source)
    assert opened(text).input_ids != theirs.encode(text).ids  # else there is nothing to mend any more


def test_nothing_of_the_machine_gets_into_the_folder(tmp_path, monkeypatch, hub_folder):
    base = bring(tmp_path, monkeypatch, hub_folder)
    for file in base.glob("*.json"):
        assert str(hub_folder.parent) not in file.read_text(encoding="utf-8")


def test_a_missing_folder_is_named(tmp_path, monkeypatch):
    for source in ("./nowhere", "/nowhere/at/all"):
        with pytest.raises(UserError, match="no such folder"):
            bring(tmp_path, monkeypatch, source)


def test_a_hub_name_without_a_hub_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    with pytest.raises(UserError, match=r"model\.source = nobody/nothing"):
        bring(tmp_path, monkeypatch, "nobody/nothing")


def test_a_hub_model_is_asked_for_at_its_revision_and_recorded_by_its_commit(tmp_path, monkeypatch, hub_folder):
    commit = "0123456789" * 4
    snapshot = tmp_path / "snapshots" / commit  # where the hub's cache keeps it
    shutil.copytree(hub_folder, snapshot)
    asked = []

    def download(name, revision, allow_patterns, ignore_patterns):
        asked.append((name, revision, "*.bin" in allow_patterns or "*.py" in allow_patterns))
        return str(snapshot)

    monkeypatch.setattr("stages.base.sources.snapshot_download", download)
    base = bring(tmp_path, monkeypatch, "somebody/model", model__revision="main")
    facts = facts_of(base)
    assert asked == [("somebody/model", "main", False)]
    assert (facts["name"], facts["revision"]) == ("somebody/model", commit)


def test_other_copies_of_the_weights_are_not_downloaded(tmp_path, monkeypatch, hub_checkpoint):
    (hub_checkpoint / "original").mkdir()
    shutil.copy(hub_checkpoint / "consolidated.safetensors", hub_checkpoint / "original/model.safetensors")
    wanted = {file.name for file in hub_checkpoint.glob("model-*.safetensors")}
    got = set()

    def download(name, revision, **patterns):
        files = [str(file.relative_to(hub_checkpoint)) for file in hub_checkpoint.rglob("*") if file.is_file()]
        got.update(filter_repo_objects(files, **patterns))
        return str(hub_checkpoint)

    monkeypatch.setattr("stages.base.sources.snapshot_download", download)
    bring(tmp_path, monkeypatch, "somebody/model")
    assert {name for name in got if name.endswith(".safetensors")} == wanted
    assert {"config.json", "tokenizer.json", INDEX} <= got


def test_other_weights_than_safetensors_are_not_opened(tmp_path, monkeypatch, source):
    (source / "model.safetensors").rename(source / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"no \.safetensors weights"):
        bring(tmp_path, monkeypatch, source)


def test_an_architecture_outside_the_table_is_refused_where_its_parts_are_not_found(tmp_path, monkeypatch, source):
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "model_type": "helium"}))
    assert facts_of(bring(tmp_path, monkeypatch, source))["family"] == "helium"  # named as in llama: found
    tensors = load_file(source / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"lack 1 of the 38 tensors .*: model\.norm\.weight \[32\]"):
        bring(tmp_path, monkeypatch, source)


def test_weights_with_a_layer_missing_are_refused(tmp_path, monkeypatch, source):
    tensors = load_file(source / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if ".layers.2." not in name}
    save_file(kept, source / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"hold 3 layers, config\.json says 4"):
        bring(tmp_path, monkeypatch, source)


def test_the_wheel_missing_is_one_line_that_says_what_to_do():
    with pytest.raises(UserError, match="not installed; run: make setup"):
        find_gguf(package="no-such-package-anywhere")


@pytest.mark.embedded
def test_another_file_in_the_wheel_is_refused():
    with pytest.raises(UserError, match=r"SHA-256 is b179c952.*expected 0000"):
        find_gguf(expected_sha256="0" * 64)


# No byte code: a module that is compiled under the limit would be left cut off in the environment.
LIMITED = """
import resource, sys
sys.dont_write_bytecode = True
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
from stages.base.__main__ import main
from stages.common.command import exit_code
sys.exit(exit_code(main, ["--out", "base"]))
"""


def test_no_room_on_the_disk_is_one_line_and_keeps_the_old_folder(tmp_path, monkeypatch, hub_folder):
    """A limit on the size of files stands in for a full disk: the kernel refuses the write either way."""
    base = bring(tmp_path, monkeypatch, hub_folder)
    before = {file.name: file.read_bytes() for file in base.iterdir()}
    env = {**os.environ, "PYTHONPATH": str(PROJECT)}
    done = subprocess.run([sys.executable, "-c", LIMITED], cwd=tmp_path, env=env, capture_output=True, text=True)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert (done.returncode, len(errors)) == (2, 1), done.stderr
    assert "cannot write" in errors[0]
    assert "Traceback" not in done.stderr
    assert {file.name: file.read_bytes() for file in base.iterdir()} == before
