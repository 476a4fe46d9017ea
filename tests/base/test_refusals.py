"""What a checkpoint must not be: every case ends in one line, and the base that was there before stays."""

import json
import math
import os
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from salf.engine.models.shards import INDEX
from salf.errors import UserError
from tests.base.conftest import bring, facts_of
from tests.engine.models.tiny import save_tiny

UP = "model.layers.2.mlp.up_proj.weight"
Q = "model.layers.0.self_attn.q_proj"
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def edit(source, change):
    """Change entries of a folder's configuration, or its tensors in place."""
    if isinstance(change, dict):
        config = {**json.loads((source / "config.json").read_text()), **change}
        config = {name: value for name, value in config.items() if value is not ...}
        (source / "config.json").write_text(json.dumps(config))
        return
    tensors = load_file(source / "model.safetensors")
    change(tensors)
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(tensors, source / "model.safetensors", {"format": "pt"})


def refused(tmp_path, monkeypatch, source, message, *, trial=False):
    """One line, and nothing of an earlier base is touched."""
    kept = tmp_path / "base" / "kept"
    kept.parent.mkdir(exist_ok=True)
    kept.write_text("of an earlier run")
    with pytest.raises(UserError, match=message) as told:
        bring(tmp_path, monkeypatch, source, trial=trial)
    assert "\n" not in str(told.value)
    assert len(str(told.value)) < 700
    assert [file.name for file in kept.parent.iterdir()] == ["kept"]
    assert not list((tmp_path / ".work").glob("*"))


def renamed(tensors, old, new):
    for name in [name for name in tensors if old in name]:
        tensors[name.replace(old, new)] = tensors.pop(name)


def fp8(tensors):
    tensors[UP] = tensors[UP].to(torch.float8_e4m3fn)


def packed(tensors):
    tensors[UP.replace("weight", "qweight")] = tensors.pop(UP).to(torch.int32)


def four_bits(tensors):
    tensors[UP] = torch.zeros(768, 1, dtype=torch.uint8)
    tensors |= {f"{UP}.absmax": torch.ones(24), f"{UP}.quant_map": torch.zeros(16)}


WEIGHTS = {
    "one is missing": (lambda t: t.pop(UP), rf"lack 1 of the 38 tensors .*: {UP} \[48, 32\]; complete"),
    "the final norm is missing": (lambda t: t.pop("model.norm.weight"), r"model\.norm\.weight \[32\]"),
    "the embedding is missing": (lambda t: t.pop(EMBEDDING), r"model\.embed_tokens\.weight \[258, 32\]"),
    "nothing goes by its name": (  # MakazhanAlpamys/Soup#351
        lambda t: renamed(t, "model.", "_orig_mod.model."),
        r"lack 38 of the 38 .*, …; they hold others instead: \S*_orig_mod",
    ),
    "a head is missing": (  # QwenLM/Qwen3-VL-Embedding#89
        {"tie_word_embeddings": False},
        r"lm_head\.weight \[258, 32\]; if the head is the embedding, write tie_word_embeddings: true",
    ),
    "transposed": (lambda t: t.update({UP: t[UP].T}), rf"{UP} is \[32, 48\] there, and \[48, 32\] by config\.json"),
    "a row too many": (
        lambda t: t.update({EMBEDDING: torch.zeros(300, 32)}),
        r"embed_tokens\.weight is \[300, 32\] there, and \[258, 32\]",
    ),
    "wider": ({"hidden_size": 64}, r"is \[.*32.*\] there, and \[.*64.*\] by config\.json"),
    "a learned bias": (
        lambda t: t.update({UP.replace("weight", "bias"): torch.ones(48)}),
        r"up_proj\.bias \[48\], but config\.json declares no such bias",
    ),
    "a NaN": (lambda t: t[UP].view(-1)[7:8].fill_(math.nan), rf"the weight {UP} holds a NaN"),
    "infinite": (lambda t: t[EMBEDDING][255].fill_(-math.inf), "embed_tokens.weight holds a value beyond"),
    "beyond 32 bits": (lambda t: t.update({UP: t[UP].double() * 1e300}), "holds a value beyond"),
    "a layer too many": (
        lambda t: t.update({k.replace("s.3.", "s.4."): v.clone() for k, v in t.items() if "layers.3." in k}),
        r"hold 5 layers, config\.json says 4",
    ),
    "layers from one": (
        lambda t: [renamed(t, f"layers.{n}.", f"layers.{n + 1}.") for n in (3, 2, 1, 0)],
        "number their layers from 1; number them from 0",
    ),
    "a million layers": ({"num_hidden_layers": 10**6}, r"hold 4 layers, config\.json says 1000000"),
    "more layers than memory": ({"num_hidden_layers": 10**18}, "hold 4 layers"),
    "layers by default": ({"num_hidden_layers": ...}, r"hold 4 layers, config\.json says 32"),
    "more heads than sizes": (
        {"num_attention_heads": 10**9},
        "num_attention_heads = 1000000000, but no",
    ),
    "float8 without a word": (fp8, rf"quantised \(stored as F8_E4M3: {UP}\)"),
    "integers without a word": (packed, r"quantised \(GPTQ or AWQ: .*qweight\)"),
    "four bits without a word": (four_bits, r"quantised \(bitsandbytes: .*absmax"),
    "scales": (lambda t: t.update({f"{UP}_scale_inv": torch.ones(1, 1)}), r"quantised \(FP8: "),
    "adapters beside": (
        lambda t: t.update({"model.layers.0.self_attn.q_proj.lora_A.default.weight": torch.ones(2, 32)}),
        r"adapters that were not merged .*lora_A.*merge them first",
    ),
    "adapters of an older library": (lambda t: t.update({f"{Q}.lora_A": torch.ones(2, 32)}), "not merged .*lora_A"),
    "magnitudes of adapters": (
        lambda t: t.update({f"{Q}.lora_magnitude_vector": torch.ones(32)}),
        "not merged .*lora_m",
    ),
    **{
        f"scales: {name}": (lambda t, name=name: t.update({f"{Q}.{name}": torch.ones(1)}), rf"quantised \(.*{name}")
        for name in ("weight_scale", "weight_scale_2", "input_scale", "pre_quant_scale", "smooth_scale")
    },
    "adapters around": (lambda t: renamed(t, "q_proj.", "q_proj.base_layer."), "not merged .*base_layer"),
}


@pytest.mark.parametrize("case", WEIGHTS)
def test_weights_that_are_not_the_networks_are_refused(tmp_path, monkeypatch, source, case):
    change, message = WEIGHTS[case]
    edit(source, change)
    refused(tmp_path, monkeypatch, source, message)


@pytest.mark.parametrize("part", ["w1", "w2", "w3"])
def test_a_missing_expert_is_named_as_the_files_call_it(tmp_path, monkeypatch, source, part):
    """transformers joins the experts when it loads them, under another name."""
    save_tiny(source, "mixtral", vocab_size=258)
    edit(source, lambda tensors: tensors.pop(f"model.layers.3.block_sparse_moe.experts.2.{part}.weight"))
    refused(
        tmp_path, monkeypatch, source, rf"lack 1 of .*: model\.layers\.3\.block_sparse_moe\.experts\.2\.{part}\.weight"
    )


def test_an_expert_of_another_size_is_named(tmp_path, monkeypatch, source):
    save_tiny(source, "mixtral", vocab_size=258)
    name = "model.layers.3.block_sparse_moe.experts.2.w1.weight"
    edit(source, lambda tensors: tensors.update({name: torch.ones(40, 32)}))
    refused(tmp_path, monkeypatch, source, rf"{name} is \[40, 32\] there, and \[48, 32\] by config\.json")


CONFIG = {
    "heads of none": ({"num_attention_heads": 0}, r"config\.json: cannot be opened"),
    "heads that do not divide": ({"num_attention_heads": 7, "head_dim": None}, "config.json"),
    "a size in words": ({"hidden_size": "64"}, r"config\.json: cannot be opened"),
    "a size by half": ({"hidden_size": 32.5}, r"config\.json: cannot be opened"),
    "no size": ({"hidden_size": None}, r"config\.json: cannot be opened"),
    "below nothing": ({"vocab_size": -5}, r"config\.json: "),
    "beyond 64 bits": ({"vocab_size": 2**63}, r"config\.json: "),
    "an enormous width": ({"hidden_size": 10**9}, "by config.json|cannot be opened"),
    "an enormous vocabulary": ({"vocab_size": 10**10}, r"\[258, 32\] there, and \[10000000000, 32\] by config\.json"),
    "layers in words": ({"num_hidden_layers": "5"}, r"config\.json: num_hidden_layers = '5' is not a number of layers"),
    "layers by half": ({"num_hidden_layers": 1.5}, "num_hidden_layers = 1.5 is not a number of layers"),
    "no layers": ({"num_hidden_layers": 0}, "num_hidden_layers = 0 is not a number of layers"),
    "layers that are true": ({"num_hidden_layers": True}, "num_hidden_layers = True is not a number of layers"),
    "no context": ({"max_position_embeddings": -1}, "max_position_embeddings = -1 leaves no room"),
    "an epsilon that is none": ({"rms_norm_eps": math.nan}, r"config\.json: damaged JSON.*NaN is not a JSON number"),
    "angles without end": ({"rope_theta": math.inf}, "Infinity is not a JSON number"),
    "a rotary kind of its own": ({"rope_parameters": {"rope_type": "own"}}, r"config\.json: cannot be opened"),
    "a type of its own": ({"model_type": "own"}, r"config\.json: cannot be opened"),
    "no type": ({"model_type": None}, r"config\.json: cannot be opened"),
    "no language model": ({"model_type": "vit"}, r"model type 'vit' is not a causal language model"),
    "an end beyond": ({"eos_token_id": 5000}, r"config\.json: eos_token_id = 5000, but the embedding has 258 rows"),
    "one of two ends": ({"eos_token_id": [1, 258]}, "eos_token_id = 258, but the embedding has 258 rows"),
    "a pad beyond": ({"pad_token_id": 999}, "pad_token_id = 999, but the embedding has 258 rows|config.json: "),
    "an end below": ({"eos_token_id": -1}, "eos_token_id = -1, but the embedding"),
    "labels without end": ({"num_labels": 10**9}, "num_labels = 1000000000, but no weight has that size"),
    "labels by name": ({"num_labels": 3, "id2label": 5}, r"config\.json: cannot be opened"),
    "gptq": ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, r"quantised \(gptq\)"),
    "an older bitsandbytes": ({"quantization_config": {"load_in_4bit": True}}, r"quantised \(bitsandbytes\)"),
    "compressed": ({"compression_config": {"quant_method": "compressed-tensors"}}, r"\(compressed-tensors\)"),
    "mlx": ({"quantization": {"bits": 4, "group_size": 64}}, "says that the weights are quantised"),
    "images": (
        {"model_type": "gemma3", "text_config": {"hidden_size": 32}},
        "'gemma3' takes images or sound in addition to text",
    ),
    "weights elsewhere": ({"transformers_weights": "../x.safetensors"}, "names its weights in transformers_weights"),
}


@pytest.mark.parametrize("case", CONFIG)
def test_a_configuration_that_makes_no_model_is_refused(tmp_path, monkeypatch, source, case):
    entries, message = CONFIG[case]
    edit(source, entries)
    refused(tmp_path, monkeypatch, source, message)


POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'7' * 64}\nsize 269060552\n"
FILES = {
    "nested": ("config.json", '{"a": ' * 100_000, r"config\.json: damaged JSON.*RecursionError"),
    "no object": ("config.json", "[]", r"config\.json: damaged JSON.*list"),
    "half": ("config.json", '{"model_type": "lla', r"config\.json: damaged JSON"),
    "utf-16": ("config.json", '{"model_type": "llama"}'.encode("utf-16"), r"config\.json: damaged JSON"),
    "no tokenizer's": ("tokenizer.json", "[]", r"tokenizer\.json: damaged JSON"),
    "half a tokenizer": ("tokenizer.json", '{"version": "1.0", "mod', r"tokenizer\.json"),
    "an empty tokenizer": ("tokenizer.json", "{}", r"tokenizer\.json: cannot be opened as a tokenizer"),
    "a tokenizer of no kind": ("tokenizer.json", '{"model": {"type": "Own"}}', r"tokenizer\.json: cannot be opened"),
    "its settings": ("tokenizer_config.json", '{"model_max', r"tokenizer_config\.json: damaged JSON"),
    "a pointer": ("model.safetensors", POINTER, r"model\.safetensors: a git-lfs pointer.*git lfs pull"),
    "a tokenizer's pointer": ("tokenizer.json", POINTER, r"tokenizer\.json: a git-lfs pointer"),
    "a template's pointer": ("chat_template.jinja", POINTER, r"chat_template\.jinja: a git-lfs pointer"),
    "a configuration's pointer": ("config.json", POINTER, r"config\.json: a git-lfs pointer"),
    "nothing": ("model.safetensors", b"", r"model\.safetensors: damaged, or not downloaded to its end"),
    "zeros": ("model.safetensors", bytes(4096), r"model\.safetensors: damaged"),
    "a header without end": ("model.safetensors", b"\xff" * 64, r"model\.safetensors: damaged"),
    "another end": ("generation_config.json", '{"eos_token_id": [1, 70000]}', r"generation\S+: eos_token_id = 70000"),
    "no generation": ("generation_config.json", "5", r"generation_config\.json: damaged JSON"),
    "gptq beside": ("quantize_config.json", '{"bits": 4}', r"quantize_config\.json says .* quantised \(gptq\)"),
    "awq beside": ("quant_config.json", '{"w_bit": 4}', r"quantised \(awq\)"),
}  # fmt: skip


@pytest.mark.parametrize("case", FILES)
def test_a_file_that_cannot_be_read_is_named(tmp_path, monkeypatch, source, case):
    name, content, message = FILES[case]
    (source / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    refused(tmp_path, monkeypatch, source, message)


def test_a_tokenizer_that_grows_without_end_is_ended(tmp_path, monkeypatch, source):
    """An added token that the normalizer makes 2^40 times as long, as soon as the file is opened."""
    monkeypatch.setattr("salf.trial.SECONDS", 0)
    made = json.loads((source / "tokenizer.json").read_text())
    doubling = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
    made["normalizer"] = {"type": "Sequence", "normalizers": [doubling] * 40}
    (source / "tokenizer.json").write_text(json.dumps(made))
    refused(tmp_path, monkeypatch, source, r"tokenizer\.json: a trial of it took more than (2 GiB|0 s)", trial=True)


def test_what_a_configuration_may_take_is_bounded(tmp_path, monkeypatch, source):
    """Whatever its entry is called: here the number of labels, of which transformers makes a table."""
    monkeypatch.setattr("stages.base.sources.check_counts", lambda *_: None)
    monkeypatch.setattr("salf.trial.MEMORY", 1 << 28)
    edit(source, {"num_labels": 10**9})
    refused(tmp_path, monkeypatch, source, r"config\.json: a trial of it took more than 0.25 GiB of memory", trial=True)


@pytest.mark.parametrize("cut", [-1000, 1000, -8])
def test_a_download_that_broke_off_is_named(tmp_path, monkeypatch, source, cut):
    weights = source / "model.safetensors"
    os.truncate(weights, weights.stat().st_size + cut)
    refused(tmp_path, monkeypatch, source, r"model\.safetensors: damaged, or not downloaded to its end")


def test_weights_that_hold_zeros_only_are_said(tmp_path, monkeypatch, source, capsys):
    """A download that reserved its room and broke off; microsoft/BitNet#608 has such files on the hub."""
    edit(source, lambda tensors: tensors[UP].zero_())
    bring(tmp_path, monkeypatch, source)
    assert f"1 weights are all zeros ({UP})" in capsys.readouterr().out


def test_adapters_are_no_base(tmp_path, monkeypatch, source):
    network = get_peft_model(AutoModelForCausalLM.from_pretrained(source), LoraConfig(target_modules=["q_proj"]))
    (source / "model.safetensors").unlink()
    network.save_pretrained(source)
    refused(tmp_path, monkeypatch, source, "these are adapters, not a model: merge them first")  # with config.json
    (source / "config.json").unlink()
    refused(tmp_path, monkeypatch, source, "these are adapters, not a model: merge them first")


# What lies outside the folder is neither read nor copied.


@pytest.fixture
def secret(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    return tmp_path / "elsewhere"


@pytest.mark.parametrize("name", ["chat_template.jinja", "tokenizer.json", "model.safetensors", "evil.py", "vocab.txt"])
@pytest.mark.parametrize("relative", [True, False])
def test_a_link_out_of_the_folder_is_refused(tmp_path, monkeypatch, source, secret, name, relative):
    outside = secret / name
    (source / name).rename(outside) if (source / name).exists() else outside.write_text("secret")
    (source / name).symlink_to(Path("../elsewhere") / name if relative else outside)
    refused(tmp_path, monkeypatch, source, rf"{name}: links to a place outside its folder")


def test_links_within_the_hubs_cache_are_followed_and_no_further(tmp_path, monkeypatch, hub_folder):
    repository = tmp_path / "models--somebody--thing"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for number, file in enumerate(sorted(hub_folder.iterdir())):
        shutil.copy(file, repository / "blobs" / str(number))
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    assert (bring(tmp_path, monkeypatch, snapshot) / "base.json").exists()
    (tmp_path / "secret.txt").write_text("secret")
    shutil.rmtree(tmp_path / "base")
    (repository / "blobs" / "9").symlink_to(tmp_path / "secret.txt")
    (snapshot / "chat_template.jinja").symlink_to("../../blobs/9")
    refused(tmp_path, monkeypatch, snapshot, r"chat_template\.jinja: links to a place outside")


def test_a_pipe_is_not_waited_for(tmp_path, monkeypatch, source):
    os.mkfifo(source / "chat_template.jinja")
    refused(tmp_path, monkeypatch, source, r"chat_template\.jinja: is not a file")


@pytest.mark.parametrize("name", ["../other.safetensors", "/etc/passwd", ".", "", "a/b.safetensors", "..", 5, None])
def test_an_index_names_files_of_its_folder(tmp_path, monkeypatch, source, name):
    save_file(load_file(source / "model.safetensors"), tmp_path / "other.safetensors", {"format": "pt"})
    (source / "model.safetensors").unlink()
    (source / INDEX).write_text(json.dumps({"weight_map": {EMBEDDING: name}}))
    refused(tmp_path, monkeypatch, source, r"index\.json: (names|does not say which file)")


@pytest.mark.parametrize("name", ["model.layers.../../../x", "../x", "model.layers.0.\x1b[2J\nx", "x" * 5000])
def test_a_tensor_that_is_called_like_a_path_is_left_aside(tmp_path, monkeypatch, source, capsys, name):
    edit(source, lambda tensors: tensors.update({name: torch.ones(2)}))
    base = bring(tmp_path, monkeypatch, source)
    (said,) = [line for line in capsys.readouterr().out.split("\n") if "ignored: " in line]
    assert said.isprintable()
    assert len(said) < 300
    assert name not in json.loads((base / INDEX).read_text())["weight_map"]
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "~nobody-of-that-name/model", "one/two/three", " "])
def test_a_source_that_is_no_name_is_one_line(tmp_path, monkeypatch, name):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    refused(tmp_path, monkeypatch, name, r"model\.source = ")


# What lies beyond the network is left aside; what transformers reads in its own way is read so.


def mtp_layer(tensors):
    tensors |= {k.replace("layers.3.", "layers.4."): v.clone() for k, v in tensors.items() if "layers.3." in k}
    tensors |= {"model.layers.4.eh_proj.weight": torch.zeros(32, 64), "model.layers.4.enorm.weight": torch.ones(32)}


def zero_biases(tensors):
    tensors |= {k.replace("weight", "bias"): torch.zeros(len(v)) for k, v in tensors.items() if "proj" in k}


ASIDE = {
    "layers for further tokens, behind the last": (mtp_layer, 11, "model.layers.4."),
    "layers for further tokens, apart": (lambda t: t.update({"mtp.fc.weight": torch.ones(3, 3)}), 1, "mtp."),
    "a value head": (lambda t: t.update({"v_head.summary.weight": torch.ones(1, 32)}), 1, "v_head.summary.weight"),
    "scales of a cache": (lambda t: t.update({"model.layers.0.self_attn.k_scale": torch.ones(1)}), 1, "k_scale"),
    "rotary angles": (lambda t: t.update({"model.rotary_emb.inv_freq": torch.ones(4)}), 1, "inv_fr"),
    "biases of nothing": (zero_biases, 28, "_proj.bias"),
}  # fmt: skip


@pytest.mark.parametrize("case", ASIDE)
def test_what_the_model_has_no_place_for_is_left_aside_and_said(
    tmp_path, monkeypatch, hub_folder, source, capsys, case
):
    change, number, name = ASIDE[case]
    plain = facts_of(bring(tmp_path, monkeypatch, hub_folder))["shards"]
    capsys.readouterr()
    edit(source, change)
    shards = facts_of(bring(tmp_path, monkeypatch, source))["shards"]
    assert shards == plain
    (said,) = [line for line in capsys.readouterr().out.splitlines() if "ignored: " in line]
    assert f"{number} tensors" in said
    assert name in said


def logits(folder):
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder)(torch.tensor([[5, 9, 30, 44]])).logits


@pytest.mark.parametrize("case", ["equal", "other", "alone"])
def test_a_head_beside_a_tied_embedding_is_read_as_transformers_reads_it(tmp_path, monkeypatch, source, capsys, case):
    def change(tensors):
        tensors[HEAD] = tensors[EMBEDDING].clone()
        if case == "other":
            tensors[HEAD][3] += 1
        if case == "alone":
            del tensors[EMBEDDING]

    edit(source, change)
    base = bring(tmp_path, monkeypatch, source)
    torch.testing.assert_close(logits(base), logits(source), rtol=0, atol=0)
    facts, config = (json.loads((base / name).read_text()) for name in ("base.json", "config.json"))
    assert facts["tied_head"] == config["tie_word_embeddings"] == (case != "other")
    assert (facts["parameters"]["head"], HEAD in facts["parameter_names"]) == (
        (258 * 32, True) if case == "other" else (0, False)
    )
    assert ("differs from the embedding" in capsys.readouterr().out) == (case == "other")


def test_of_two_tensors_of_one_name_the_index_says_which_counts(tmp_path, monkeypatch, hub_folder, source):
    """An overlay beside the shards that it corrects: vllm-project/vllm#54230, JustVugg/colibri#1479."""
    plain = facts_of(bring(tmp_path, monkeypatch, hub_folder))["shards"]
    tensors = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    save_file({UP: tensors[UP]}, source / "a-overlay.safetensors", {"format": "pt"})
    save_file({**tensors, UP: torch.zeros(48, 32)}, source / "model-1.safetensors", {"format": "pt"})
    shutil.rmtree(tmp_path / "base")
    refused(tmp_path, monkeypatch, source, rf"a-overlay\.safetensors and model-1\.safetensors both hold {UP}")
    places = {name: "a-overlay.safetensors" if name == UP else "model-1.safetensors" for name in tensors}
    (source / INDEX).write_text(json.dumps({"weight_map": places}))
    assert facts_of(bring(tmp_path, monkeypatch, source))["shards"] == plain


def test_how_to_generate_comes_along(tmp_path, monkeypatch, source):
    (source / "generation_config.json").write_text('{"eos_token_id": [1, 0], "temperature": 0.6, "do_sample": true}')
    base = bring(tmp_path, monkeypatch, source)
    made = AutoModelForCausalLM.from_pretrained(base).generation_config
    assert (made.eos_token_id, made.temperature, made.do_sample) == ([1, 0], 0.6, True)
