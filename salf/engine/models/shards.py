"""A model folder in the hub's layout with one safetensors file per unit: embedding, each layer, the rest.

A fine-tuned model saved this way shares the bytes of its frozen layers with its base: a content-addressed cache keeps
them once, and equal hashes prove that a layer was not touched.
"""

import errno
import os
import shutil
from collections import defaultdict
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from salf.families import Family
from salf.files import sha256_file, write_json

INDEX: Final = "model.safetensors.index.json"
MODEL: Final[Mapping[str, str]] = {"format": "pt"}  # metadata of a shard


def group_by_unit(parameters: Iterable[str], family: Family, layers: int) -> dict[str, list[str]]:
    """Unit name → its parameters' names, both in order of depth."""
    units: dict[str, list[str]] = defaultdict(list)
    for name in sorted(parameters):
        units[family.unit_of(name, layers)].append(name)
    order = {"embedding": 0, "final": 2}
    return dict(sorted(units.items(), key=lambda item: (order.get(item[0], 1), item[0])))


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] = MODEL) -> None:
    """Write a safetensors file; a full or read-only disk is an ``OSError``, unlike with safetensors."""
    try:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path, dict(metadata))
    except SafetensorError as error:
        text = str(error)
        for code in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EROFS, errno.EACCES):
            if f"os error {code})" in text:
                raise OSError(code, os.strerror(code), str(path)) from error
        raise


def write_index(folder: Path, units: Mapping[str, Iterable[str]]) -> None:
    """Write the index that says which of the folder's shards holds which parameter, and the bytes of all of them."""
    weight_map = {name: f"{unit}.safetensors" for unit, names in units.items() for name in names}
    total = 0
    for unit in units:  # a file is the length of its header in eight bytes, the header, and the tensors
        with (folder / f"{unit}.safetensors").open("rb") as file:
            total += os.fstat(file.fileno()).st_size - 8 - int.from_bytes(file.read(8), "little")
    write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def shard_hashes(folder: Path) -> dict[str, str]:
    """File name → SHA-256 of every shard in a model folder."""
    files = sorted(folder.glob("*.safetensors"))
    with ThreadPoolExecutor() as pool:  # hashing holds no lock of the interpreter's
        return {file.name: digest for file, digest in zip(files, pool.map(sha256_file, files), strict=True)}


def share_file(source: Path, target: Path) -> None:
    """Give ``target`` the bytes of ``source``: a hard link where the file system can, else a copy."""
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)


def plain_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A model's configuration without what belongs to the machine or the packaging it came from."""
    dropped = {"_name_or_path", "_model_name_or_path", "quantization_config"}
    return {key: value for key, value in config.items() if key not in dropped}
