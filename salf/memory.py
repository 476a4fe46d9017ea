"""Measures free memory."""

from pathlib import Path

import psutil


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
