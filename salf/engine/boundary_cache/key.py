"""Keys of boundary states: cached states are used only where everything that decides them is the same."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import torch
import transformers
from torch import Tensor

from salf.engine.batches import Example
from salf.engine.boundary_cache.states import Layout
from salf.engine.models.adapter import CausalModel
from salf.engine.models.shards import plain_config
from salf.engine.runtime import Runtime
from salf.errors import UserError
from salf.files import digest_of, sha256_file

_NOT_OF_STATES: Final = ("transformers_version", "eos_token_id")  # a fine-tuned folder names another end token


@dataclass(frozen=True)
class Key:
    """Everything that decides the bits of a split's boundary states.

    The layers above the boundary are no part of it: other seeds, methods and the evaluation share the states.
    """

    units: tuple[str, ...]  # hashes of the embedding's shard and of those of layers 1..boundary
    given: Mapping[str, Any]  # everything else, the same for every boundary

    @classmethod
    def of(cls, model: CausalModel, runtime: Runtime, units: Sequence[str], layout: Layout) -> Self:
        """The key of a layout's examples after the layers whose shards have the hashes ``units``."""
        config = plain_config(json.loads(model.network.config.to_json_string(use_diff=False)))
        quantised = runtime.frozen_weights in {"int8", "nf4"}  # offloaded layers give the same bits as whole ones
        given = {
            "config": digest_of({name: value for name, value in config.items() if name not in _NOT_OF_STATES}),
            "elsewhere": _elsewhere_digest(model),
            "tokens": _token_digest(layout.examples),
            "shared": layout.shared,
            "batch_tokens": layout.batch_tokens,
            "weights": str(model.network.dtype),
            "compute": runtime.dtype_name,
            "frozen": [runtime.frozen_weights, version("bitsandbytes")] if quantised else [],
            "device": _device_facts(runtime),
            "versions": [torch.__version__, transformers.__version__],
            "code": _code_digest(model),
        }
        return cls(tuple(units), given)

    @property
    def boundary(self) -> int:
        """The last frozen layer."""
        return len(self.units) - 1

    @property
    def digest(self) -> str:
        """Hex SHA-256 of all of it."""
        return digest_of({"units": self.units, **self.given})

    def with_keys_values(self, boundary: int, begun: int, held: str = "exact") -> Self:
        """The key of keys and values at the layers above a boundary, computed from space ``begun`` on."""
        return replace(self, given={**self.given, "keys_values": [boundary, begun, held]})

    def at(self, boundary: int) -> Self:
        """The key of the same examples at a shallower boundary."""
        return replace(self, units=self.units[: boundary + 1])


def frozen_units(shards: Mapping[str, str], boundary: int) -> tuple[str, ...]:
    """Hashes of a base's shards (file name → SHA-256) up to layer ``boundary``, in order of depth."""
    layers = sorted(name for name in shards if name.startswith("layer-"))
    return tuple(shards[name] for name in ["embedding.safetensors", *layers[:boundary]])


def units_in_memory(model: CausalModel, boundary: int) -> tuple[str, ...]:
    """The same of a model's tensors as they are in memory, quantised ones and adapters included."""
    parts = [model.embedding, *model.layers[:boundary]]
    return tuple(tensor_digest(part.state_dict().items()) for part in parts)


def _elsewhere_digest(model: CausalModel) -> str:
    """Digest of the parameters outside embedding, layers, norm and head, such as a table of positions."""
    parts = (model.embedding, model.layers, model.norm, model.head)
    known = {id(parameter) for part in parts for parameter in part.parameters()}
    named = model.network.named_parameters()
    return tensor_digest((name, parameter) for name, parameter in named if id(parameter) not in known)


def tensor_digest(named: Iterable[tuple[str, Tensor]]) -> str:
    """Hex SHA-256 of tensors as they are in memory, and of their names."""
    digest = hashlib.sha256()
    for name, tensor in named:
        if tensor.is_meta:
            raise UserError("frozen weights are offloaded, and have no hash; a boundary cache in memory needs none")
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _token_digest(examples: Sequence[Example]) -> str:
    """Digest of the tokens that are read, in the order of the examples: it decides which of them share a pass."""
    digest = hashlib.sha256(np.array([len(example.inputs) for example in examples], np.int64).tobytes())
    for example in examples:
        digest.update(np.array(example.inputs, np.int64).tobytes())
    return digest.hexdigest()


def _device_facts(runtime: Runtime) -> list[str | int]:
    """Facts that decide a product's last bits: kernels, and the number of threads."""
    if runtime.device.type == "cuda":
        return ["cuda", torch.cuda.get_device_name(runtime.device)]
    return [runtime.device.type, torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()]


def _code_digest(model: CausalModel) -> str:
    """Digest of the sources that compute states: after a change, older states are not used."""
    here = Path(__file__).parent
    files = [here.parent / "batches.py", *sorted(here.glob("*.py")), *sorted((here.parent / "models").glob("*.py"))]
    if type(model.network).__module__.startswith("transformers_modules."):  # code that came with the model
        files += sorted(Path(model.network.name_or_path).glob("*.py"))
    return digest_of([sha256_file(file) for file in files])
