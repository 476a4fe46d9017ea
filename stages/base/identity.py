"""What a base model is: its shape, its parameters by unit and by name, the hashes of its shards."""

from collections.abc import Mapping
from pathlib import Path

from salf.engine.models.shards import shard_hashes, weights_digest
from salf.families import Family
from salf.records import BaseRecord, ParameterSizes
from stages.base.sources import Source


def identity(source: Source, kind: str, family: Family, sizes: Mapping[str, int], folder: Path) -> BaseRecord:
    """The content of ``base.json``.

    Args:
        source: the model at its source.
        kind: ``model.source`` as set.
        family: the architecture's row.
        sizes: parameter name → number of elements.
        folder: the finished model folder.
    """
    layers = source.config["num_hidden_layers"]
    per_unit: dict[str, int] = {}
    for name, size in sizes.items():
        unit = "head" if name.startswith(f"{family.head}.") else family.unit_of(name, layers)
        per_unit[unit] = per_unit.get(unit, 0) + size
    hashes = shard_hashes(folder)
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
            norm=per_unit.get("final", 0),
            head=per_unit.get("head", 0),
        ),
        trust_remote_code=bool(source.code),
        parameter_names=list(source.parameter_names),
        shards=hashes,
        weights_sha256=weights_digest(hashes),
    )
