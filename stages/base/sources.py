"""Where a base model comes from: the embedded one, a local folder, or the hub."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from huggingface_hub import snapshot_download
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from stages.base import embedded
from stages.base.checkpoint import LazyTensors, complete_config, weight_files
from stages.base.names import parameter_names
from stages.common.artifacts import read_json
from stages.common.command import UserError
from stages.common.hub import FAULTS, hub_fault
from stages.common.models.skeleton import without_weights
from stages.common.params import Model

_HUB_FILES: Final = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja"]
# Beside the checkpoint: the same weights once more, as their maker's own tools or others take them.
_NOT_WANTED: Final = ["consolidated*.safetensors", "*/*.safetensors"]


@dataclass(frozen=True)
class Source:
    """A model at its source: what it is called, its configuration, tokenizer and tensors.

    Attributes:
        parameter_names: of the loaded network; its files may hold some of its tensors in parts.
        code: Python files of the model's author, where the user lets them run.
    """

    name: str
    origin: str
    revision: str | None
    config: dict[str, Any]
    tokenizer: PreTrainedTokenizerBase
    tensors: Mapping[str, Tensor]
    parameter_names: tuple[str, ...]
    code: Sequence[Path] = ()


@contextmanager
def open_source(params: Model) -> Iterator[Source]:
    """Open the model that ``params.yaml`` names; tensors are read when they are asked for.

    Raises:
        UserError: it is not there, has no safetensors weights, or cannot be reached.
    """
    if params.source == "embedded":
        yield _embedded()
        return
    folder = Path(params.source).expanduser()
    if folder.is_dir():
        yield _folder(folder, params, name=folder.name, origin="a local folder", revision=None)
        return
    if folder.is_absolute() or params.source.startswith((".", "~")):
        raise UserError(f"model.source = {params.source}: no such folder")
    downloaded = _download(params)
    revision = downloaded.name if re.fullmatch(r"[0-9a-f]{40}", downloaded.name) else params.revision
    yield _folder(downloaded, params, name=params.source, origin="the Hugging Face hub", revision=revision)


def _embedded() -> Source:
    file = embedded.find_gguf()
    with embedded.reading_gguf_once():
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        network = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype="float32")
    config = {**network.config.to_diff_dict(), "architectures": [type(network).__name__]}
    return Source(
        name=embedded.NAME,
        origin=embedded.ORIGIN,
        revision=embedded.SHA256,
        config=config,
        tokenizer=tokenizer,
        tensors=network.state_dict(),
        parameter_names=parameter_names(network),
    )


def _download(params: Model) -> Path:
    wanted = [*_HUB_FILES, *(["*.py"] if params.trust_remote_code else [])]
    try:
        return Path(
            snapshot_download(
                params.source, revision=params.revision, allow_patterns=wanted, ignore_patterns=_NOT_WANTED
            )
        )
    except FAULTS as error:
        meaning = hub_fault(error, "model", params.source, params.revision)
        if meaning is None:
            raise
        raise UserError(f"model.source = {params.source}: {meaning}") from None


def _folder(folder: Path, params: Model, name: str, origin: str, revision: str | None) -> Source:
    files = weight_files(folder)
    if not files:
        raise UserError(f"{folder}: holds no .safetensors weights; other formats are not opened")
    code = _own_code(folder) if params.trust_remote_code else []
    options = {"trust_remote_code": params.trust_remote_code, "local_files_only": True}
    try:
        opened = AutoConfig.from_pretrained(folder, **options)
        tokenizer = AutoTokenizer.from_pretrained(folder, **options)
        names = parameter_names(without_weights(opened, trust_remote_code=params.trust_remote_code))
    except (ImportError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        if "trust_remote_code" in reason:  # transformers names its own argument, and a way to look at the code online
            reason = "it needs code that its author shipped; read that code, then set model.trust_remote_code: true"
        raise UserError(f"{folder}: cannot be opened as a model: {reason[:300]}") from None
    config = complete_config(read_json(folder / "config.json"), opened)
    return Source(
        name=name,
        origin=origin,
        revision=revision,
        config=config if code else {key: value for key, value in config.items() if key != "auto_map"},
        tokenizer=tokenizer,
        tensors=LazyTensors(files, opened),
        parameter_names=names,
        code=code,
    )


def _own_code(folder: Path) -> list[Path]:
    """The Python files beside the model, where the model or its tokenizer is made of classes in them."""
    settings = [folder / name for name in ("config.json", "tokenizer_config.json")]
    calls = [call for file in settings if file.exists() for call in _calls(read_json(file).get("auto_map"))]
    elsewhere = sorted({call.split("--")[0] for call in calls if "--" in call})
    if elsewhere:
        # It would be downloaded whenever a later stage opens the model, at whatever revision it then has.
        raise UserError(
            f"{folder}: its code lies in another repository ({', '.join(elsewhere)}); put it into a copy of this "
            "folder, name it without the repository in auto_map, and set model.source to that copy"
        )
    return sorted(folder.glob("*.py")) if calls else []


def _calls(auto_map: Any) -> list[str]:
    """The classes that an ``auto_map`` names, each ``module.Class`` or ``repository--module.Class``."""
    if isinstance(auto_map, str):
        return [auto_map]
    parts = auto_map.values() if isinstance(auto_map, Mapping) else auto_map or []
    return [call for part in parts for call in _calls(part)]
