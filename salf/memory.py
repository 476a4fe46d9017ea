"""How much memory can still be had, and which faults say that there is too little."""

import contextlib
import errno
import os
import re
import resource
from pathlib import Path
from typing import Final

import psutil

_SHARED: Final = Path("/dev/shm")
# As torch, its libraries and safetensors say it of main memory; a GPU's faults have a type of their own.
_NO_MEMORY: Final = re.compile(
    r"can't allocate memory|cannot allocate memory|not enough memory|bad_alloc|unable to mmap|"
    r"failed to map segment|can't start new thread|failed to launch worker thread",
    re.IGNORECASE,
)
_NO_GPU_MEMORY: Final = re.compile(r"(CUDA|MPS|HIP).* out of memory|_ALLOC_FAILED", re.IGNORECASE)


def free_memory_bytes(group: Path = Path("/sys/fs/cgroup")) -> int:
    """Memory that can still be had without swapping: of the machine, or of the container (cgroup v2) if less."""
    free = psutil.virtual_memory().available
    try:
        limit = int((group / "memory.max").read_text())
        facts = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        used = int((group / "memory.current").read_text()) - int(facts["inactive_file"])
    except (OSError, ValueError, KeyError):  # no such control group, or one without a limit
        return free
    return min(free, limit - used)


def shortage(error: BaseException) -> str | None:
    """What there is too little of, if ``error`` says so."""
    text, number = f"{type(error).__name__}: {error}", getattr(error, "errno", None)
    if type(error).__name__ == "OutOfMemoryError" or _NO_GPU_MEMORY.search(text):
        return "GPU memory"
    if str(_SHARED) in text or (number == errno.ENOSPC and _is_full(_SHARED)):
        return f"shared memory ({_SHARED} is full)"
    if not (isinstance(error, MemoryError) or number == errno.ENOMEM or _NO_MEMORY.search(text)):
        return None
    most, _ = resource.getrlimit(resource.RLIMIT_AS)
    if most != resource.RLIM_INFINITY:
        return f"memory (address space is limited to {most / 2**30:.3g} GiB: ulimit -v)"
    return f"memory ({free_memory_bytes() / 2**30:.3g} GiB are free)"


def _is_full(folder: Path) -> bool:
    with contextlib.suppress(OSError):
        return os.statvfs(folder).f_bavail == 0
    return False
