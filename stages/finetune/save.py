"""Saves a fine-tuned model so that frozen layers keep their bytes, and can be proved to."""

from collections.abc import Iterable
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from stages.common.artifacts import read_json
from stages.common.models.shards import INDEX, group_by_unit, share_file, write_index, write_unit
from stages.common.training.trainable import Trainable

_WEIGHTS = {INDEX, "base.json"}


def save_model(trainable: Trainable, base: Path, folder: Path) -> list[str]:
    """Write the model in ``base``'s layout; return the units whose shards changed.

    Shards of untouched units are the base's own files, linked where the file system can. Everything
    else of the base folder (configuration, tokenizer) is taken over as it is.
    """
    if trainable.adapters is not None:
        trainable.adapters.save_pretrained(folder / "adapter")
        (folder / "adapter" / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
    family, depth = trainable.model.family, trainable.model.depth
    changed = {family.unit_of(name, depth) for name in trainable.merged()}
    index = read_json(base / INDEX)
    dtype_of = trainable.model.network.dtype
    named = _as_stored(trainable.model.network, index["weight_map"])
    units = group_by_unit(index["weight_map"], family, depth)
    rewritten = []
    for unit, names in units.items():
        shard = f"{unit}.safetensors"
        if unit not in changed:
            share_file(base / shard, folder / shard)
        else:
            write_unit(folder / shard, {name: named[name].to(dtype_of) for name in names})
            rewritten.append(unit)
    write_index(folder, units)
    for file in base.iterdir():
        if file.is_file() and file.name not in _WEIGHTS and file.suffix != ".safetensors":
            share_file(file, folder / file.name)
    return rewritten


def _as_stored(network: PreTrainedModel, names: Iterable[str]) -> dict[str, Tensor]:
    """The weights under the names of the base's files: transformers joins a mixture's experts when it loads them."""
    weights = {name: parameter.detach() for name, parameter in network.named_parameters()}
    return weights if weights.keys() >= set(names) else revert_weight_conversion(network, weights)
