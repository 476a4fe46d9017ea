"""Storage of frozen layers' weights while a model is open: whole, in fewer bits, or outside the device.

Eight bits (LLM.int8, arXiv 2208.07339) and four (NF4 with doubly quantised constants, QLoRA, arXiv 2305.14314) are
bitsandbytes', and compute a slightly different function. Weights in main memory or in the model's files come to the
device one map at a time: that changes only time, which a boundary cache pays once.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Final

import torch
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PretrainedConfig

from salf.errors import UserError
from salf.families import family_of
from salf.memory import free_memory_bytes
from salf.settings import FrozenWeights


def without_weights(config: PretrainedConfig, *, trust_remote_code: bool) -> nn.Module:
    """Build the network on torch's meta device, which holds shapes and no numbers."""
    with torch.device("meta"):
        network: nn.Module = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    return network


_MEMORY_SHARE: Final = 0.8  # of free main memory that offloaded layers may take: what runs needs some as well


@dataclass(frozen=True)
class Frozen:
    """A model's frozen layers, and how their weights are stored."""

    layers: int | None  # 1..layers are frozen; ``None``: all of them
    held: FrozenWeights  # ``whole``, ``int8``, ``nf4`` or ``offload``

    def options(
        self, config: PretrainedConfig, device: torch.device, dtype: torch.dtype, *, trust_remote_code: bool
    ) -> dict[str, Any]:
        """Arguments of ``from_pretrained``; none where the layers are held whole."""
        if self.held == "whole" or self.layers == 0:
            return {}
        network = without_weights(config, trust_remote_code=trust_remote_code)
        names = [name for name, _ in network.named_parameters(remove_duplicate=False)]
        path = family_of(config.model_type, names).layers
        frozen = [f"{path}.{number}" for number, _ in network.get_submodule(path).named_children()][: self.layers]
        if self.held == "offload":
            return {"device_map": _places(network, path, frozen, device, dtype)}
        return {"device_map": {"": device}, "quantization_config": _quantisation(self.held, network, frozen, dtype)}


WHOLE: Final = Frozen(layers=0, held="whole")


def compute_as_quantised(network: nn.Module) -> None:
    """Let four-bit maps compute with the values and in the precision that they were opened with, on every processor.

    Where a processor has AVX512_BF16, bitsandbytes 0.50 otherwise packs them again at the first pass: then they
    round their constants and inputs to bfloat16, give no gradients, and refuse widths that are no multiple of 64.
    """
    part: Any
    for part in network.modules():
        if getattr(part, "support_avx512bf16_for_cpu", False):
            part.support_avx512bf16_for_cpu = False


def _quantisation(held: FrozenWeights, network: nn.Module, frozen: list[str], dtype: torch.dtype) -> BitsAndBytesConfig:
    if find_spec("bitsandbytes") is None:
        raise UserError(f"device.frozen_weights = {held}: bitsandbytes is not installed; pip install bitsandbytes")
    # By the names of the maps themselves: a pattern of a layer would do for the trained ones, and leave the head.
    others = [
        name
        for name, part in network.named_modules()
        if not list(part.children()) and not name.startswith(tuple(f"{layer}." for layer in frozen))
    ]
    return BitsAndBytesConfig(
        load_in_8bit=held == "int8",
        load_in_4bit=held == "nf4",
        llm_int8_skip_modules=others,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def _places(
    network: nn.Module, layers: str, frozen: list[str], device: torch.device, dtype: torch.dtype
) -> dict[str, str]:
    """The device of every part of the network: frozen layers outside the device, all else on it."""
    size = sum(p.numel() for name in frozen for p in network.get_submodule(name).parameters()) * dtype.itemsize
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # processes of a launcher's: each holds the layers
    fits = here * size <= _MEMORY_SHARE * free_memory_bytes()
    outside = "cpu" if device.type != "cpu" and fits else "disk"
    return {name: outside if name in frozen else str(device) for name in _parts(network, layers)}


def _parts(network: nn.Module, layers: str, at: str = "") -> Iterator[str]:
    """The single layers, and the other modules of their parents."""
    for name, _ in network.get_submodule(at).named_children():
        path = f"{at}.{name}".lstrip(".")
        if path == layers or layers.startswith(f"{path}."):
            yield from _parts(network, layers, path)
        else:
            yield path
