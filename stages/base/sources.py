"""Where a base model comes from: the embedded one, a local folder, or the hub."""

import json
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil
import torch
from huggingface_hub import snapshot_download
from tokenizers import Tokenizer
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TokenizersBackend,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.utils.logging import disable_progress_bar

from salf.engine.models.frozen import without_weights
from salf.errors import UserError, reading
from stages.base import embedded
from stages.base.check import beyond, check_vocabulary, parameter_names, shown
from stages.base.checkpoint import LazyTensors, check_files, current_names, read_headers, read_object
from stages.base.config import check_counts, check_ids, complete_config, read_config
from stages.common.hub import FAULTS, hub_fault
from stages.common.params import Model

_HUB_FILES: Final = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja"]
# Beside the checkpoint: the same weights once more, as their maker's own tools or others take them.
_NOT_WANTED: Final = ["consolidated*.safetensors", "*/*.safetensors"]

_TOKENIZER: Final = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_MEMORY: Final = 2 << 30  # bytes, for a configuration and a network without numbers
_SECONDS: Final = 120  # of processor time, for the same
_TRIAL: Final = """
import resource, string, sys
for kind, most in zip((resource.RLIMIT_AS, resource.RLIMIT_CPU, resource.RLIMIT_CORE), (*map(int, sys.argv[2:]), 0)):
    resource.setrlimit(kind, (most, most))
from tokenizers import Tokenizer
Tokenizer.from_file(sys.argv[1]).encode(string.printable)
"""


@dataclass(frozen=True)
class Source:
    """A model at its source: what it is called, its configuration, tokenizer and tensors.

    Attributes:
        parameter_names: of the loaded network; its files may hold some of its tensors in parts.
        code: Python files of the model's author, where the user lets them run.
        generation: ``generation_config.json``, where there is one.
        notes: what the user should know of how it was read.
    """

    name: str
    origin: str
    revision: str | None
    config: dict[str, Any]
    tokenizer: PreTrainedTokenizerBase
    tensors: Mapping[str, Tensor]
    parameter_names: tuple[str, ...]
    code: Sequence[Path] = ()
    generation: dict[str, Any] | None = None
    notes: Sequence[str] = ()


@contextmanager
def open_source(params: Model) -> Iterator[Source]:
    """Open the model that ``params.yaml`` names; tensors are read when they are asked for.

    Raises:
        UserError: it is not there, has no safetensors weights, or cannot be reached.
    """
    if params.source == "embedded":
        yield _embedded()
        return
    with reading(f"model.source = {params.source[:200]}", "no name of a folder or model"):
        folder = Path(params.source).expanduser()
        is_folder = folder.is_dir()
    if is_folder:
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
        tensors=dict(network.named_parameters()),
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
    disable_progress_bar()  # nothing is loaded here but names and shapes
    check_files(folder)
    file = folder / "config.json"
    raw = read_config(folder)
    headers = read_headers(folder)
    check_counts(file, raw, headers)
    code = _own_code(folder) if params.trust_remote_code else []
    with _opening(file), _bounded():
        opened = AutoConfig.from_pretrained(folder, trust_remote_code=params.trust_remote_code, local_files_only=True)
    if not code and type(opened) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UserError(f"{file}: model type {opened.model_type!r} is no causal language model; name one that is")
    config = complete_config(raw, opened)
    check_counts(file, config, headers)
    check_ids(file, config, opened.vocab_size)
    stored = {today: headers[old] for old, today in current_names(headers, opened).items()}
    if len(stored) != len(headers):
        raise UserError(f"{folder}: the weights hold the head twice, by an old and by a new name; remove one")
    tensors = LazyTensors(stored)

    def network() -> PreTrainedModel:
        with _opening(file), _bounded():
            return without_weights(opened, trust_remote_code=params.trust_remote_code)

    built = network()
    notes = []
    for head, embedding in built.all_tied_weights_keys.items():
        if head in stored and embedding not in stored:
            stored[embedding] = stored.pop(head)
        elif head in stored and _equal(tensors[head], tensors[embedding]):
            del stored[head]
        elif head in stored:
            opened.tie_word_embeddings = False
            notes.append(
                f"{head} differs from the embedding that config.json ties it to: it is kept, and no longer tied"
            )
    if not opened.tie_word_embeddings:
        built = network()
    config["tie_word_embeddings"] = bool(built.all_tied_weights_keys)
    names, rows = parameter_names(built), built.get_input_embeddings().weight.shape[0]
    others = beyond(stored, tensors, built, str(folder))
    for other in others:
        del stored[other]
    if others:
        notes.append(f"left aside: {len(others)} tensors that the model has no place for ({shown(others)})")
    tokenizer = _tokenizer(folder, notes, trust_remote_code=params.trust_remote_code)
    check_vocabulary(folder, tokenizer, rows)
    return Source(
        name=name,
        origin=origin,
        revision=revision,
        config=config if code else {key: value for key, value in config.items() if key != "auto_map"},
        tokenizer=tokenizer,
        tensors=tensors,
        parameter_names=names,
        code=code,
        generation=_generation(folder / "generation_config.json", rows),
        notes=notes,
    )


def _tokenizer(folder: Path, notes: list[str], *, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    """What transformers opens, unless its class leaves out rules of ``tokenizer.json``: then what the file says."""
    settings = [folder / name for name in _TOKENIZER if (folder / name).exists()]
    for file in settings:
        read_object(file)
    _try_tokenizer(folder / _TOKENIZER[0])
    options = {"trust_remote_code": trust_remote_code, "local_files_only": True}
    with _opening(settings[0] if settings else folder, "cannot be opened as a tokenizer"):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, **options)
        file, kind = folder / _TOKENIZER[0], type(tokenizer)
        ours = not kind.__module__.startswith("transformers_modules")
        if ours and file.exists() and _rules(Tokenizer.from_file(str(file))) != _rules(tokenizer.backend_tokenizer):
            tokenizer = TokenizersBackend.from_pretrained(folder, **options)
            notes.append(
                f"tokenizer.json is read as it is: transformers' {kind.__name__} would split texts into other tokens "
                "(open the tokenizer with TokenizersBackend elsewhere, too)"
            )
    return tokenizer


def _rules(tokenizer: Tokenizer) -> list[Any]:
    """How a text is normalised, split and made into tokens, the vocabulary aside."""
    made = json.loads(tokenizer.to_str())
    model = {key: value for key, value in made["model"].items() if key not in ("vocab", "merges")}
    return [made["normalizer"], made["pre_tokenizer"], model]


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one.float(), other.float())


def _generation(file: Path, rows: int) -> dict[str, Any] | None:
    if not file.exists():
        return None
    said = read_object(file)
    with reading(file):
        GenerationConfig.from_pretrained(file.parent, local_files_only=True)
    check_ids(file, said, rows)
    return said


@contextmanager
def _opening(file: Path, fault: str = "cannot be opened as a model") -> Iterator[None]:
    """Like :func:`reading`; that transformers wants the author's code to run is said in this project's words."""
    with reading(file, fault):
        try:
            yield
        except ValueError as error:
            if "trust_remote_code" not in str(error):  # its own argument, and a way to look at the code online
                raise
            raise UserError(
                f"{file.parent}: cannot be opened as a model: it needs code that its author shipped; read that code, "
                "then set model.trust_remote_code: true"
            ) from None


@contextmanager
def _bounded() -> Iterator[None]:
    """Limit the memory and processor time that a configuration makes transformers take, labels and layers by number.

    Raises:
        ValueError: it takes more.
    """

    def late(*_: object) -> None:
        raise TimeoutError(f"what it describes takes more than {_SECONDS} s to build")

    before, limit = signal.signal(signal.SIGPROF, late), resource.getrlimit(resource.RLIMIT_AS)
    most = psutil.Process().memory_info().vms + _MEMORY
    if limit[0] in (resource.RLIM_INFINITY, -1) or limit[0] > most:
        with suppress(ValueError, OSError):  # a system without such a limit
            resource.setrlimit(resource.RLIMIT_AS, (most, limit[1]))
    signal.setitimer(signal.ITIMER_PROF, _SECONDS)
    try:
        yield
    except MemoryError:
        raise ValueError(f"what it describes takes more than {_MEMORY >> 30} GiB") from None
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
        resource.setrlimit(resource.RLIMIT_AS, limit)


def _try_tokenizer(file: Path) -> None:
    """Load the tokenizer and read a line with it in a process of its own, which may abort.

    Raises:
        UserError: it takes more memory or time than any tokenizer needs.
    """
    trial = subprocess.run([sys.executable, "-c", _TRIAL, file, str(_MEMORY), str(_SECONDS)], capture_output=True)
    if trial.returncode < 0:  # ended by a signal: out of memory or time
        raise UserError(
            f"{file}: a line takes more than {_MEMORY >> 30} GiB or {_SECONDS} s; take the model from its maker"
        )


def _own_code(folder: Path) -> list[Path]:
    """The Python files beside the model, where the model or its tokenizer is made of classes in them."""
    settings = [folder / name for name in ("config.json", "tokenizer_config.json")]
    calls = [call for file in settings if file.exists() for call in _calls(read_object(file).get("auto_map"))]
    if strange := [call for call in calls if not re.fullmatch(r"([\w./-]+--)?\w+(\.\w+)+", call)]:
        raise UserError(f"{folder}: auto_map names {strange[0]!r}, which is no class in a file of this folder")
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
    parts = auto_map.values() if isinstance(auto_map, Mapping) else auto_map if isinstance(auto_map, list) else []
    return [call for part in parts for call in _calls(part)]
