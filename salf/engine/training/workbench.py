"""Opens a base model for several trainings, counts their cost, and provides their boundary states."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Final

from salf.cost import PLAIN, Technique
from salf.engine.batches import Split
from salf.engine.boundary_cache.cache import BoundaryCache, Opened, print_opened
from salf.engine.boundary_cache.folder import frozen_units
from salf.engine.models.adapter import CausalModel, open_model
from salf.engine.runtime import Runtime
from salf.engine.training.costs import Costs
from salf.engine.training.processes import ALONE, Processes
from salf.engine.training.scope import Scope
from salf.files import read_json
from salf.settings import Finetune
from salf.shape import ModelShape

CACHE_BATCH_TOKENS: Final = 1024  # of a pass through the frozen layers

Splits = Mapping[str, Split]


@dataclass(frozen=True, kw_only=True)
class Workbench:
    """The model, data and caches that all trainings on one base model share."""

    base: Path  # the base model's folder
    runtime: Runtime
    settings: Finetune  # the schedule, and where boundary states may be cached
    processes: Processes = ALONE  # those that train together

    @cached_property
    def shape(self) -> ModelShape:
        """The base model's sizes."""
        return ModelShape.from_config(read_json(self.base / "config.json"))

    def open(self, boundary: int) -> CausalModel:
        """Open the base model to train above a boundary; nothing trains yet."""
        return open_model(self.base, self.runtime.device, frozen=self.runtime.frozen(boundary))

    def costs(
        self, scope: Scope, technique: Technique = PLAIN, *, uncached: bool = False, prompts_uncached: bool = False
    ) -> Costs:
        """The counter of a training's FLOPs; ``uncached``: the frozen layers run for every batch, or the prompts do."""
        return Costs(self.shape, scope, technique, self.settings.gradient_checkpointing, uncached, prompts_uncached)

    def open_states(self, model: CausalModel, boundary: int, splits: Splits) -> dict[str, Opened]:
        """The boundary states of every split above 1 frozen layer or more; prints where they are and why."""
        opened = {name: self._cache(model, boundary, split).open(split.examples) for name, split in splits.items()}
        print_opened(f"boundary states of layer {boundary}", opened)
        return opened

    def open_prompts(
        self, model: CausalModel, boundary: int, splits: Splits, states: Mapping[str, Opened]
    ) -> dict[str, Opened]:
        """The prompts' keys and values of every split at the layers above a boundary; prints where they are and why."""
        base = cache(lambda: self.open(boundary))
        opened = {
            name: self._cache(model, model.depth, split).open_prompts(split, boundary, states.get(name), base)
            for name, split in splits.items()
        }
        print_opened(f"prompts above layer {boundary}", opened)
        return opened

    def open_both(self, model: CausalModel, boundary: int, splits: Splits) -> list[dict[str, Opened]]:
        """The prompts' keys and values at all layers, and the boundary states of whole examples: from one pass."""
        base, layers = cache(lambda: self.open(0)), model.depth
        both = [self._cache(model, layers, split).open_both(split, boundary, base) for split in splits.values()]
        opened = [dict(zip(splits, column, strict=True)) for column in zip(*both, strict=True)]
        for what, one in zip(("prompts above layer 0", f"boundary states of layer {boundary}"), opened, strict=True):
            print_opened(what, one)
        return opened

    def units(self, model: CausalModel, layers: int) -> tuple[str, ...]:
        """Hashes of the base's embedding and of its first layers, whose states are cached."""
        del model  # its files say so
        return frozen_units(read_json(self.base / "base.json")["shards"], layers)

    def _cache(self, model: CausalModel, layers: int, split: Split) -> BoundaryCache:
        return BoundaryCache(
            self.settings,
            model,
            self.runtime,
            self.units(model, layers),
            split.shared,
            CACHE_BATCH_TOKENS,
            self.processes,
            self.settings.answer_side.keys_values,
        )


def begin_at(states: Mapping[str, Opened], splits: Splits, model: CausalModel) -> dict[str, Split]:
    """The splits with their boundary states as starts; unchanged where there are none."""
    if not states:
        return dict(splits)
    return {name: replace(split, start=states[name].start_for(model), places=None) for name, split in splits.items()}
