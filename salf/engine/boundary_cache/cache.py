"""The boundary cache as stages use it: it says where a split's passes begin, and keeps what is worth keeping."""

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, Final, Literal, Self

import torch
from torch import Tensor

from salf.engine.answers import Embeddings
from salf.engine.batches import Example, Start
from salf.engine.boundary_cache.folder import GIB, CacheFolder, DiskRates, alone, amount
from salf.engine.boundary_cache.key import Key
from salf.engine.boundary_cache.states import BoundaryStates, FrozenLayers, Layout, Team, Timed, frozen_states, gather
from salf.engine.models.adapter import CausalModel
from salf.engine.runtime import Runtime
from salf.errors import UserError
from salf.memory import free_memory_bytes
from salf.settings import CacheMode

Origin = Literal["computed", "continued", "reused", "off"]
Place = Literal["in memory", "on disk", "in memory and on disk", "nowhere"]

_SAMPLE_SECONDS: Final = 1.0
_OF_FREE_MEMORY: Final = 0.5  # the suffix, its optimizer and its activations need the rest


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
    origin: Origin
    begun: int
    kept: Place
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


def in_memory(size: int, free: int) -> bool:
    """Whether states of so many bytes leave enough of the free memory to training."""
    return size <= _OF_FREE_MEMORY * free


@dataclass(frozen=True)
class CacheSettings:
    """What the parameters say about boundary states."""

    mode: CacheMode
    folder: CacheFolder

    @classmethod
    def of(cls, mode: CacheMode, folder: str, gib: float) -> Self:
        """From ``finetune.cache``, ``cache_folder`` and ``cache_gib``."""
        return cls(mode, CacheFolder(Path(folder), int(gib * GIB)))


@dataclass(frozen=True)
class BoundaryCache:
    """States at a boundary of one model, for one split after another.

    Attributes:
        units: hashes of the embedding's shard and of those of layers 1..boundary (``frozen_units``).
        shared: P, tokens of the shared prefix of all prompts.
        batch_tokens: tokens of a pass through the frozen layers.
        team: several processes that each open the same splits; what they keep in memory they compute together.
    """

    settings: CacheSettings
    model: CausalModel
    runtime: Runtime
    units: Sequence[str]
    shared: int
    batch_tokens: int
    team: Team | None = None

    @property
    def boundary(self) -> int:
        """The last frozen layer."""
        return len(self.units) - 1

    def open(self, examples: Sequence[Example], passes: float) -> Opened:
        """Where passes over ``examples`` begin.

        With ``auto``, measured rates choose between memory and disk, which changes no bit of a result. Frozen layers
        run for every batch only if neither can hold the states, or if the disk is slower than computing.

        Args:
            examples: a split; they share their first ``shared`` tokens.
            passes: how often all of them will be read.

        Raises:
            UserError: memory or disk was asked for and has no room.
        """
        began = time.perf_counter()
        layout = Layout.of(examples, self.shared, self.batch_tokens)
        key = Key.of(self.model, self.runtime, self.units, examples, self.shared, self.batch_tokens)
        opened = _Opening(self, examples, layout, key).opened(passes)
        return replace(opened, seconds=time.perf_counter() - began)

    @cached_property
    def rates(self) -> DiskRates:
        """Of the disk under the folder, measured once."""
        return self.settings.folder.measure()


@dataclass(frozen=True)
class _Opening:
    """A split whose states are wanted."""

    cache: BoundaryCache
    examples: Sequence[Example]
    layout: Layout
    key: Key

    @property
    def folder(self) -> CacheFolder:
        return self.cache.settings.folder

    @property
    def size(self) -> int:
        return self.layout.rows * self.cache.model.state_bytes

    def opened(self, passes: float) -> Opened:
        mode, team = self.cache.settings.mode, self.cache.team
        if mode == "off":
            return self._off("finetune.cache = off")
        if mode == "memory":
            return self._memory(team)
        if mode == "disk":
            return self._disk()
        return self._together(team) if team and self._rather_together(team) else self._auto(passes)

    def _off(self, reason: str) -> Opened:
        cache = self.cache
        start = FrozenLayers.of(cache.model, cache.runtime, cache.boundary, self._prefix)
        return Opened(start, "off", 0, "nowhere", self.size, 0.0, reason)

    def _memory(self, team: Team | None) -> Opened:
        needed = self.size * (team.count if team else 1)
        if needed > (free := free_memory_bytes()):
            raise UserError(
                f"finetune.cache = memory: the boundary states need {amount(needed)} and {amount(free)} of memory "
                "are free; set it to disk, off or auto"
            )
        return self._in_memory("finetune.cache = memory", team)

    def _in_memory(self, reason: str, team: Team | None = None) -> Opened:
        parts = self._parts(team=team)
        return self._done(gather(parts, self.layout.rows), "in memory", parts, reason)

    def _rather_together(self, team: Team) -> bool:
        """Whether several processes compute the states in memory, each a share: the first one decides."""
        decision = torch.zeros(1, device=self.cache.model.device)
        if team.rank == 0:
            there = self.folder.seconds_of(self.key) is not None
            decision[0] = not there and in_memory(team.count * self.size, free_memory_bytes())
        return bool(team.add_up(decision))

    def _together(self, team: Team) -> Opened:
        """Compute together; the first process also writes the states for other runs, if that is worth it."""
        # No lock meanwhile: every process has to come here, and none may wait for a file of another's.
        parts = self._parts(team=team)
        rows = gather(parts, self.layout.rows)
        if team.rank:
            return self._done(rows, "in memory", parts, "computed together")
        try:
            with alone(self.folder.file(self.key)):
                return self._written_too(rows, parts)
        except OSError as error:
            return self._done(rows, "in memory", parts, f"writing failed: {error.strerror}")

    def _disk(self) -> Opened:
        with ExitStack() as lock:
            try:
                lock.enter_context(alone(self.folder.file(self.key)))
            except OSError as error:
                raise UserError(
                    f"finetune.cache = disk: {self.folder.path} cannot be written: {error.strerror}; make it writable, "
                    "set finetune.cache_folder to another folder, or finetune.cache to auto, memory or off"
                ) from None
            reason = "finetune.cache = disk"
            return self._found(reason) or self._streamed(self._continued(), reason)

    def _auto(self, passes: float) -> Opened:
        try:
            with alone(self.folder.file(self.key)):
                return self._found_if_quick() or self._computed(passes)
        except OSError as error:
            reason = f"{self.folder.path} cannot be written: {error.strerror or error}"
        if (found := self._found(reason)) is not None:
            return found
        return self._in_memory(reason) if in_memory(self.size, free_memory_bytes()) else self._off(reason)

    def _found(self, reason: str) -> Opened | None:
        found, boundary = self.folder.find(self.key), self.cache.boundary
        if found is None:
            return None
        return Opened(self._states(found.rows), "reused", boundary, "on disk", self.size, found.seconds, reason)

    def _found_if_quick(self) -> Opened | None:
        computing = self.folder.seconds_of(self.key)
        if computing is None or not (verdict := self.cache.rates.worth_reading(self.size, computing)).yes:
            return None
        return self._found(verdict.reason)

    def _computed(self, passes: float) -> Opened:
        parts = self._continued()
        if in_memory(self.size, free_memory_bytes()):
            return self._written_too(gather(parts, self.layout.rows), parts)
        drawn, before = list[Tensor](), parts.seconds
        for part in parts:
            drawn.append(part)
            if parts.seconds - before > _SAMPLE_SECONDS:
                break
        computing = (parts.seconds - before) * self.layout.rows / sum(map(len, drawn))
        verdict = self.cache.rates.disk_rather_than_off(self.size, computing, passes, self.folder.room())
        return self._streamed(parts, verdict.reason, drawn) if verdict.yes else self._off(verdict.reason)

    def _streamed(self, parts: Timed, reason: str, drawn: Sequence[Tensor] = ()) -> Opened:
        """Write states as they are computed, after those that were ``drawn`` before."""
        self.folder.make_room(self.size)
        rows = self.folder.write(self.key, chain(drawn, parts), self.layout.rows, lambda: parts.seconds)
        return self._done(rows, "on disk", parts, reason)

    def _written_too(self, rows: Tensor, parts: Timed) -> Opened:
        """States in memory, also written to disk if that costs next to nothing."""
        verdict = self.cache.rates.worth_writing(self.size, parts.seconds, self.folder.room())
        if not verdict.yes:
            return self._done(rows, "in memory", parts, verdict.reason)
        try:
            self.folder.make_room(self.size)
            self.folder.write(self.key, [rows], self.layout.rows, lambda: parts.seconds)
        except (OSError, UserError) as error:  # the disk filled up in between; the states are in memory
            reason = error.strerror if isinstance(error, OSError) else error
            return self._done(rows, "in memory", parts, f"writing failed: {reason}")
        return self._done(rows, "in memory and on disk", parts, f"for other runs: {verdict.reason}")

    def _continued(self) -> Timed:
        """The parts to compute, from the deepest boundary whose states are on disk."""
        found = self.folder.find_shallower(self.key)
        if found is None:
            return self._parts()
        below, file = found
        return self._parts(BoundaryStates(below, self.layout, file.rows, self.cache.model.device), file.seconds)

    def _parts(self, start: Start | None = None, seconds: float = 0.0, team: Team | None = None) -> Timed:
        """All parts, from ``start`` on; from the embeddings unless given."""
        cache = self.cache
        start = start or Embeddings.behind(cache.model, self._prefix)
        parts = frozen_states(cache.model, cache.runtime, self.examples, self.layout, start, cache.boundary, team)
        return Timed(parts, seconds, start.space)

    @property
    def _prefix(self) -> tuple[int, ...]:
        return self.examples[0].prompt_ids[: self.cache.shared]

    def _states(self, rows: Tensor) -> BoundaryStates:
        return BoundaryStates(self.cache.boundary, self.layout, rows, self.cache.model.device)

    def _done(self, rows: Tensor, kept: Place, parts: Timed, reason: str) -> Opened:
        origin: Origin = "continued" if parts.begun else "computed"
        return Opened(self._states(rows), origin, parts.begun, kept, self.size, parts.seconds, reason)
