"""The boundary cache as stages use it (ours): it says where a split's passes begin, and keeps what is worth keeping.

It keeps boundary states, and for training on the answer side the keys and values of prompts, by the same rules.
"""

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from salf.engine.batches import Example, Split, Start
from salf.engine.boundary_cache.folder import PROBE_BYTES, CacheFolder, alone, amount, disk_rate, key_of, write_states
from salf.engine.boundary_cache.prompts import Columns, PromptLayers, PromptRows, Tap, laid_out, prompt_rows
from salf.engine.boundary_cache.states import BoundaryStates, FrozenLayers, Layout, Timed, frozen_states, gather
from salf.engine.models.adapter import CausalModel
from salf.engine.runtime import Runtime
from salf.engine.training.processes import ALONE, Processes
from salf.errors import UserError
from salf.memory import free_memory_bytes
from salf.records import StatesRecord
from salf.settings import CacheMode, Caching, KeysValues

_OF_FREE_MEMORY: Final = 0.5  # the suffix, its optimizer and its activations need the rest


class Opened(StatesRecord, frozen=True):
    """The start of a split's passes, and how it was obtained."""

    start: Any  # rows (BoundaryStates, PromptRows), or layers that run for every batch (FrozenLayers, PromptLayers)
    reason: str  # why it was done so

    @property
    def words(self) -> str:
        """A description for the log."""
        if self.origin == "off":
            return f"recomputed for every batch ({self.reason})"
        return f"{amount(self.bytes)} {self.origin}, cached {self.kept} ({self.reason})"

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


def print_opened(what: str, opened: Mapping[str, Opened]) -> None:
    """One line that says what was done with each split's states, and why."""
    print(f"{what}: {'; '.join(f'{name} {one.words}' for name, one in opened.items())}")


def _fits_memory(size: int) -> bool:
    return size <= _OF_FREE_MEMORY * free_memory_bytes()


@dataclass(frozen=True)
class BoundaryCache:
    """States at a boundary of one model, for one split after another."""

    settings: Caching
    model: CausalModel
    runtime: Runtime
    units: Sequence[str]  # hashes of the embedding's shard and of those of layers 1..boundary (``frozen_units``)
    shared: int  # P, tokens of the shared prefix of all prompts
    batch_tokens: int  # tokens of a pass through the frozen layers
    processes: Processes = ALONE  # that open the same splits: what they keep in memory they compute together
    keys_values: KeysValues = "exact"  # of prompts
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
        began, model, runtime, boundary = time.perf_counter(), self.model, self.runtime, self.boundary
        layout = Layout.of(examples, self.shared, self.batch_tokens)

        def parts(processes: Processes = ALONE) -> Timed:
            if self.tap:
                return Timed(iter(self.tap.parts), self.tap.seconds)
            return Timed(frozen_states(model, runtime, layout, boundary, processes))

        opened = _Opening(
            self,
            key_of(model, runtime, self.units, layout),
            "boundary states",
            layout.rows,
            model.state_bytes,
            parts,
            lambda rows: BoundaryStates(boundary, layout, rows, model.device),
            lambda: FrozenLayers.of_model(model, runtime, boundary, layout.prefix),
        ).opened()
        return opened.model_copy(update={"seconds": time.perf_counter() - began})

    def open_prompts(
        self, split: Split, boundary: int, states: Opened | None, base: Callable[[], CausalModel]
    ) -> Opened:
        """Prompts' keys and values for passes over the answer side of ``split``; ``units`` are all layers'.

        They are those of the layers above ``boundary``, computed from ``states`` of whole examples there, or from the
        embeddings. ``base`` opens the base model once more, should it have to read the prompts of every batch.
        """
        began, model, runtime = time.perf_counter(), self.model, self.runtime
        layout, start = laid_out(split, self.batch_tokens, states.rows if states else None)
        columns = self._columns(Columns.of(model, runtime, boundary), layout)
        begun = self.tap.space if self.tap else boundary if start else 0
        tapped = [key_of(model, runtime, self.units, self.tap.layout)] if self.tap else []
        key = key_of(model, runtime, self.units, layout, boundary, begun, "int8" if columns.int8 else "exact", *tapped)
        if self.tap:
            layout = Layout.of(layout.examples, self.shared, self.batch_tokens, self.tap.layout.groups)

        def parts(processes: Processes = ALONE) -> Timed:
            return Timed(prompt_rows(model, runtime, layout, columns, start, processes, self.tap))

        opened = _Opening(
            self,
            key,
            "keys and values of prompts",
            layout.rows,
            columns.row_bytes,
            parts,
            lambda rows: PromptRows(columns, layout, rows, model.device),
            lambda: PromptLayers.of_model(base(), runtime, model.depth, layout.prefix),
        ).opened()
        facts = {} if opened.origin == "off" else {"begun": begun, "int8": columns.int8}
        return opened.model_copy(update={"seconds": time.perf_counter() - began, **facts})

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
            prompts = prompts.model_copy(update={"seconds_computing": prompts.seconds_computing - tap.seconds})
        elif not fit:
            prompts = prompts.model_copy(update={"begun": 0})
        return prompts, replace(self, units=units, tap=tap if filled else None).open(split.examples)

    def _columns(self, exact: Columns, layout: Layout) -> Columns:
        """Exact keys and values, or 8 bits: by request, or where memory alone decides. The first process does."""
        rounded, wanted = replace(exact, int8=True), self.keys_values
        if wanted != "auto":
            return rounded if wanted == "int8" else exact
        rows = self.processes.count * layout.rows
        needed = not _fits_memory(rows * exact.row_bytes) and _fits_memory(rows * rounded.row_bytes)
        if not self.processes.total(self.processes.main and self.settings.cache in ("auto", "memory") and needed):
            return exact
        print(f"prompts in 8 bits: exact keys and values need {amount(rows * exact.row_bytes)}, too much for memory")
        return rounded


@dataclass(frozen=True)
class _Opening:
    """Rows that are wanted of a split, or layers in their place."""

    cache: BoundaryCache
    key: str
    what: str
    rows: int
    row_bytes: int
    parts: Callable[..., Timed]  # computes the rows, by the processes given together
    start: Callable[[Tensor], BoundaryStates | PromptRows]  # of the rows
    layers: Callable[[], FrozenLayers]  # that run for every batch

    @cached_property
    def folder(self) -> CacheFolder:
        settings = self.cache.settings
        return CacheFolder(Path(settings.cache_folder), settings.cache_gib)

    @property
    def size(self) -> int:
        return self.rows * self.row_bytes

    def opened(self) -> Opened:
        mode, processes = self.cache.settings.cache, self.cache.processes
        if mode in ("off", "memory"):
            return (self._off if mode == "off" else self._memory)(f"finetune.cache = {mode}")
        # Several processes compute rows for memory, each a share: the first one decides.
        fit = mode == "auto" and processes.main and processes.count > 1 and _fits_memory(processes.count * self.size)
        together = processes.total(fit and not self.folder.file(self.key).exists())
        return self._together() if together else self._kept(mode)

    def _memory(self, reason: str) -> Opened:
        needed, free = self.cache.processes.count * self.size, free_memory_bytes()
        if needed > free:
            room = f"{amount(needed)}, {amount(free)} are free"
            raise UserError(f"{reason}: the {self.what} need {room}; set it to disk, off or auto")
        return self._in_memory(reason, self.cache.processes)

    def _in_memory(self, reason: str, processes: Processes = ALONE) -> Opened:
        parts = self.parts(processes)
        return self._done(gather(parts, self.rows), "in memory", parts.seconds, reason)

    def _kept(self, mode: CacheMode) -> Opened:
        """Rows on disk, or by ``auto`` wherever there is room; one of several runs computes them, and others wait."""
        asked = f"finetune.cache = {mode}"
        try:
            with alone(self.folder.file(self.key)):
                if mode == "disk":
                    return self._found(asked) or self._streamed(asked)
                return self._found("cached by another run") or self._computed()
        except OSError as error:
            reason = f"{self.folder.path} cannot be written: {error.strerror or error}"
        if mode == "disk":
            raise UserError(f"{asked}: {reason}; make it writable, or set finetune.cache_folder or cache")
        return self._found(reason) or (self._in_memory(reason) if _fits_memory(self.size) else self._off(reason))

    def _computed(self) -> Opened:
        if _fits_memory(self.size):
            parts = self.parts()
            return self._written_too(gather(parts, self.rows), parts.seconds)
        if self.size > self.folder.room():
            return self._off(f"{amount(self.size)} are too large for memory and for the cache folder")
        parts = self.parts()
        first = sum(part.nbytes for part in islice(parts, 1 + (self.cache.shared > 0)))  # of the first pass
        if first > (rate := disk_rate(self.folder.path)) * parts.seconds:
            why = f"are too large for memory, and computed faster than a disk of {amount(int(rate))} per second"
            return self._off(f"{amount(self.size)} {why} writes and reads them")
        return self._streamed("too large for memory")

    def _together(self) -> Opened:
        """Compute together; the first process also writes the states for other runs, if that is worth it."""
        # No lock meanwhile: every process has to come here, and none may wait for a file of another's.
        parts = self.parts(self.cache.processes)
        rows = gather(parts, self.rows)
        if not self.cache.processes.main:
            return self._done(rows, "in memory", parts.seconds, "computed together")
        try:
            with alone(self.folder.file(self.key)):
                return self._written_too(rows, parts.seconds)
        except OSError as error:
            return self._done(rows, "in memory", parts.seconds, f"writing failed: {error.strerror}")

    def _found(self, reason: str) -> Opened | None:
        found = self.folder.find(self.key)
        return self._done(found[0], "on disk", found[1], reason, origin="reused") if found else None

    def _streamed(self, reason: str) -> Opened:
        parts = self.parts()
        rows = self._write(parts)
        return self._done(rows, "on disk", parts.seconds, reason)

    def _written_too(self, rows: Tensor, seconds: float) -> Opened:
        """States in memory, also written to disk for other runs if that is faster than to compute them again."""
        try:
            if self.size > PROBE_BYTES and self.size > (rate := disk_rate(self.folder.path)) * seconds:
                why = f"computed in {seconds:.1f} s, faster than a disk of {amount(int(rate))} per second"
                return self._done(rows, "in memory", seconds, why)
            self._write(parts := Timed(iter([rows]), seconds))
        except (OSError, UserError) as error:  # the disk is full, or filled up in between
            reason = error.strerror if isinstance(error, OSError) else error
            return self._done(rows, "in memory", seconds, f"writing failed: {reason}")
        return self._done(rows, "in memory and on disk", parts.seconds, "for other runs")

    def _write(self, parts: Timed) -> Tensor:
        self.folder.make_room(self.size, self.what)
        return write_states(self.folder.file(self.key), self.key, parts, self.rows)

    def _done(self, rows: Tensor, kept: str, seconds: float, reason: str, *, origin: str = "computed") -> Opened:
        begun = self.cache.boundary if origin == "reused" else 0
        facts = {"origin": origin, "begun": begun, "kept": kept, "bytes": self.size, "int8": False}
        return Opened(**facts, seconds_computing=seconds, seconds=0.0, reason=reason, start=self.start(rows))

    def _off(self, reason: str) -> Opened:
        facts = {"origin": "off", "begun": 0, "kept": "nowhere", "bytes": self.size, "int8": False}
        return Opened(**facts, seconds_computing=0.0, seconds=0.0, reason=reason, start=self.layers())
