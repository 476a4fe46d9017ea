"""A small model and a split whose prompts begin alike: what the tests of boundary states share."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from salf.engine.batches import Example
from salf.engine.boundary_cache.cache import BoundaryCache
from salf.engine.boundary_cache.folder import frozen_units
from salf.engine.boundary_cache.states import cache_boundary
from salf.engine.models.adapter import CausalModel
from salf.engine.runtime import Runtime, choose_runtime
from salf.families import family_of
from salf.settings import Caching, Device
from tests.engine.models.tiny import tiny_network

SHARED = 3
BATCH_TOKENS = 24
SHARDS = {"embedding.safetensors": "e", "final.safetensors": "f", **{f"layer-0{n}.safetensors": str(n) for n in "1234"}}
FLOAT32 = choose_runtime(Device(kind="cpu", dtype="float32"))
BFLOAT16 = choose_runtime(Device(kind="cpu", dtype="bfloat16"))


def make_examples(number: int = 12, seed: int = 0) -> list[Example]:
    rng = np.random.default_rng(seed)
    made = []
    for n in range(number):
        prompt = (5, 6, 7, *map(int, rng.integers(10, 90, size=3 + n % 4)))
        answer = tuple(map(int, rng.integers(3, 90, size=1 + n % 2)))
        made.append(Example(str(n), None, "", "", prompt, answer))
    return made


def make_model(**overrides) -> CausalModel:
    """With biases in every linear map of its attention."""
    model = CausalModel(tiny_network("llama", attention_bias=True, **overrides), family_of("llama"))
    model.network.requires_grad_(False)
    return model


@dataclass
class Task:
    """A model, a split and a cache folder of one test."""

    folder: Path
    model: CausalModel = field(default_factory=make_model)
    examples: list[Example] = field(default_factory=make_examples)
    runtime: Runtime = FLOAT32
    gib: float = 1.0

    def cache(self, mode: str, boundary: int = 2) -> BoundaryCache:
        settings = Caching(cache=mode, cache_folder=str(self.folder), cache_gib=self.gib)
        units = frozen_units(SHARDS, boundary)
        return BoundaryCache(settings, self.model, self.runtime, units, SHARED, BATCH_TOKENS)

    def open(self, mode: str, boundary: int = 2):
        return self.cache(mode, boundary).open(self.examples)

    def computed(self, boundary: int = 2):
        """The states without any cache folder."""
        return cache_boundary(self.model, self.runtime, self.examples, SHARED, boundary, BATCH_TOKENS)

    @property
    def files(self) -> list[Path]:
        return sorted(self.folder.glob("*.safetensors"))
