"""How much memory can still be had, which faults say that there is too little, and what needs less."""

import errno
import os
import re
from pathlib import Path
from typing import Any, Final

import psutil

_SHARED: Final = Path("/dev/shm")
# As torch, its libraries and safetensors say it of main memory; a GPU's faults have a type of their own.
_NO_MEMORY: Final = re.compile(
    r"can't allocate memory|cannot allocate memory|not enough memory|bad_alloc|unable to mmap|"
    r"failed to map segment|can't start new thread|failed to launch worker thread",
    re.IGNORECASE,
)
_NO_GPU_MEMORY: Final = re.compile(r"(CUDA|MPS|HIP).* out of memory|_ALLOC_FAILED", re.IGNORECASE)
# What makes a stage need less.
_LESS: Final = {
    "prepare": "set {data.stream} to a number of rows",
    "trace": "lower {trace.batch_tokens}",
    "signals": "lower {signals.batch_tokens}, for pilots raise {finetune.accumulate}",
    "finetune": "raise {finetune.accumulate}, set {finetune.gradient_checkpointing} to true, "
    "set {finetune.cache} to disk or off, lower {finetune.processes}",
    "evaluate": "lower {evaluate.batch_tokens}",
}


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
    if str(_SHARED) in text or (number == errno.ENOSPC and _SHARED.exists() and os.statvfs(_SHARED).f_bavail == 0):
        return f"shared memory ({_SHARED} is full)"
    if not (isinstance(error, MemoryError) or number == errno.ENOMEM or _NO_MEMORY.search(text)):
        return None
    most = psutil.Process().rlimit(psutil.RLIMIT_AS)[0] if hasattr(psutil, "RLIMIT_AS") else -1
    if most >= 0:  # unlimited is -1
        return f"memory (address space is limited to {most / 2**30:.3g} GiB: ulimit -v)"
    return f"memory ({free_memory_bytes() / 2**30:.3g} GiB are free)"


def advice(stage: str, params: Any = None) -> str:
    """Return the settings that let a stage need less memory, with their values where ``params`` are known."""

    def with_value(found: re.Match[str]) -> str:
        value = getattr(getattr(params, found[1], None), found[2], None)
        return f"{found[1]}.{found[2]}" + ("" if value is None else f" (now {str(value).lower()})")

    text = re.sub(r"{(\w+)\.(\w+)}", with_value, _LESS.get(stage, "end other programs, or raise the limit"))
    return ", ".join(part for part in text.split(", ") if "(now true)" not in part and "(now off)" not in part)
