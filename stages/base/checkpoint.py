"""A source's files: which of them may be read, and the tensors in them under transformers' present names.

Checkpoints are older than conventions: GPT-2's hold their trunk without its name, Pythia's call the head
``embed_out``. Tensors that a checkpoint lacks would be drawn at random by transformers, and those that it does not
know be left out. So it is asked before anything is written: it loads the stored names and shapes without their
numbers, and says which tensors it would write for this network in the form of these files.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import convert_and_load_state_dict_in_model, revert_weight_conversion
from transformers.modeling_utils import LoadStateDictConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from salf.engine.models.shards import INDEX
from salf.errors import UserError, reading

READ: Final = (".safetensors", ".json", ".jinja", ".py", ".model", ".txt")  # suffixes of what this stage reads
_POINTER: Final = b"version https://git-lfs"
_OLD_HEADS: Final = {"gpt_neox": "embed_out."}
_DAMAGED: Final = "damaged, or not downloaded to its end; download it again"
_PLAIN: Final = {"F64", "F32", "F16", "BF16"}
_QUANTISED: Final = "are quantised ({kind}: {names}); name the model that they were made from"
_ADAPTERS: Final = (
    "hold adapters that were not merged into them ({names}): merge them first (PEFT's merge_and_unload), "
    "and save the result"
)
# Names of tensors that the network has no place for, with what they are a sign of.
_SIGNS: Final = {
    r"\.(qweight|qzeros|g_idx)$": ("GPTQ or AWQ", _QUANTISED),
    r"\.weight_scale_inv$": ("FP8", _QUANTISED),
    r"\.(absmax|nested_absmax|quant_map|nested_quant_map|SCB|quant_state\.\w+)$": ("bitsandbytes", _QUANTISED),
    r"\.(weight_packed|weight_zero_point|weight_shape)$": ("compressed-tensors", _QUANTISED),
    # But not those of a cache of keys and values.
    r"\.(?!(q|k|v|kv|prob)_)\w+_scale(_\w+)?$": ("scales of weights", _QUANTISED),
    r"\.(lora_\w+|base_layer|modules_to_save|ia3_l)(\.|$)": ("", _ADAPTERS),
}


@dataclass(frozen=True)
class Stored:
    """A tensor in an opened safetensors file: its name there, its shape and its type (``F32``, ``BF16``, ``U8``)."""

    file: Path
    opened: safe_open
    name: str
    shape: tuple[int, ...]
    dtype: str

    def load(self) -> Tensor:
        """Read its numbers."""
        with reading(self.file, _DAMAGED):
            return self.opened.get_tensor(self.name)


Places = Mapping[str, Stored]  # by the tensors' names
Tensors = Mapping[str, Tensor]


def check_files(folder: Path) -> None:
    """Refuse a folder with a link out of it, or with a file that is not what its name says.

    Links may end in the folder itself, or where the Hub's cache keeps the files of its snapshots.
    """
    home = folder.resolve()
    places = [home, *([home.parents[1] / "blobs"] if home.parent.name == "snapshots" else [])]
    with reading(folder):
        files = sorted([*folder.iterdir(), *folder.glob("additional_chat_templates/*")])
    for file in (file for file in files if file.suffix in READ):
        with reading(file):
            target = file.resolve()
            if not any(target.is_relative_to(place) for place in places):
                raise UserError(f"{file}: links to a place outside its folder; put the file itself there")
            if not target.is_file():
                raise UserError(f"{file}: is not a file, or links to a missing one; complete the folder")
            with file.open("rb") as opened:
                if opened.read(len(_POINTER)) == _POINTER:
                    raise UserError(f"{file}: a git-lfs pointer, not the file itself; run: git lfs pull")


def read_object(file: Path) -> dict[str, Any]:
    """Read a JSON object of the source; numbers that JSON does not have (NaN, Infinity) are refused."""

    def refused(number: str) -> None:
        raise ValueError(f"{number} is not a JSON number")

    with reading(file, "damaged JSON; download the file again"):
        found = json.loads(file.read_text(encoding="utf-8"), parse_constant=refused)
        if not isinstance(found, dict):
            raise TypeError(f"a {type(found).__name__} instead of an object")
        return found


def read_headers(folder: Path) -> dict[str, Stored]:
    """Find every tensor of a folder's checkpoint, by the name in its file.

    As in transformers, ``model.safetensors`` is the model if it is there, else the files that the index names.
    """
    index, whole = folder / INDEX, folder / "model.safetensors"
    places = _indexed(index) if index.exists() and not whole.exists() else {}
    files = [whole] if whole.exists() else [folder / name for name in sorted(set(places.values()))]
    files = files or sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(f"{folder}: holds no .safetensors weights; other formats are not supported")
    found: dict[str, Stored] = {}
    for file in files:
        with reading(file, _DAMAGED):
            shard = safe_open(file, framework="pt")
            for name in shard.keys():  # noqa: SIM118
                if places.get(name, file.name) != file.name:
                    continue
                if name in found:
                    raise UserError(f"{folder}: {found[name].file.name} and {file.name} both hold {name}; remove one")
                entry = shard.get_slice(name)
                found[name] = Stored(file, shard, name, tuple(entry.get_shape()), entry.get_dtype())
    return found


def _indexed(index: Path) -> dict[str, str]:
    """Tensor → the file that the index assigns it to."""
    places = read_object(index).get("weight_map")
    if not isinstance(places, Mapping) or not places or not all(isinstance(name, str) for name in places.values()):
        raise UserError(f"{index}: does not say which file holds which weight; download the folder again")
    for name in sorted(set(places.values())):
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise UserError(f"{index}: names {name!r}, which is not a .safetensors file in its folder")
        if not (index.parent / name).exists():
            raise UserError(f"{index.parent}: {INDEX} names {name}, which is missing; complete the folder")
    return dict(places)


def current_names(stored: Iterable[str], config: PreTrainedConfig) -> dict[str, str]:
    """Stored name → today's name."""
    network: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    trunk = f"{network.base_model_prefix}." if network else ""
    bare = not any(name.startswith(trunk) for name in stored)
    old = _OLD_HEADS.get(config.model_type, "lm_head.")
    names = {name: f"lm_head.{name.removeprefix(old)}" if name.startswith(old) else name for name in stored}
    return {
        name: f"{trunk}{today}" if bare and not today.startswith("lm_head.") else today for name, today in names.items()
    }


def beyond(stored: Places, network: PreTrainedModel, name: str) -> list[str]:
    """Compare the stored tensors with the network's, and name those that it has no place for.

    The network is on the meta device; it takes the stored shapes over. ``name`` is the model's, for messages.
    """
    with reading(name, "transformers cannot load these weights"):
        expected, failed = _expected(stored, network)
    others = [one for one in stored if one not in expected]
    _refuse_signs(stored, expected, others, name)
    _refuse_missing(stored, expected, others, network, name)
    shapes = ((one, list(stored[one].shape), list(expected[one].shape)) for one in stored.keys() & expected.keys())
    failed = next(({f"{shown([one])} is {a} there, and {b} by config.json"} for one, a, b in shapes if a != b), failed)
    if failed:
        raise UserError(f"{name}: the weights are not those that config.json describes: {min(failed)}")
    for one in others:
        part, _, kind = one.rpartition(".")
        if kind == "bias" and f"{part}.weight" in expected and stored[one].load().any():
            held = f"{shown([one])} {list(stored[one].shape)}"
            raise UserError(f"{name}: the weights hold {held}, but config.json declares no such bias; correct it")
    return others


def _expected(stored: Places, network: PreTrainedModel) -> tuple[Tensors, set[str]]:
    """The tensors that transformers would write in the form of these files (without numbers), and load failures."""
    weights = {one: torch.empty(place.shape, device="meta") for one, place in stored.items()}
    settings = LoadStateDictConfig(device_map={"": "meta"}, weight_mapping=get_model_conversion_mapping(network))
    info, _ = convert_and_load_state_dict_in_model(network, weights, settings)
    failed = {key for key, *_ in info.mismatched_keys} | info.conversion_errors.keys() | info.missing_keys
    return revert_weight_conversion(network, network.state_dict()), failed - network.all_tied_weights_keys.keys()


def _refuse_signs(stored: Places, expected: Tensors, others: Iterable[str], name: str) -> None:
    for sign, (kind, fault) in _SIGNS.items():
        if found := [one for one in others if re.search(sign, one)]:
            raise UserError(f"{name}: the weights {fault.format(kind=kind, names=shown(found))}")
    for one, tensor in expected.items():
        if one in stored and tensor.is_floating_point() and stored[one].dtype not in _PLAIN:
            fault = _QUANTISED.format(kind=f"stored as {stored[one].dtype}", names=shown([one]))
            raise UserError(f"{name}: the weights {fault}")


def _refuse_missing(stored: Places, expected: Tensors, others: list[str], network: PreTrainedModel, name: str) -> None:
    asked = [one for one in expected if one in stored or one not in network.all_tied_weights_keys]
    missing = [one for one in asked if one not in stored]
    if not missing:
        return
    sizes = ", ".join(f"{shown([one])} {list(expected[one].shape)}" for one in missing[:3])
    more = ", …" if len(missing) > 3 else ""
    instead = f"; they hold others instead: {shown(others)}" if others else ""
    head = network.get_output_embeddings()
    is_head = missing == [f"{path}.weight" for path, part in network.named_modules() if part is head]
    advice = "if the head is the embedding, write tie_word_embeddings: true" if is_head else "complete the folder"
    lack = f"the weights lack {len(missing)} of the {len(asked)} tensors that config.json asks for"
    raise UserError(f"{name}: {lack}: {sizes}{more}{instead}; {advice}")


def shown(names: Iterable[str]) -> str:
    """The first of some tensors' names, as they can be printed."""
    names = list(names)
    first = [one if len(one) <= 100 else f"{one[:100]}…" for one in names[:3]]
    return ", ".join(ascii(one)[1:-1] for one in first) + (", …" if len(names) > 3 else "")
