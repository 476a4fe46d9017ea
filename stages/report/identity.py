"""Who and what made the page: the commit, the versions, the machine."""

import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Final

import psutil

LIBRARIES: Final = ("torch", "transformers", "peft", "numpy", "scipy", "scikit-learn", "pandas", "pyarrow", "dvc")

# What a run itself writes says nothing about the code that made it.
_OWN_OUTPUTS: Final = (":(exclude)dvc.lock", ":(exclude)reports", ":(exclude)data")


@dataclass(frozen=True)
class Commit:
    """The commit of the working tree; ``changed`` names tracked files that differ from it."""

    hash: str | None
    changed: tuple[str, ...]


def commit(folder: Path) -> Commit:
    """Ask git for the commit of ``folder`` and for uncommitted changes, the chain's own outputs aside.

    Untracked files count only inside the code's folders: a stray note changes no result.
    """
    head = _git(folder, ["rev-parse", "HEAD"])
    if head is None:
        return Commit(None, ())
    status = _git(folder, ["status", "--porcelain", "--untracked-files=no", "--", ".", *_OWN_OUTPUTS]) or ""
    new = _git(folder, ["ls-files", "--others", "--exclude-standard", "--", "salf", "stages", "flows"]) or ""
    changed = {line[3:] for line in status.splitlines()} | set(new.splitlines())
    return Commit(head.strip(), tuple(sorted(changed)))


def versions(libraries: Sequence[str] = LIBRARIES) -> dict[str, str]:
    """Installed versions by library, Python first; what is not installed is left out."""
    found = {"python": platform.python_version()}
    for library in libraries:
        try:
            found[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, str]:
    """The machine that rendered the page: system, processor, cores, memory."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": str(os.cpu_count() or "unknown"),
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
    }


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def _git(folder: Path, arguments: Sequence[str]) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout
