"""Are the stored tensors the network's? Asked of names and shapes, before anything is written.

transformers draws what a checkpoint lacks at random and leaves what it does not know; and it joins weights that
files hold apart (a mixture's experts). So it is asked itself: it loads the stored names and shapes without their
numbers, and says what it would write for this network in the form of these files.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import convert_and_load_state_dict_in_model, revert_weight_conversion
from transformers.modeling_utils import LoadStateDictConfig

from salf.errors import UserError, reading
from stages.base.checkpoint import Stored

_PLAIN: Final = {"F64", "F32", "F16", "BF16"}
_QUANTISED: Final = {
    "GPTQ or AWQ": r"\.(qweight|qzeros|g_idx)$",
    "FP8": r"\.weight_scale_inv$",
    "bitsandbytes": r"\.(absmax|nested_absmax|quant_map|nested_quant_map|SCB|quant_state\.\w+)$",
    "compressed-tensors": r"\.(weight_packed|weight_zero_point|weight_shape)$",
    "scales beside the weights": r"\.(?!(q|k|v|kv|prob)_)\w+_scale(_\w+)?$",  # but those of a cache of keys and values
}
_ADAPTERS: Final = re.compile(r"\.(lora_\w+|base_layer|modules_to_save|ia3_l)(\.|$)")


def parameter_names(network: nn.Module) -> tuple[str, ...]:
    """As ``named_parameters()`` gives them, sorted; a tied head has none of its own."""
    return tuple(sorted(name for name, _ in network.named_parameters()))


def beyond(
    stored: Mapping[str, Stored], tensors: Mapping[str, Tensor], network: PreTrainedModel, name: str
) -> list[str]:
    """Compare the stored tensors with the network's, and name those that it has no place for.

    Args:
        stored: by the names that transformers gives today.
        tensors: the same, with their numbers.
        network: on the meta device; it takes the stored shapes over.
        name: of the model, for messages.

    Raises:
        UserError: a tensor is missing or of another shape, or the weights are quantised or hold adapters.
    """
    tied = network.all_tied_weights_keys
    with reading(name, "transformers cannot load these weights"):
        expected, failed = _expected(stored, network)
    others = [one for one in stored if one not in expected]
    for method, suffix in _QUANTISED.items():
        if signs := [one for one in others if re.search(suffix, one)]:
            raise UserError(_quantised(name, method, signs))
    for one, tensor in expected.items():
        if one in stored and tensor.is_floating_point() and stored[one].dtype not in _PLAIN:
            raise UserError(_quantised(name, f"stored as {stored[one].dtype}", [one]))
    if adapters := [one for one in others if _ADAPTERS.search(one)]:
        raise UserError(
            f"{name}: the weights hold adapters that were not merged into them ({shown(adapters)}): merge them first "
            "(PEFT's merge_and_unload), and save the result"
        )
    if lacking := [one for one in expected if one not in stored and one not in tied]:
        sizes = ", ".join(f"{shown([one])} {list(expected[one].shape)}" for one in lacking[:3])
        asked = [one for one in expected if one in stored or one not in tied]
        head = network.get_output_embeddings()
        heads = [f"{path}.weight" for path, part in network.named_modules() if part is head]
        raise UserError(
            f"{name}: the weights lack {len(lacking)} of the {len(asked)} tensors that config.json asks for: {sizes}"
            + (", …" if len(lacking) > 3 else "")
            + (f"; they hold others instead: {shown(others)}" if others else "")
            + (
                "; if the head is the embedding, write tie_word_embeddings: true"
                if lacking == heads
                else "; complete the folder"
            )
        )
    for one in stored.keys() & expected.keys():
        if stored[one].shape != tuple(expected[one].shape):
            failed = {
                f"{shown([one])} is {list(stored[one].shape)} there, and {list(expected[one].shape)} by config.json"
            }
            break
    if failed:
        raise UserError(f"{name}: the weights are not those that config.json describes: {min(failed)}")
    for one in others:
        part, _, kind = one.rpartition(".")
        if kind == "bias" and f"{part}.weight" in expected and tensors[one].any():
            raise UserError(
                f"{name}: the weights hold {shown([one])} {list(stored[one].shape)}, and by config.json there is no "
                "such bias; correct config.json"
            )
    return others


def _expected(stored: Mapping[str, Stored], network: PreTrainedModel) -> tuple[dict[str, Tensor], set[str]]:
    """What transformers would write in the form of these files (tensors without numbers), and what it cannot load."""
    weights = {one: torch.empty(place.shape, device="meta") for one, place in stored.items()}
    settings = LoadStateDictConfig(device_map={"": "meta"}, weight_mapping=get_model_conversion_mapping(network))
    info, _ = convert_and_load_state_dict_in_model(network, weights, settings)
    failed = {key for key, *_ in info.mismatched_keys} | info.conversion_errors.keys() | info.missing_keys
    return revert_weight_conversion(network, network.state_dict()), failed - network.all_tied_weights_keys.keys()


def _quantised(name: str, method: str, signs: Sequence[str]) -> str:
    return f"{name}: the weights are quantised ({method}: {shown(signs)}); name the model that they were made from"


def shown(names: Iterable[str]) -> str:
    """The first of some tensors' names, as they can be printed."""
    names = list(names)
    first = [one if len(one) <= 100 else f"{one[:100]}…" for one in names[:3]]
    return ", ".join(ascii(one)[1:-1] for one in first) + (", …" if len(names) > 3 else "")


def check_vocabulary(folder: Path, tokenizer: PreTrainedTokenizerBase, rows: int) -> None:
    """Refuse a tokenizer whose files name tokens that the model has no row for.

    Raises:
        UserError: names the token, its id and the rows.
    """
    far = sorted((number, token) for token, number in tokenizer.get_vocab().items() if number >= rows)
    texts = [file.read_text(encoding="utf-8", errors="replace") for file in folder.glob("*.json")] if far else []
    # The others are defaults of transformers' class, which texts hardly hold.
    far = [
        (number, token)
        for number, token in far
        if any(json.dumps(token, ensure_ascii=ascii_only) in text for text in texts for ascii_only in (True, False))
    ]
    if far:
        listed = ", ".join(f"{token!r} has id {number}" for number, token in far[:3])
        raise UserError(
            f"{folder}: the tokenizer's token {listed}{', …' if len(far) > 3 else ''}, and the embedding holds {rows} "
            "rows; take the tokenizer that belongs to the model, or resize the embedding (resize_token_embeddings)"
        )
