"""A source's files: which of them may be read, and the tensors in them under the names that transformers gives today.

Checkpoints are older than conventions: GPT-2's hold their trunk without its name, Pythia's call the head
``embed_out``. transformers understands all of them when it loads. The stages read names and sizes without
loading, so they get the current ones.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Final

from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from salf.engine.models.shards import INDEX
from salf.errors import UserError, reading

_READ: Final = {".safetensors", ".json", ".jinja", ".py", ".model", ".txt"}
_POINTER: Final = b"version https://git-lfs"
_OLD_HEADS: Final = {"gpt_neox": "embed_out."}
_DAMAGED: Final = "damaged, or not downloaded to its end; bring it anew"


@dataclass(frozen=True)
class Stored:
    """A tensor in a safetensors file.

    Attributes:
        file: the file.
        name: what the file calls it.
        shape: its sizes.
        dtype: as safetensors writes it: ``F32``, ``BF16``, ``U8`` …
    """

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str


def check_files(folder: Path) -> None:
    """Refuse a folder of which something is read that lies elsewhere, or that is not the file it stands for.

    Links may end in the folder itself, or where the hub's cache keeps the files of its snapshots.

    Raises:
        UserError: names the file.
    """
    home = folder.resolve()
    places = [home, *([home.parents[1] / "blobs"] if home.parent.name == "snapshots" else [])]
    with reading(folder):
        files = sorted([*folder.iterdir(), *folder.glob("additional_chat_templates/*")])
    for file in files:
        if file.suffix not in _READ:
            continue
        with reading(file):
            target = file.resolve()
        if not any(target.is_relative_to(place) for place in places):
            raise UserError(f"{file}: links to a place outside its folder; put the file itself there")
        if not target.is_file():
            raise UserError(f"{file}: is no file, or links to one that is not there; complete the folder")
        with reading(file), file.open("rb") as opened:
            if opened.read(len(_POINTER)) == _POINTER:
                raise UserError(f"{file}: a git-lfs pointer, not the file itself; run: git lfs pull")


def read_object(file: Path) -> dict[str, Any]:
    """Read a JSON object of the source's.

    Raises:
        UserError: it is not one; numbers that JSON does not have (NaN, Infinity) included.
    """

    def refused(number: str) -> None:
        raise ValueError(f"{number} is no number in JSON")

    with reading(file, "damaged JSON; bring the file anew"):
        found = json.loads(file.read_text(encoding="utf-8"), parse_constant=refused)
        if not isinstance(found, dict):
            raise TypeError(f"a {type(found).__name__} instead of an object")
        return found


def read_headers(folder: Path) -> dict[str, Stored]:
    """Every tensor of the folder's checkpoint, by the name that its file gives it.

    A folder may hold further files: the same weights in their maker's own form (``consolidated``), adapters. As for
    transformers, ``model.safetensors`` is the model where it is there, else what the index names; the index also
    says which of two tensors of one name counts.

    Raises:
        UserError: there is none, a file is damaged or missing, or two files hold a tensor of one name.
    """
    index, whole = folder / INDEX, folder / "model.safetensors"
    places = _indexed(index) if index.exists() and not whole.exists() else {}
    files = [whole] if whole.exists() else [folder / name for name in sorted(set(places.values()))]
    files = files or sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(f"{folder}: holds no .safetensors weights; other formats are not opened")
    found: dict[str, Stored] = {}
    for file in files:
        with reading(file, _DAMAGED), safe_open(file, framework="pt") as shard:
            for name in shard.keys():  # noqa: SIM118
                if places.get(name, file.name) != file.name:
                    continue
                if name in found:
                    raise UserError(f"{folder}: {found[name].file.name} and {file.name} both hold {name}; remove one")
                entry = shard.get_slice(name)
                found[name] = Stored(file, name, tuple(entry.get_shape()), entry.get_dtype())
    return found


def _indexed(index: Path) -> dict[str, str]:
    """Tensor → the file that the index assigns it to."""
    places = read_object(index).get("weight_map")
    if not isinstance(places, Mapping) or not places or not all(isinstance(name, str) for name in places.values()):
        raise UserError(f"{index}: does not say which file holds which weight; bring the folder anew")
    for name in sorted(set(places.values())):
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise UserError(f"{index}: names {name!r}, which is no .safetensors file of its folder")
        if not (index.parent / name).exists():
            raise UserError(f"{index.parent}: {INDEX} names {name}, which is not there; complete the folder")
    return dict(places)


class LazyTensors(Mapping[str, Tensor]):
    """Tensors of safetensors files, each read when asked for; a file's header is parsed once."""

    def __init__(self, stored: Mapping[str, Stored]) -> None:
        self._stored = stored
        self._opened = cache(partial(safe_open, framework="pt"))

    def __getitem__(self, name: str) -> Tensor:
        place = self._stored[name]
        with reading(place.file, _DAMAGED):
            return self._opened(place.file).get_tensor(place.name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)


def current_names(stored: Iterable[str], config: PreTrainedConfig) -> dict[str, str]:
    """Stored name → today's name."""
    network: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    trunk = f"{network.base_model_prefix}." if network else ""
    bare = not any(name.startswith(trunk) for name in stored)
    old_head = _OLD_HEADS.get(config.model_type)
    names = {}
    for name in stored:
        if old_head and name.startswith(old_head):
            names[name] = "lm_head." + name.removeprefix(old_head)
        else:
            names[name] = f"{trunk}{name}" if bare and not name.startswith("lm_head.") else name
    return names
