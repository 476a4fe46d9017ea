"""Writes a source as a model folder with one shard per layer."""

import math
import shutil
from pathlib import Path

import torch
from torch import Tensor

from salf.engine.models.shards import group_by_unit, plain_config, write_index, write_unit
from salf.engine.progress import progress
from salf.errors import UserError
from salf.families import Family
from salf.files import read_json, write_json
from stages.base.check import shown
from stages.base.sources import Source


def write_folder(source: Source, family: Family, folder: Path) -> dict[str, int]:
    """Write configuration, tokenizer and shards; return parameter name → number of elements.

    Raises:
        UserError: a weight is not finite, or the tokenizer has no fast form.
        OSError: the disk is full.
    """
    units = group_by_unit(source.tensors, family, int(source.config["num_hidden_layers"]))
    sizes, zero = {}, []
    with progress("sharding by layer", len(units), "shards") as advance:
        for unit, members in units.items():
            tensors = {name: source.tensors[name] for name in members}
            zero += [name for name, tensor in tensors.items() if not _largest(source, name, tensor) and tensor.ndim > 1]
            write_unit(folder / f"{unit}.safetensors", tensors)
            sizes.update({name: tensor.numel() for name, tensor in tensors.items()})
            advance(1, unit)
    if zero:
        print(f"{source.name}: {len(zero)} weights hold nothing but zeros ({shown(zero)}): is the download complete?")
    write_index(folder, units)
    write_json(folder / "config.json", plain_config(source.config))
    if source.generation is not None:
        write_json(folder / "generation_config.json", source.generation)
    source.tokenizer.save_pretrained(folder)
    _bring_code(source, folder)
    if not (folder / "tokenizer.json").exists():
        raise UserError(f"{source.name}: its tokenizer has no fast form (tokenizer.json), which this pipeline needs")
    return sizes


def _largest(source: Source, name: str, tensor: Tensor) -> float:
    """The largest magnitude in a tensor.

    Raises:
        UserError: it is a NaN, or beyond what 32 bits hold.
    """
    if not tensor.is_floating_point() or not tensor.numel():
        return 1.0
    low, high = (float(end) for end in tensor.detach().aminmax())
    largest = max(-low, high)
    if not largest <= torch.finfo(torch.float32).max:
        what = "a NaN" if math.isnan(largest) else "a value beyond 32 bits (or infinite)"
        raise UserError(f"{source.name}: the weight {name} holds {what}; bring weights that are finite")
    return largest


def _bring_code(source: Source, folder: Path) -> None:
    """Put the author's code beside the model; without the user's consent leave out what would call it, too."""
    for file in source.code:
        shutil.copyfile(file, folder / file.name)
    settings = folder / "tokenizer_config.json"
    if not source.code and "auto_map" in (said := read_json(settings)):
        write_json(settings, {key: value for key, value in said.items() if key != "auto_map"})
