"""Where boundary states are kept when the parameters leave it open."""

from dataclasses import dataclass
from typing import Final

from salf.engine.boundary_cache.folder import DiskRates, amount

_OF_FREE_MEMORY: Final = 0.5  # the suffix, its optimizer and its activations need the rest
_NEXT_TO_NOTHING: Final = 0.1  # of the seconds of computing
_NOT_WORTH_A_THOUGHT: Final = 0.2  # seconds


@dataclass(frozen=True)
class Verdict:
    """A decision, and the numbers that led to it."""

    yes: bool
    reason: str


def in_memory(size: int, free: int) -> bool:
    """Whether states of so many bytes leave enough of the free memory to training."""
    return size <= _OF_FREE_MEMORY * free


def worth_reading(size: int, computing: float, rates: DiskRates) -> Verdict:
    """Whether states on disk come faster from there than from computing them anew.

    Args:
        size: bytes.
        computing: seconds that computing them took.
        rates: the disk's.
    """
    reading = size / rates.read
    return Verdict(
        reading <= max(computing, _NOT_WORTH_A_THOUGHT),
        f"reading {amount(size)} takes about {reading:.1f} s, computing took {computing:.1f} s",
    )


def worth_writing(size: int, computing: float, room: int, rates: DiskRates) -> Verdict:
    """Whether states that are in memory go to disk too, for other runs.

    Args:
        size: bytes.
        computing: seconds that computing them took.
        room: bytes that the folder can take.
        rates: the disk's.
    """
    if size > room:
        return Verdict(False, f"the cache folder has no room for {amount(size)}")
    writing = size / rates.write
    cheap = writing <= max(_NEXT_TO_NOTHING * computing, _NOT_WORTH_A_THOUGHT)
    return Verdict(cheap, f"writing takes about {writing:.1f} s, computing took {computing:.1f} s")


def disk_rather_than_off(size: int, computing: float, passes: float, room: int, rates: DiskRates) -> Verdict:
    """For states that memory cannot hold: whether to keep them on disk or to compute them for every batch.

    Args:
        size: bytes.
        computing: seconds that computing them once takes, by a sample.
        passes: how often training reads all of them.
        room: bytes that the folder can take.
        rates: the disk's.
    """
    without = f"{amount(size)} are too much for memory; "
    if size > room:
        return Verdict(False, f"{without}the cache folder has no room for them")
    kept, anew = computing + size / rates.write + passes * size / rates.read, passes * computing
    text = f"{without}on disk about {kept:.0f} s over all epochs, computed for every batch {anew:.0f} s"
    return Verdict(kept <= anew, text)
