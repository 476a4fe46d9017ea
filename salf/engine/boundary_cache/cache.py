"""The boundary cache as stages use it (ours): it says where a split's passes begin, and keeps what is worth keeping.

It keeps boundary states, and for training on the answer side the keys and values of prompts, by the same rules.
"""

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Final, Literal, Self

from torch import Tensor

from salf.engine.batches import Example, Split, Start
from salf.engine.boundary_cache.folder import (
    GIB,
    PROBE_BYTES,
    CacheFolder,
    Key,
    alone,
    amount,
    disk_rate,
    write_states,
)
from salf.engine.boundary_cache.prompts import Columns, PromptLayers, PromptRows, Tap, before, prompt_rows, prompts_of
from salf.engine.boundary_cache.states import BoundaryStates, FrozenLayers, Layout, Timed, frozen_states, gather
from salf.engine.models.adapter import CausalModel
from salf.engine.runtime import Runtime
from salf.engine.training.processes import ALONE, Processes
from salf.errors import UserError
from salf.memory import free_memory_bytes
from salf.settings import CacheMode, KeysValues

Origin = Literal["computed", "continued", "reused", "off"]
Place = Literal["in memory", "on disk", "in memory and on disk", "nowhere"]

_OF_FREE_MEMORY: Final = 0.5  # the suffix, its optimizer and its activations need the rest


@dataclass(frozen=True)
class Opened:
    """The start of a split's passes, and how it was obtained."""

    start: BoundaryStates | FrozenLayers | PromptRows | PromptLayers  # rows, or layers that run for every batch
    origin: Origin  # computed; continued from the states of a shallower boundary; reused from disk; off
    begun: int  # the space that computing began at
    kept: Place  # where the states are; nowhere if off
    size: int  # bytes of the states
    seconds_computing: float  # what computing the states took, whenever that was; 0 if off
    reason: str  # why it was done so
    seconds: float = 0.0  # what opening took here

    @property
    def facts(self) -> dict[str, Any]:
        """For the record of what was measured."""
        names = ("origin", "begun", "kept", "seconds_computing", "seconds")
        int8 = isinstance(self.start, PromptRows) and self.start.columns.int8
        return {"bytes": self.size, "int8": int8, **{name: getattr(self, name) for name in names}}

    @property
    def words(self) -> str:
        """A description for the log."""
        if self.origin == "off":
            return f"recomputed for every batch ({self.reason})"
        how = f"continued from layer {self.begun}" if self.origin == "continued" else self.origin
        return f"{amount(self.size)} {how}, cached {self.kept} ({self.reason})"

    @property
    def rows(self) -> BoundaryStates | None:
        """The boundary states; ``None`` where frozen layers run for every batch."""
        return self.start if isinstance(self.start, BoundaryStates) else None

    def start_for(self, model: CausalModel) -> Start:
        """The start for another model with the same frozen layers."""
        if isinstance(self.start, BoundaryStates):
            return self.start
        assert isinstance(self.start, FrozenLayers), "boundary states"
        return replace(self.start, model=model, below=replace(self.start.below, model=model))

    @property
    def source(self) -> PromptRows | PromptLayers:
        """What gives prompts' keys and values."""
        assert isinstance(self.start, PromptRows | PromptLayers), "keys and values of prompts"
        return self.start


def print_opened(what: str, opened: Mapping[str, Opened]) -> None:
    """One line that says what was done with each split's states, and why."""
    print(f"{what}: {'; '.join(f'{name} {one.words}' for name, one in opened.items())}")


def _fits_memory(size: int) -> bool:
    return size <= _OF_FREE_MEMORY * free_memory_bytes()


@dataclass(frozen=True)
class CacheSettings:
    """The parameters of the boundary states' cache."""

    mode: CacheMode
    folder: CacheFolder
    keys_values: KeysValues = "exact"  # of prompts

    @classmethod
    def of(cls, mode: CacheMode, folder: str, gib: float, keys_values: KeysValues = "exact") -> Self:
        """From ``finetune.cache``, ``cache_folder``, ``cache_gib`` and ``answer_side.keys_values``."""
        return cls(mode, CacheFolder(Path(folder), int(gib * GIB)), keys_values)


@dataclass(frozen=True)
class BoundaryCache:
    """States at a boundary of one model, for one split after another."""

    settings: CacheSettings
    model: CausalModel
    runtime: Runtime
    units: Sequence[str]  # hashes of the embedding's shard and of those of layers 1..boundary (``frozen_units``)
    shared: int  # P, tokens of the shared prefix of all prompts
    batch_tokens: int  # tokens of a pass through the frozen layers
    processes: Processes = ALONE  # that open the same splits: what they keep in memory they compute together
    tap: Tap | None = None  # of prompts, what their pass fills; of states, where they are already

    @property
    def boundary(self) -> int:
        """The last frozen layer."""
        return len(self.units) - 1

    def open(self, examples: Sequence[Example]) -> Opened:
        """Return the start of passes over ``examples``, whose first ``shared`` tokens are equal.

        With ``auto``, memory comes first and the disk second, which changes no bit of a result. Frozen layers run for
        every batch only if neither can hold the states. A ``UserError`` says that the requested place has no room.
        """
        began = time.perf_counter()
        layout = Layout.of(examples, self.shared, self.batch_tokens)
        opened = _Opening(self, layout, self._key(layout)).opened()
        return replace(opened, seconds=time.perf_counter() - began)

    def open_prompts(
        self, split: Split, boundary: int, states: Opened | None, base: Callable[[], CausalModel]
    ) -> Opened:
        """Prompts' keys and values for passes over the answer side of ``split``; ``units`` are all layers'.

        They are those of the layers above ``boundary``, computed from ``states`` of whole examples there, or from the
        embeddings. ``base`` opens the base model once more, should it have to read the prompts of every batch.
        """
        began, rows = time.perf_counter(), split.base_rows
        assert rows is not None, "examples that were split at their prompts' ends"
        start = replace(states.rows, layout=before(states.rows.layout, rows)) if states and states.rows else None
        layout = Layout.of(prompts_of(split.examples, rows), self.shared, self.batch_tokens)
        columns = self._columns(Columns.of(self.model, self.runtime, boundary), layout)
        begun = self.tap.space if self.tap else boundary if start else 0
        tapped = [self._key(self.tap.layout).digest] if self.tap else []
        key = self._key(layout).with_keys_values(boundary, begun, "int8" if columns.int8 else "exact", *tapped)
        if self.tap:
            layout = Layout.of(layout.examples, self.shared, self.batch_tokens, self.tap.layout.groups)
        opened = _PromptOpening(self, layout, key, columns, start, base).opened()
        return replace(opened, begun=0 if opened.origin == "off" else begun, seconds=time.perf_counter() - began)

    def open_both(self, split: Split, boundary: int, base: Callable[[], CausalModel]) -> tuple[Opened, Opened]:
        """Prompts' keys and values at all layers, and the states of whole examples at a boundary; ``units``: all.

        One pass computes both, of whose seconds the states take the share of their layers. The states have a pass of
        their own where prompts are on disk or not cached, memory does not hold both, or several processes compute.
        """
        layout = Layout.of(split.examples, self.shared, self.batch_tokens)
        fit, units = _fits_memory(layout.rows * self.model.state_bytes), self.units[: boundary + 1]
        tap = Tap(layout, boundary, [] if fit else deque(maxlen=0))
        prompts = replace(self, tap=tap if self.processes.count == 1 else None).open_prompts(split, 0, None, base)
        filled = prompts.origin == "computed" and len(tap.parts) > 0
        if filled:
            tap.seconds = prompts.seconds_computing * boundary / self.model.depth
            prompts = replace(prompts, seconds_computing=prompts.seconds_computing - tap.seconds)
        elif not fit:
            prompts = replace(prompts, begun=0)
        return prompts, replace(self, units=units, tap=tap if filled else None).open(split.examples)

    def _columns(self, exact: Columns, layout: Layout) -> Columns:
        """Exact keys and values, or 8 bits: by request, or where memory alone decides. The first process does."""
        rounded, wanted = replace(exact, int8=True), self.settings.keys_values
        if wanted != "auto":
            return rounded if wanted == "int8" else exact
        rows = self.processes.count * layout.rows
        needed = not _fits_memory(rows * exact.row_bytes) and _fits_memory(rows * rounded.row_bytes)
        if not self.processes.total(self.processes.main and self.settings.mode in ("auto", "memory") and needed):
            return exact
        print(f"prompts in 8 bits: exact keys and values need {amount(rows * exact.row_bytes)}, too much for memory")
        return rounded

    def _key(self, layout: Layout) -> Key:
        return Key.of(self.model, self.runtime, self.units, layout)


@dataclass(frozen=True)
class _Opening:
    """A split whose states are wanted."""

    what: ClassVar[str] = "boundary states"

    cache: BoundaryCache
    layout: Layout
    key: Key

    @property
    def folder(self) -> CacheFolder:
        return self.cache.settings.folder

    @property
    def size(self) -> int:
        return self.layout.rows * self.cache.model.state_bytes

    def opened(self) -> Opened:
        mode = self.cache.settings.mode
        reason = f"finetune.cache = {mode}"
        if mode == "off":
            return self.off(reason)
        if mode == "memory":
            return self._memory(reason)
        if mode == "disk":
            return self._disk(reason)
        return self._together() if self._rather_together() else self._auto()

    def off(self, reason: str) -> Opened:
        """Layers run for every batch."""
        cache = self.cache
        start = FrozenLayers.of_model(cache.model, cache.runtime, cache.boundary, self.layout.prefix)
        return Opened(start, "off", 0, "nowhere", self.size, 0.0, reason)

    def _memory(self, reason: str) -> Opened:
        needed, free = self.cache.processes.count * self.size, free_memory_bytes()
        if needed > free:
            raise UserError(
                f"{reason}: the {self.what} need {amount(needed)} and {amount(free)} of memory "
                "are free; set it to disk, off or auto"
            )
        return self._in_memory(reason, self.cache.processes)

    def _in_memory(self, reason: str, processes: Processes = ALONE) -> Opened:
        parts = self._parts(processes)
        return self._done(gather(parts, self.layout.rows), "in memory", parts, reason)

    def _disk(self, reason: str) -> Opened:
        with ExitStack() as lock:
            try:
                lock.enter_context(alone(self.folder.file(self.key)))
            except OSError as error:
                raise UserError(
                    f"{reason}: {self.folder.path} cannot be written: {error.strerror}; make it writable, "
                    "set finetune.cache_folder to another folder, or finetune.cache to auto, memory or off"
                ) from None
            return self._found(reason) or self._streamed(reason)

    def _auto(self) -> Opened:
        try:
            with alone(self.folder.file(self.key)):
                return self._found("cached by another run") or self._computed()
        except OSError as error:
            reason = f"{self.folder.path} cannot be written: {error.strerror or error}"
        return self._found(reason) or (self._in_memory(reason) if _fits_memory(self.size) else self.off(reason))

    def _computed(self) -> Opened:
        if _fits_memory(self.size):
            parts = self._continued()
            return self._written_too(gather(parts, self.layout.rows), parts)
        if self.size <= self.folder.room():
            return self._streamed("too large for memory")
        return self.off(f"{amount(self.size)} are too large for memory and for the cache folder")

    def _rather_together(self) -> bool:
        """Whether several processes compute the states in memory, each a share: the first one decides."""
        processes = self.cache.processes
        fit = processes.main and processes.count > 1 and _fits_memory(processes.count * self.size)
        return bool(processes.total(fit and not self.folder.file(self.key).exists()))

    def _together(self) -> Opened:
        """Compute together; the first process also writes the states for other runs, if that is worth it."""
        # No lock meanwhile: every process has to come here, and none may wait for a file of another's.
        parts = self._parts(self.cache.processes)
        rows = gather(parts, self.layout.rows)
        if not self.cache.processes.main:
            return self._done(rows, "in memory", parts, "computed together")
        try:
            with alone(self.folder.file(self.key)):
                return self._written_too(rows, parts)
        except OSError as error:
            return self._done(rows, "in memory", parts, f"writing failed: {error.strerror}")

    def _found(self, reason: str) -> Opened | None:
        found = self.folder.find(self.key)
        if found is None:
            return None
        boundary = self.cache.boundary
        return Opened(self._states(found.rows), "reused", boundary, "on disk", self.size, found.seconds, reason)

    def _streamed(self, reason: str) -> Opened:
        parts = self._continued()
        rows = self._write(parts)
        return self._done(rows, "on disk", parts, reason)

    def _written_too(self, rows: Tensor, parts: Timed) -> Opened:
        """States in memory, also written to disk for other runs if that is faster than to compute them again."""
        try:
            if self.size > PROBE_BYTES and self.size > (rate := disk_rate(self.folder.path)) * parts.seconds:
                why = f"computed in {parts.seconds:.1f} s, faster than a disk of {amount(int(rate))} per second"
                return self._done(rows, "in memory", parts, why)
            parts = Timed(iter([rows]), parts.seconds, parts.begun)
            self._write(parts)
        except (OSError, UserError) as error:  # the disk is full, or filled up in between
            reason = error.strerror if isinstance(error, OSError) else error
            return self._done(rows, "in memory", parts, f"writing failed: {reason}")
        return self._done(rows, "in memory and on disk", parts, "for other runs")

    def _write(self, parts: Timed) -> Tensor:
        self.folder.make_room(self.size, self.what)
        return write_states(self.folder.file(self.key), self.key.digest, parts, self.layout.rows)

    def _continued(self) -> Timed:
        """The parts to compute, from the deepest boundary whose states are on disk."""
        found = None if self.cache.tap else self.folder.find_shallower(self.key)
        if found is None:
            return self._parts()
        (below, file), cache = found, self.cache
        start = BoundaryStates(below, self.layout, file.rows, cache.model.device)
        parts = frozen_states(cache.model, cache.runtime, self.layout, cache.boundary, start)
        return Timed(parts, file.seconds, below)

    def _parts(self, processes: Processes = ALONE) -> Timed:
        cache = self.cache
        if cache.tap:
            return Timed(iter(cache.tap.parts), cache.tap.seconds)
        return Timed(frozen_states(cache.model, cache.runtime, self.layout, cache.boundary, processes=processes))

    def _states(self, rows: Tensor) -> BoundaryStates | PromptRows:
        return BoundaryStates(self.cache.boundary, self.layout, rows, self.cache.model.device)

    def _done(self, rows: Tensor, kept: Place, parts: Timed, reason: str) -> Opened:
        origin: Origin = "continued" if parts.begun else "computed"
        return Opened(self._states(rows), origin, parts.begun, kept, self.size, parts.seconds, reason)


@dataclass(frozen=True)
class _PromptOpening(_Opening):
    """A split whose prompts' keys and values are wanted."""

    what: ClassVar[str] = "keys and values of prompts"

    columns: Columns
    start: BoundaryStates | None  # of the prompts, at the boundary; ``None``: from the embeddings
    base: Callable[[], CausalModel]

    @property
    def size(self) -> int:
        return self.layout.rows * self.columns.row_bytes

    def off(self, reason: str) -> Opened:
        cache = self.cache
        start = PromptLayers.of_model(self.base(), cache.runtime, cache.model.depth, self.layout.prefix)
        return Opened(start, "off", 0, "nowhere", self.size, 0.0, reason)

    def _computed(self) -> Opened:
        if not _fits_memory(self.size):
            parts = self._parts()
            first = sum(part.nbytes for part in islice(parts, 1 + (self.layout.shared > 0)))  # of the first pass
            if first > (rate := disk_rate(self.folder.path)) * parts.seconds:
                why = f"are too large for memory, and computed faster than a disk of {amount(int(rate))} per second"
                return self.off(f"{amount(self.size)} {why} writes and reads them")
        return super()._computed()

    def _parts(self, processes: Processes = ALONE) -> Timed:
        cache = self.cache
        given = cache.model, cache.runtime, self.layout, self.columns, self.start, processes, cache.tap
        return Timed(prompt_rows(*given))

    def _states(self, rows: Tensor) -> PromptRows:
        return PromptRows(self.columns, self.layout, rows, self.cache.model.device)
