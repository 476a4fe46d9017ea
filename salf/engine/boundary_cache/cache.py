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
from salf.engine.boundary_cache.folder import (
    GIB,
    CacheFolder,
    DiskRates,
    alone,
    amount,
    disk_rather_than_off,
    in_memory,
    worth_reading,
    worth_writing,
)
from salf.engine.boundary_cache.key import Key
from salf.engine.boundary_cache.states import BoundaryStates, FrozenLayers, Layout, Team, Timed, frozen_states, gather
from salf.engine.models.adapter import CausalModel
from salf.engine.runtime import Runtime
from salf.errors import UserError
from salf.memory import free_memory_bytes
from salf.settings import CacheMode


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


_SAMPLE_SECONDS: Final = 1.0


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
class _Split:
    """A split and what its states are and need."""

    examples: Sequence[Example]
    layout: Layout
    key: Key
    size: int


@dataclass(frozen=True)
class BoundaryCache:
    """States behind layers 1..boundary of one model, for one split after another.

    Attributes:
        units: hashes of the embedding's shard and of those of layers 1..boundary (``frozen_units``).
        shared: P, tokens of the beginning that all prompts share.
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

        With ``auto``, memory and disk are chosen between by what is measured, which changes no bit of a
        result; frozen layers run for every batch only where neither can hold the states, or where the
        disk is slower than computing.

        Args:
            examples: a split; they share their first ``shared`` tokens.
            passes: how often all of them will be read.

        Raises:
            UserError: memory or disk was asked for and has no room.
        """
        began = time.perf_counter()
        split = self._split(examples)
        mode = self.settings.mode
        if mode == "off":
            opened = self._off(split, "finetune.cache = off")
        elif mode == "memory":
            opened = self._memory(split)
        elif mode == "disk":
            opened = self._disk(split)
        elif self.team and self._rather_together(split, self.team):
            opened = self._shared_out(split)
        else:
            opened = self._auto(split, passes)
        return replace(opened, seconds=time.perf_counter() - began)

    def _split(self, examples: Sequence[Example]) -> _Split:
        layout = Layout.of(examples, self.shared, self.batch_tokens)
        key = Key.of(self.model, self.runtime, self.units, examples, self.shared, self.batch_tokens)
        return _Split(examples, layout, key, layout.rows * self.model.state_bytes)

    def _off(self, split: _Split, reason: str) -> Opened:
        beginning = split.examples[0].prompt_ids[: self.shared]
        start = FrozenLayers.of(self.model, self.runtime, self.boundary, beginning)
        return Opened(start, "off", 0, "nowhere", split.size, 0.0, reason)

    def _memory(self, split: _Split) -> Opened:
        needed = split.size * (self.team.count if self.team else 1)
        if needed > (free := free_memory_bytes()):
            raise UserError(
                f"finetune.cache = memory: the boundary states need {amount(needed)} and {amount(free)} of memory "
                "are free; set it to disk, off or auto"
            )
        return self._in_memory(split, "finetune.cache = memory", self.team)

    def _in_memory(self, split: _Split, reason: str, team: Team | None = None) -> Opened:
        parts = self._parts(split, self._embeddings(split), team=team)
        return self._opened(split, gather(parts, split.layout.rows), "in memory", parts, 0, reason)

    def _rather_together(self, split: _Split, team: Team) -> bool:
        """Whether several processes compute the states in memory, each a share: the first one decides."""
        told = torch.zeros(1, device=self.model.device)
        if team.rank == 0:
            there = self.settings.folder.seconds_of(split.key) is not None
            told[0] = not there and in_memory(team.count * split.size, free_memory_bytes())
        return bool(team.add_up(told))

    def _shared_out(self, split: _Split) -> Opened:
        """Compute together; the first process keeps the states for other runs, where that is worth it."""
        # No lock meanwhile: every process has to come here, and none may wait for a file of another's.
        parts = self._parts(split, self._embeddings(split), team=self.team)
        rows = gather(parts, split.layout.rows)
        if self.team is None or self.team.rank:
            return self._opened(split, rows, "in memory", parts, 0, "computed together")
        try:
            with alone(self.settings.folder.file(split.key)):
                return self._kept_too(split, rows, parts, 0)
        except OSError as error:
            return self._opened(split, rows, "in memory", parts, 0, f"writing failed: {error.strerror}")

    def _disk(self, split: _Split) -> Opened:
        folder = self.settings.folder
        with ExitStack() as held:
            try:
                held.enter_context(alone(folder.file(split.key)))
            except OSError as error:
                raise UserError(
                    f"finetune.cache = disk: {folder.path} cannot be written: {error.strerror}; make it writable, set "
                    "finetune.cache_folder to another folder, or finetune.cache to auto, memory or off"
                ) from None
            if (found := folder.find(split.key)) is not None:
                return self._reused(split, found.rows, found.seconds, "finetune.cache = disk")
            parts, begun = self._continued(split)
            folder.make_room(split.size)
            rows = folder.write(split.key, parts, split.layout.rows, lambda: parts.seconds)
        return self._opened(split, rows, "on disk", parts, begun, "finetune.cache = disk")

    def _auto(self, split: _Split, passes: float) -> Opened:
        folder = self.settings.folder
        try:
            with alone(folder.file(split.key)):
                return self._reuse_if_quick(split) or self._compute_and_keep(split, passes)
        except OSError as error:
            reason = f"{folder.path} cannot be written: {error.strerror or error}"
        if (found := folder.find(split.key)) is not None:
            return self._reused(split, found.rows, found.seconds, reason)
        if in_memory(split.size, free_memory_bytes()):
            return self._in_memory(split, reason)
        return self._off(split, reason)

    def _reuse_if_quick(self, split: _Split) -> Opened | None:
        folder = self.settings.folder
        computing = folder.seconds_of(split.key)
        if computing is None or not (verdict := worth_reading(split.size, computing, self._rates)).yes:
            return None
        found = folder.find(split.key)
        return self._reused(split, found.rows, found.seconds, verdict.reason) if found is not None else None

    def _compute_and_keep(self, split: _Split, passes: float) -> Opened:
        parts, begun = self._continued(split)
        if not in_memory(split.size, free_memory_bytes()):
            return self._beyond_memory(split, parts, begun, passes)
        return self._kept_too(split, gather(parts, split.layout.rows), parts, begun)

    def _kept_too(self, split: _Split, rows: Tensor, parts: Timed, begun: int) -> Opened:
        """States that are in memory, put on disk too where that costs next to nothing."""
        folder = self.settings.folder
        verdict = worth_writing(split.size, parts.seconds, folder.room(), self._rates)
        if not verdict.yes:
            return self._opened(split, rows, "in memory", parts, begun, verdict.reason)
        try:
            folder.make_room(split.size)
            folder.write(split.key, [rows], split.layout.rows, lambda: parts.seconds)
        except (OSError, UserError) as error:  # a disk that filled up meanwhile; the states are here
            reason = error.strerror if isinstance(error, OSError) else error
            return self._opened(split, rows, "in memory", parts, begun, f"writing failed: {reason}")
        return self._opened(split, rows, "in memory and on disk", parts, begun, f"for other runs: {verdict.reason}")

    def _beyond_memory(self, split: _Split, parts: Timed, begun: int, passes: float) -> Opened:
        folder, drawn, rows = self.settings.folder, list[Tensor](), 0
        before = parts.seconds
        for part in parts:
            drawn.append(part)
            rows += len(part)
            if parts.seconds - before > _SAMPLE_SECONDS:
                break
        computing = (parts.seconds - before) * split.layout.rows / rows
        verdict = disk_rather_than_off(split.size, computing, passes, folder.room(), self._rates)
        if not verdict.yes:
            return self._off(split, verdict.reason)
        folder.make_room(split.size)
        mapped = folder.write(split.key, chain(drawn, parts), split.layout.rows, lambda: parts.seconds)
        return self._opened(split, mapped, "on disk", parts, begun, verdict.reason)

    def _embeddings(self, split: _Split) -> Embeddings:
        return Embeddings.behind(self.model, split.examples[0].prompt_ids[: self.shared])

    def _continued(self, split: _Split) -> tuple[Timed, int]:
        """The parts to compute, from the deepest boundary whose states are there, and that boundary."""
        found = self.settings.folder.find_shallower(split.key)
        if found is None:
            return self._parts(split, self._embeddings(split)), 0
        below, file = found
        return self._parts(
            split, BoundaryStates(below, split.layout, file.rows, self.model.device), file.seconds
        ), below

    def _parts(self, split: _Split, start: Start, seconds: float = 0.0, team: Team | None = None) -> Timed:
        parts = frozen_states(self.model, self.runtime, split.examples, split.layout, start, self.boundary, team)
        return Timed(parts, seconds)

    def _states(self, split: _Split, rows: Tensor) -> BoundaryStates:
        return BoundaryStates(self.boundary, split.layout, rows, self.model.device)

    def _reused(self, split: _Split, rows: Tensor, seconds: float, reason: str) -> Opened:
        return Opened(self._states(split, rows), "reused", self.boundary, "on disk", split.size, seconds, reason)

    def _opened(
        self,
        split: _Split,
        rows: Tensor,
        kept: Literal["in memory", "on disk", "in memory and on disk"],
        parts: Timed,
        begun: int,
        reason: str,
    ) -> Opened:
        origin: Literal["computed", "continued"] = "continued" if begun else "computed"
        return Opened(self._states(split, rows), origin, begun, kept, split.size, parts.seconds, reason)

    @cached_property
    def _rates(self) -> DiskRates:
        return self.settings.folder.measure()
