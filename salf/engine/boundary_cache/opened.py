"""Where a split's passes begin, and how that came about: for the run, for its record, and in words."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from salf.engine.answers import Start
from salf.engine.boundary_cache.folder import amount
from salf.engine.boundary_cache.states import BoundaryStates, FrozenLayers
from salf.engine.models.adapter import CausalModel


@dataclass(frozen=True)
class Opened:
    """Where a split's passes begin, and how it came about.

    Attributes:
        start: boundary states, or frozen layers that run for every batch.
        origin: computed; continued from the states of a shallower boundary; reused from disk; off.
        begun: the space that computing began at.
        kept: where the states are; nowhere if off.
        size: bytes of the states.
        seconds_computing: what computing the states took, whenever that was; 0 if off.
        reason: why it was done so.
        seconds: what opening took here.
    """

    start: BoundaryStates | FrozenLayers
    origin: Literal["computed", "continued", "reused", "off"]
    begun: int
    kept: Literal["in memory", "on disk", "in memory and on disk", "nowhere"]
    size: int
    seconds_computing: float
    reason: str
    seconds: float = 0.0

    @property
    def facts(self) -> dict[str, Any]:
        """For the record of what was measured."""
        names = ("origin", "begun", "kept", "size", "seconds_computing", "seconds")
        return {("bytes" if name == "size" else name): getattr(self, name) for name in names}

    @property
    def words(self) -> str:
        """For people."""
        if self.origin == "off":
            return f"computed anew for every batch ({self.reason})"
        how = f"continued from layer {self.begun}" if self.origin == "continued" else self.origin
        return f"{amount(self.size)} {how}, kept {self.kept} ({self.reason})"

    def start_for(self, model: CausalModel) -> Start:
        """The start for another model with the same frozen layers."""
        if isinstance(self.start, BoundaryStates):
            return self.start
        return replace(self.start, model=model, below=replace(self.start.below, model=model))


def print_opened(boundary: int, opened: Mapping[str, Opened]) -> None:
    """One line that says what was done with each split's states, and why."""
    print(f"states behind layer {boundary}: {'; '.join(f'{name} {one.words}' for name, one in opened.items())}")
