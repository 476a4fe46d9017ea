"""Writes a source as a model folder: one shard per layer, the configuration, the tokenizer, and ``base.json``."""

import math
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from salf.engine.models.shards import group_by_unit, plain_config, shard_hashes, write_index, write_tensors
from salf.engine.progress import progress
from salf.errors import UserError
from salf.families import Family, family_of
from salf.files import digest_of, read_json, write_json
from salf.records import BaseRecord, ParameterSizes
from stages.base.checkpoint import shown
from stages.base.sources import Source


def write_folder(source: Source, kind: str, folder: Path) -> BaseRecord:
    """Write a source into an empty folder; ``kind`` is ``model.source`` as set."""
    family = family_of(source.config["model_type"], source.tensors)
    sizes = _write_shards(source, family, folder)
    write_json(folder / "config.json", plain_config(source.config))
    if source.generation is not None:
        write_json(folder / "generation_config.json", source.generation)
    source.tokenizer.save_pretrained(folder)
    for file in source.code:
        shutil.copyfile(file, folder / file.name)
    settings = folder / "tokenizer_config.json"
    if not source.code and "auto_map" in (said := read_json(settings)):  # it would call code that was left out
        write_json(settings, {key: value for key, value in said.items() if key != "auto_map"})
    if not (folder / "tokenizer.json").exists():
        raise UserError(f"{source.name}: its tokenizer has no fast form (tokenizer.json), which this pipeline needs")
    record = _record(source, kind, family, sizes, shard_hashes(folder))
    record.save(folder)
    return record


def _write_shards(source: Source, family: Family, folder: Path) -> dict[str, int]:
    """Write one shard for each unit, and the index; return parameter name → number of elements."""
    units = group_by_unit(source.tensors, family, int(source.config["num_hidden_layers"]))
    sizes: dict[str, int] = {}
    zero = []
    with progress("sharding by layer", len(units), "shards") as advance:
        for unit, members in units.items():
            tensors = {name: source.tensors[name]() for name in members}
            zero += [name for name, tensor in tensors.items() if not _largest(source, name, tensor) and tensor.ndim > 1]
            write_tensors(folder / f"{unit}.safetensors", tensors)
            sizes |= {name: tensor.numel() for name, tensor in tensors.items()}
            advance(1, unit)
    if zero:
        print(f"{source.name}: {len(zero)} weights are all zeros ({shown(zero)}): is the download complete?")
    write_index(folder, units)
    return sizes


def _largest(source: Source, name: str, tensor: Tensor) -> float:
    """The largest magnitude in a tensor; a ``UserError`` where it is not finite in 32 bits."""
    if not tensor.is_floating_point() or not tensor.numel():
        return 1.0
    low, high = (float(end) for end in tensor.detach().aminmax())
    largest = max(-low, high)
    if not largest <= torch.finfo(torch.float32).max:
        what = "a NaN" if math.isnan(largest) else "a value beyond 32 bits (or infinite)"
        raise UserError(f"{source.name}: the weight {name} holds {what}; use finite weights")
    return largest


def _record(source: Source, kind: str, family: Family, sizes: Mapping[str, int], hashes: dict[str, str]) -> BaseRecord:
    layers = source.config["num_hidden_layers"]
    per_unit = Counter[str]()
    for name, size in sizes.items():
        per_unit["head" if name.startswith(f"{family.head}.") else family.unit_of(name, layers)] += size
    return BaseRecord(
        schema=1,
        source=kind if kind == "embedded" else source.name,
        name=source.name,
        origin=source.origin,
        revision=source.revision,
        family=source.config["model_type"],
        layers=layers,
        hidden=source.config["hidden_size"],
        vocabulary=source.config["vocab_size"],
        tied_head=bool(source.config.get("tie_word_embeddings", False)),
        parameters=ParameterSizes(
            embedding=per_unit["embedding"],
            per_layer=[per_unit[unit] for unit in sorted(per_unit) if unit.startswith("layer-")],
            norm=per_unit["final"],
            head=per_unit["head"],
        ),
        trust_remote_code=bool(source.code),
        parameter_names=list(source.parameter_names),
        shards=hashes,
        weights_sha256=digest_of(hashes),
    )
