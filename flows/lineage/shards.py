"""Proves from the shards of a fine-tuned model which layers were trained: equal bytes or different ones.

It relies on the layout alone (``salf/engine/models/shards.py``): one safetensors file per unit
(``embedding``, ``layer-01`` … , ``final``), and ``run.json`` with ``trained_units``, which the method was
to train (of layers drawn at random, all that were drawn), and ``changed_units``, which saving rewrote.
"""

import json
from pathlib import Path

from flows.lineage.artifacts import Hasher

_SUFFIX = ".safetensors"


def is_fine_tune(folder: Path) -> bool:
    """Whether a folder is a fine-tuned model of this pipeline's."""
    return (folder / "run.json").is_file() and any(folder.glob(f"*{_SUFFIX}"))


def is_model(folder: Path) -> bool:
    """Whether a folder is a model at all: a configuration and weights."""
    return (folder / "config.json").is_file() and any(folder.glob(f"*{_SUFFIX}"))


def check_shards(model: Path, base: Path, hasher: Hasher) -> list[str]:
    """Return what is wrong: a frozen unit that is not the base's byte for byte, a trained one that is."""
    try:
        run = json.loads((model / "run.json").read_text(encoding="utf-8"))
        trained, claimed = set(run["trained_units"]), set(run["changed_units"])
    except (OSError, ValueError, KeyError, TypeError):
        return ["run.json is damaged or of another version: the frozen layers are unknown"]
    ours, theirs = _hashes(model, hasher), _hashes(base, hasher)
    faults = [f"{unit} is missing" for unit in sorted(theirs.keys() - ours.keys())]
    faults += [f"{unit} is not a part of the base" for unit in sorted(ours.keys() - theirs.keys())]
    for unit in sorted(ours.keys() & theirs.keys()):
        same = ours[unit] == theirs[unit]
        if unit not in trained and not same:
            faults.append(f"{unit} was frozen, yet its bytes are not the base's")
        elif unit in trained and same:
            faults.append(f"{unit} was trained, yet its bytes are the base's")
        if same == (unit in claimed):
            faults.append(
                f"{unit}: run.json says {'changed' if unit in claimed else 'unchanged'}, its bytes say otherwise"
            )
        if run.get("shards", {}).get(f"{unit}{_SUFFIX}", ours[unit]) != ours[unit]:
            faults.append(f"{unit} does not have the hash that run.json gives")
    return faults


def _hashes(folder: Path, hasher: Hasher) -> dict[str, str]:
    return {file.name.removesuffix(_SUFFIX): hasher.sha256(file) for file in folder.glob(f"*{_SUFFIX}")}
