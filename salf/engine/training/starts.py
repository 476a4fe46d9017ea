"""Where trainings above a boundary begin: the frozen layers' states, opened once for all of them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from salf.engine.answers import Embeddings
from salf.engine.batches import Example
from salf.engine.boundary_cache.cache import BoundaryCache, CacheSettings, Opened, print_opened
from salf.engine.boundary_cache.key import frozen_units
from salf.engine.models.adapter import CausalModel
from salf.engine.runtime import Runtime
from salf.engine.training.processes import ALONE, Processes
from salf.engine.training.validation import Split
from salf.files import read_json
from salf.settings import Finetune

CACHE_BATCH_TOKENS: Final = 1024  # of a pass through the frozen layers

Splits = Mapping[str, Sequence[Example]]


def open_states(
    base: Path,
    model: CausalModel,
    runtime: Runtime,
    params: Finetune,
    boundary: int,
    splits: Splits,
    passes: Mapping[str, int],
    shared: int,
    processes: Processes = ALONE,
) -> dict[str, Opened]:
    """The frozen layers' states of every split, and a line that says where they are and why.

    Args:
        base: the base model's folder, which names the frozen layers' hashes.
        model: the base model.
        runtime: device and precision.
        params: where states may be kept.
        boundary: layers 1..boundary are frozen; 1 at least.
        splits: examples by the split's name.
        passes: how often each of them is going to be gone through.
        shared: tokens of the beginning that all prompts share.
        processes: those that share the work.
    """
    cache = BoundaryCache(
        CacheSettings.of(params.cache, params.cache_folder, params.cache_gib),
        model,
        runtime,
        frozen_units(read_json(base / "base.json")["shards"], boundary),
        shared,
        CACHE_BATCH_TOKENS,
        processes if processes.count > 1 else None,
    )
    opened = {name: cache.open(examples, passes[name]) for name, examples in splits.items()}
    print_opened(boundary, opened)
    return opened


def begun(model: CausalModel, splits: Splits, states: Mapping[str, Opened], shared: int) -> list[Split]:
    """The splits with their starts: behind the frozen layers, or at the embeddings where there are no states."""
    if states:
        return [Split(examples, states[name].start_for(model)) for name, examples in splits.items()]
    first = next(iter(splits.values()))[0]
    beginning = first.prompt_ids[:shared]
    return [Split(examples, Embeddings.behind(model, beginning)) for examples in splits.values()]
