"""Where a base model comes from: the embedded one, a local folder, or the hub."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from stages.base import embedded
from stages.base.checkpoint import LazyTensors, complete_config
from stages.base.names import loaded_names, parameter_names
from stages.common.artifacts import read_json
from stages.common.command import UserError
from stages.common.params import Model

_HUB_FILES: Final = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja"]


@dataclass(frozen=True)
class Source:
    """A model at its source: what it is called, its configuration, tokenizer and tensors.

    Attributes:
        parameter_names: of the loaded network; its files may hold some of its tensors in parts.
    """

    name: str
    origin: str
    revision: str | None
    config: dict[str, Any]
    tokenizer: PreTrainedTokenizerBase
    tensors: Mapping[str, Tensor]
    parameter_names: tuple[str, ...]


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
    try:
        return Path(snapshot_download(params.source, revision=params.revision, allow_patterns=_HUB_FILES))
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, ConnectionError):
        raise UserError(
            f"model.source = {params.source}: no such folder, not in the hub's cache, and the hub cannot be reached"
        ) from None
    except (HfHubHTTPError, HFValidationError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"model.source = {params.source}: {reason}") from None


def _folder(folder: Path, params: Model, name: str, origin: str, revision: str | None) -> Source:
    if not list(folder.glob("*.safetensors")):
        raise UserError(f"{folder}: holds no .safetensors weights; other formats are not opened")
    options = {"trust_remote_code": params.trust_remote_code, "local_files_only": True}
    try:
        opened = AutoConfig.from_pretrained(folder, **options)
        tokenizer = AutoTokenizer.from_pretrained(folder, **options)
        names = loaded_names(opened, trust_remote_code=params.trust_remote_code)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{folder}: cannot be opened as a model: {reason[:300]}") from None
    return Source(
        name=name,
        origin=origin,
        revision=revision,
        config=complete_config(read_json(folder / "config.json"), opened),
        tokenizer=tokenizer,
        tensors=LazyTensors(folder, opened),
        parameter_names=names,
    )
