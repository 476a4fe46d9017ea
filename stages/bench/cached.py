"""The Trainer over what the public calls cache; its clock includes filling the cache."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch

from salf.engine.answer_side import answer_side, collate_answers, prompt_cache
from salf.engine.prefix import collate_states, prefix_states
from salf.engine.suffix import suffix
from stages.bench.contender import Lap, now
from stages.bench.others import HuggingFaceTrainer
from stages.bench.workloads import Task

Rows = Sequence[dict[str, list[int]]]


class CachedTrainer(HuggingFaceTrainer):
    """The Trainer over something cached."""

    sampling = "random"  # grouping by length reads the lengths off tokens

    def run(self, *, boundary: int, epochs: int, examples: int) -> Lap:
        """Fine-tune above the boundary; seconds up to the end of each epoch, those of filling the cache included."""
        self.freeze(boundary)
        began = now(self.device)
        trained = self.cached(self.rows(examples), boundary, self.runtime.dtype == torch.bfloat16)
        before = now(self.device) - began
        return Lap([before + lap for lap in self.train(*trained, epochs)])

    @abstractmethod
    def cached(self, rows: Rows, boundary: int, bf16: bool) -> tuple[Any, Any, Any]:
        """Return the model, dataset and collator to train with."""


class PrefixTrainer(CachedTrainer):
    """The Trainer over boundary states (``salf.prefix_states``, ``salf.suffix``)."""

    def cached(self, rows: Rows, boundary: int, bf16: bool) -> tuple[Any, Any, Any]:
        """Run the frozen layers once."""
        states = prefix_states(self.network, rows, boundary, bf16=bf16)
        return suffix(self.network, boundary), states, collate_states


class PromptTrainer(CachedTrainer):
    """The Trainer over what follows cached prompts (``salf.prompt_cache``, ``salf.answer_side``)."""

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self.base = {name: weights.clone() for name, weights in self.network.state_dict().items()}

    def freeze(self, boundary: int) -> None:
        """Restore the weights before any training, too: they alone may read prompts."""
        super().freeze(boundary)
        self.network.load_state_dict(self.base)

    def cached(self, rows: Rows, boundary: int, bf16: bool) -> tuple[Any, Any, Any]:
        """Read the prompts once."""
        cache = prompt_cache(self.network, rows, boundary, bf16=bf16)
        return answer_side(self.network, cache), cache, collate_answers
