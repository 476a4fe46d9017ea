"""Writes a source as a model folder with one shard per layer."""

import shutil
from pathlib import Path

from stages.base.sources import Source
from stages.common.artifacts import read_json, write_json
from stages.common.command import UserError
from stages.common.models.families import Family
from stages.common.models.shards import group_by_unit, plain_config, write_index, write_unit
from stages.common.progress import progress


def write_folder(source: Source, family: Family, folder: Path) -> dict[str, int]:
    """Write configuration, tokenizer and shards; return parameter name → number of elements.

    Raises:
        UserError: the weights do not have the layers that the configuration announces, or the
            tokenizer has no fast form.
        OSError: the disk is full.
    """
    layers = int(source.config["num_hidden_layers"])
    tied = bool(source.config.get("tie_word_embeddings", False))
    # A tied head is the embedding: it is stored once.
    names = [name for name in source.tensors if not (tied and name.startswith(f"{family.head}."))]
    units = group_by_unit(names, family, layers)
    found = sum(unit.startswith("layer-") for unit in units)
    if found != layers or "embedding" not in units:
        raise UserError(f"{source.name}: the weights hold {found} layers, config.json says {layers}")

    sizes = {}
    with progress("sharding by layer", len(units), "shards") as advance:
        for unit, members in units.items():
            tensors = {name: source.tensors[name] for name in members}
            write_unit(folder / f"{unit}.safetensors", tensors)
            sizes.update({name: tensor.numel() for name, tensor in tensors.items()})
            advance(1, unit)
    write_index(folder, units)
    write_json(folder / "config.json", plain_config(source.config))
    source.tokenizer.save_pretrained(folder)
    _bring_code(source, folder)
    if not (folder / "tokenizer.json").exists():
        raise UserError(f"{source.name}: its tokenizer has no fast form (tokenizer.json), which this pipeline needs")
    return sizes


def _bring_code(source: Source, folder: Path) -> None:
    """Put the author's code beside the model; without the user's consent leave out what would call it, too."""
    for file in source.code:
        shutil.copyfile(file, folder / file.name)
    settings = folder / "tokenizer_config.json"
    if not source.code and "auto_map" in (said := read_json(settings)):
        write_json(settings, {key: value for key, value in said.items() if key != "auto_map"})
