"""Answer-side tuning (``salf.prompt_cache``, ``salf.answer_side``) in a Trainer, and the same Trainer without it."""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

from torch import Tensor

from salf.engine.answer_side import answer_side, collate_answers, prompt_cache
from stages.bench.cached import CachedTrainer
from stages.bench.contender import Lap
from stages.bench.others import labelled, pad
from stages.bench.workloads import Shape, random_examples


class AnswerSideTrainer(CachedTrainer):
    """The Trainer over what follows cached prompts, or over whole rows with all positions trained."""

    of, epochs, examples = "prompt", (1, 3), 48

    @staticmethod
    def compared(_layers: int) -> Mapping[int, Mapping[str, int]]:
        """Prompts of three lengths in tokens, with whole rows of the same length."""
        return {tokens: {"all positions": tokens} for tokens in (64, 256, 1024)}

    @cached_property
    def base(self) -> dict[str, Tensor]:
        """The weights before any training, which alone may read prompts."""
        return {name: weights.clone() for name, weights in self.network.state_dict().items()}

    def run(self, *, prompt: int, epochs: int, examples: int, cached: bool = False) -> Lap:  # type: ignore[override]
        """Fine-tune all layers on answers of one to three tokens; a cached run's clock includes the prompts."""
        self.network.load_state_dict(self.base)
        self.freeze(0)
        shape = Shape({"vocab_size": self.network.config.vocab_size}, shared=0, own=(prompt, prompt))
        rows = [labelled(example) for example in random_examples(examples, shape, seed=0)]
        if not cached:
            return Lap(self.train(self.network, rows, pad, epochs))

        def prepared() -> tuple[Any, Any, Any]:
            cache = prompt_cache(self.network, rows, bf16=self.bf16)
            return answer_side(self.network, cache), cache, collate_answers

        return self.train_cached(prepared, epochs)
