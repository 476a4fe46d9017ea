"""A source's ``config.json``: read, completed, and refused where it describes no model that can be fine-tuned.

It is read before transformers reads it, so that adapters, quantised weights and models of images are refused in
those words, and no network is built from sizes that the weights do not confirm.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from transformers import PreTrainedConfig

from salf.errors import UserError, reading
from salf.families import longest_list
from stages.base.checkpoint import Stored, read_object

_SIZES: Final = ("num_hidden_layers", "hidden_size", "vocab_size", "num_attention_heads", "tie_word_embeddings")
_LAYERS: Final = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_PARTS: Final = ("text_config", "llm_config", "language_config", "thinker_config", "vision_config", "audio_config")
_QUANTISED: Final = ("quantization_config", "compression_config", "quantization")
# Files that some tools write next to config.json, and the method if they do not name it.
_QUANTISED_BESIDE: Final = {
    "quantize_config.json": "gptq",
    "quant_config.json": "awq",
    "hf_quant_config.json": "modelopt",
}


def read_config(folder: Path) -> dict[str, Any]:
    """Read ``config.json`` of a model that can be fine-tuned: no adapters, quantised weights, images or sound."""
    if (folder / "adapter_config.json").exists():
        merge = "merge them first (PEFT's merge_and_unload), and save the model with its tokenizer"
        raise UserError(f"{folder}: these are adapters, not a model: {merge}")
    file = folder / "config.json"
    if not file.exists():
        raise UserError(f"{file}: no such file; is {folder.name} a model's folder?")
    config = read_object(file)
    if config.get("transformers_weights"):
        raise UserError(f"{file}: names its weights in transformers_weights; call them model.safetensors instead")
    _refuse_quantised(folder, config)
    if any(isinstance(config.get(part), Mapping) for part in _PARTS):
        kind = f"model type {config.get('model_type')!r} takes images or sound in addition to text"
        raise UserError(f"{folder}: {kind}; name a text model, or save this one's text part alone")
    return config


def _refuse_quantised(folder: Path, config: Mapping[str, Any]) -> None:
    found = [(f"config.json ({key})", config[key], "no method named") for key in _QUANTISED if config.get(key)]
    beside = [(folder / name, method) for name, method in _QUANTISED_BESIDE.items()]
    found += [(file.name, read_object(file), method) for file, method in beside if file.exists()]
    for where, entry, method in found:
        entries = entry if isinstance(entry, Mapping) else {"quant_method": entry}
        if any(key.startswith(("load_in_", "bnb_")) for key in entries):
            method = "bitsandbytes"
        fault = f"{where} says that the weights are quantised ({entries.get('quant_method') or method})"
        raise UserError(f"{folder}: {fault}; name the model that they were made from, or dequantise them")


def check_counts(file: Path, config: Mapping[str, Any], stored: Mapping[str, Stored]) -> None:
    """Refuse numbers of layers, heads, experts and labels that the weights do not hold."""
    path = longest_list(stored)
    layers: dict[int, set[str]] = {}
    for name in stored:
        if match := re.match(rf"{re.escape(path)}\.(\d{{1,9}})\.(.+)", name):
            layers.setdefault(int(match[1]), set()).add(match[2])
    if layers and 0 not in layers:
        raise UserError(f"{file.parent}: the weights number their layers from {min(layers)}; number them from 0")
    for key in _LAYERS:
        if (said := config.get(key)) is None:
            continue
        if type(said) is not int or said < 1:
            raise UserError(f"{file}: {key} = {said!r} is not a number of layers")
        inside = [parts for number, parts in layers.items() if number < said]
        # Further layers of the same build belong to the model; one that predicts further tokens has more parts.
        further = sum(parts in inside for number, parts in layers.items() if number >= said)
        if len(inside) != said or further:
            raise UserError(f"{file.parent}: the weights hold {len(inside) + further} layers, config.json says {said}")
    if type(context := config.get("max_position_embeddings")) is int and context < 1:
        raise UserError(f"{file}: max_position_embeddings = {context} leaves no room for a token; correct the entry")
    most = max([len(stored), *(size for one in stored.values() for size in one.shape)], default=0)
    for key, value in config.items():
        if re.search("head|expert|label|layers", key) and type(value) is int and value > most:
            raise UserError(f"{file}: {key} = {value}, but no weight has that size")


def check_ids(file: Path, said: Mapping[str, Any], vocabulary: int) -> None:
    """Refuse ids of special tokens that the model has no row for."""
    for key in ("eos_token_id", "bos_token_id", "pad_token_id"):
        value = said.get(key)
        for one in value if isinstance(value, list) else [value]:
            none = one is None or (one == -1 and key != "eos_token_id")  # older Llama's: no such token
            if not none and (type(one) is not int or not 0 <= one < vocabulary):
                raise UserError(f"{file}: {key} = {one!r}, but the embedding has {vocabulary} rows; correct the entry")


def complete_config(raw: Mapping[str, Any], opened: PreTrainedConfig) -> dict[str, Any]:
    """``config.json`` with its sizes under transformers' own names, and defaults that were left out."""
    missing = {name: getattr(opened, name, None) for name in _SIZES if name not in raw}
    return {**raw, **{name: value for name, value in missing.items() if value is not None}}


def own_code(folder: Path) -> list[Path]:
    """The Python files of a folder, where its model or tokenizer is made of classes in them."""
    settings = [folder / name for name in ("config.json", "tokenizer_config.json")]
    calls = [call for file in settings if file.exists() for call in _calls(read_object(file).get("auto_map"))]
    if strange := [call for call in calls if not re.fullmatch(r"([\w./-]+--)?\w+(\.\w+)+", call)]:
        raise UserError(f"{folder}: auto_map names {strange[0]!r}, which is not a class in a file of this folder")
    if elsewhere := sorted({call.split("--")[0] for call in calls if "--" in call}):
        # It would be downloaded whenever a later stage opens the model, at whatever revision it then has.
        advice = "put it into a copy of this folder, and name it without the repository in auto_map"
        raise UserError(f"{folder}: its code is in another repository ({', '.join(elsewhere)}); {advice}")
    return sorted(folder.glob("*.py")) if calls else []


def _calls(auto_map: Any) -> list[str]:
    """The classes that an ``auto_map`` names, each ``module.Class`` or ``repository--module.Class``."""
    if isinstance(auto_map, str):
        return [auto_map]
    parts = auto_map.values() if isinstance(auto_map, Mapping) else auto_map if isinstance(auto_map, list) else []
    return [call for part in parts for call in _calls(part)]


@contextmanager
def opening(file: Path, fault: str = "cannot be opened as a model") -> Iterator[None]:
    """Like :func:`reading`; that transformers wants the author's code to run is said in this project's words."""
    try:
        with reading(file, fault):
            yield
    except UserError as error:
        if "trust_remote_code" not in str(error.__context__):  # its own argument, and a way to look at the code online
            raise
        advice = "it needs code that its author shipped; read it, then set model.trust_remote_code: true"
        raise UserError(f"{file.parent}: cannot be opened as a model: {advice}") from None
