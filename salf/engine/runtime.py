"""Decides how torch runs: device, precision, memory allocator, and what machine this is."""

import ctypes
import os
import platform
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Final

import psutil
import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from salf.engine.models.adapter import Frozen
from salf.errors import UserError
from salf.settings import Device, FrozenWeights

_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_MAX: Final = -4


@dataclass(frozen=True)
class Runtime:
    """The chosen device, the precision that matrices are multiplied in, and how frozen weights are held."""

    device: torch.device
    dtype: torch.dtype
    reason: str
    frozen_weights: FrozenWeights = "whole"

    def frozen(self, layers: int | None = None) -> Frozen:
        """Layers 1..layers (``None``: all) as frozen ones are held here."""
        return Frozen(layers, self.frozen_weights)

    @property
    def dtype_name(self) -> str:
        """``float32`` or ``bfloat16``."""
        return str(self.dtype).removeprefix("torch.")

    def autocast(self) -> torch.autocast:
        """Mixed precision for training: weights stay float32, products run in ``dtype``."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.dtype == torch.bfloat16)

    @contextmanager
    def rounded(self, parts: nn.Module, trained: Collection[nn.Parameter]) -> Iterator[None]:
        """Hold linear maps that do not train as products take them: autocast would round them in every pass.

        On a CPU alone, whose memory has room for both.
        """
        known, here = {id(one) for one in trained}, self.device.type == "cpu" and self.dtype == torch.bfloat16
        linear = (part for part in parts.modules() if here and isinstance(part, nn.Linear))
        maps = [part.weight for part in linear if not is_parametrized(part)]  # others are made in every pass
        whole = [(one, one.data) for one in maps if id(one) not in known and one.dtype == torch.float32]
        for weight, data in whole:
            weight.data = data.to(self.dtype)
        try:
            yield
        finally:
            for weight, data in whole:
                weight.data = data


def choose_runtime(params: Device) -> Runtime:
    """Set the allocator up and pick device and precision: see :func:`find_runtime`.

    It tells glibc not to hand large blocks back to the kernel at every step, which then waits for their pages. Without
    this, a fine-tune at half depth took 1.04 and 1.15 times as long (``allocator`` in
    ``reports/benchmark-2-cores-avx512.json``). It works although torch is loaded by then; other C libraries are left
    alone.
    """
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, -1)
    return find_runtime(params)


def find_runtime(params: Device) -> Runtime:
    """Pick device and precision, and say why; a ``UserError`` says that the device is not there."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    kind = next(name for name, is_there in there.items() if is_there) if params.kind == "auto" else params.kind
    if not there[kind]:
        raise UserError(f"device.kind = {kind}: there is no such device here; set it to auto or cpu")
    fast, reason = _bfloat16(kind)
    if params.dtype != "auto":
        fast, reason = params.dtype == "bfloat16", "as set in params.yaml"
    return Runtime(torch.device(kind), torch.bfloat16 if fast else torch.float32, reason, params.frozen_weights)


def _bfloat16(kind: str) -> tuple[bool, str]:
    """Whether bfloat16 is fast on a device, and why.

    Where a processor has no instruction for its products they are emulated, several times slower than float32.
    """
    if kind == "mps":
        return False, "float32 is the safe choice on this device"
    if kind == "cuda":
        fast = torch.cuda.is_bf16_supported()
        return fast, "this GPU computes bfloat16" if fast else "this GPU does not compute bfloat16"
    if torch.cpu._is_amx_tile_supported():
        return True, "this processor has AMX"
    if torch.cpu._is_avx512_bf16_supported():
        return True, "this processor has AVX512_BF16"
    return False, "this processor has no bfloat16 products: slower"


def machine_facts(runtime: Runtime) -> dict[str, Any]:
    """Facts about the machine for an auditor; no host name, no user name, no path."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "cores": psutil.cpu_count(logical=False) or os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_bytes": psutil.virtual_memory().total,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "device": device_name(runtime.device),
        "dtype": runtime.dtype_name,
        "dtype_reason": runtime.reason,
        "versions": {name: version(name) for name in ("torch", "transformers", "peft", "safetensors", "numpy")},
    }


def device_name(device: torch.device) -> str:
    """The GPU's model, or the kind of another device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def peak_memory_bytes(device: torch.device) -> int:
    """Most memory held so far: of the GPU, or of this process on a CPU (its resident set)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource  # not on Windows, where this is never reached with a POSIX lock file

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024)
