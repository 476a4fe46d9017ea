"""Answer-side tuning (``salf.prompt_cache``, ``salf.answer_side``) in a Trainer, and the same Trainer without it."""

from functools import cached_property
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from salf.engine.answer_side import answer_side, collate_answers, prompt_cache
from stages.bench.contender import Lap
from stages.bench.others import labelled, pad
from stages.bench.prefix import CachedTrainer, Run, both_ways, described
from stages.bench.workloads import Shape, Task, random_examples
from stages.common.benchmark import AnswerSideBenchmark, AnswerSidePoint, Spread

PROMPTS: Final = (64, 256, 1024)  # tokens
EPOCHS: Final = (1, 3)


class AnswerSideTrainer(CachedTrainer):
    """The Trainer over what follows cached prompts, or over whole rows with all positions trained."""

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
            return Lap(self.train(self.network, rows, pad, epochs), [])

        def prepared() -> tuple[Any, Any, Any]:
            cache = prompt_cache(self.network, rows, bf16=self.bf16)
            return answer_side(self.network, cache), cache, collate_answers

        return self.train_cached(prepared, epochs)


def measure_answer_side(task: Task, examples: int, repeats: int, logs: Path) -> AnswerSideBenchmark:
    """Fine-tune after prompts of several lengths, with and without the cache, in turn, round by round."""
    runs: list[Run] = [(prompt, cached) for prompt in PROMPTS for cached in (False, True)]
    requests = {run: {"prompt": run[0], "cached": run[1], "examples": examples} for run in runs}
    laps = both_ways(task, AnswerSideTrainer, requests, max(EPOCHS), repeats, logs)
    points = [
        _point(laps[prompt, True], laps[prompt, False], prompt, epochs) for prompt in PROMPTS for epochs in EPOCHS
    ]
    return AnswerSideBenchmark(**described(task, examples, repeats), points=points)


def _point(ours: list[list[float]], whole: list[list[float]], prompt: int, epochs: int) -> AnswerSidePoint:
    seconds, before = ([lap[at] for lap in ours] for at in (epochs, 0))
    return AnswerSidePoint(
        prompt_tokens=prompt,
        epochs=epochs,
        seconds=Spread.of(seconds),
        cache_share=Spread.of_ratios(before, seconds),
        trainer_full=Spread.of_ratios([lap[epochs - 1] for lap in whole], seconds),
    )
