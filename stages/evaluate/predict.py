"""Lets a model folder answer the test split."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import GenerationConfig

from salf.engine.answers import Reader
from salf.engine.batches import Example, Split, Start
from salf.engine.boundary_cache.cache import BoundaryCache, CacheSettings, Opened, print_opened
from salf.engine.boundary_cache.key import frozen_units
from salf.engine.models.adapter import CausalModel, open_model
from salf.engine.progress import progress
from salf.engine.rules import rule_of
from salf.engine.runtime import Runtime
from salf.records import PreparedRecord
from stages.common.params import Evaluate
from stages.evaluate.scores import Predictions


@dataclass(frozen=True)
class Predictor:
    """Lets every model answer the test split in the same way; they share ``prefixes``, by number of frozen layers."""

    runtime: Runtime
    params: Evaluate
    meta: PreparedRecord
    base: Path
    shards: Mapping[str, str]
    cache: CacheSettings
    test: Sequence[Example]
    prefixes: dict[int, Opened] = field(default_factory=dict)

    def predict(self, folder: Path, name: str, frozen: int | None = None) -> Predictions:
        """Answer with the model in ``folder``, whose embedding and layers 1..frozen are the base's; ``None``: all are.

        Layers are quantised as in training, in the base all of them. All are offloaded, since nothing trains.
        """
        rule = rule_of(self.meta)
        held = self.runtime.frozen(None if self.runtime.frozen_weights == "offload" else frozen)
        model = open_model(folder, self.runtime.device, self.runtime.dtype, frozen=held, base=self.base)
        reader = Reader(model, self.runtime, rule, self.params.batch_tokens)
        split = Split(self.test, self.meta.shared_prefix_tokens, self._start(model, frozen) if frozen else None)
        with progress(f"evaluating {name}", len(self.test), "examples") as advance:
            answers = reader.read(split, lambda n: advance(n, ""))
        loss = np.array([answer.loss for answer in answers])
        tokens = np.array([len(example.answer_ids) for example in self.test], float)
        if rule is not None:
            said = [answer.predicted or "" for answer in answers]
            correct = [answer.correct or False for answer in answers]
        else:
            said = self._written(model, name)
            correct = self._exact(said)
        return Predictions(said, np.array(correct, float), loss, tokens, [answer.probability for answer in answers])

    def _written(self, model: CausalModel, name: str) -> list[str]:
        assert self.meta.end_token_id is not None, "free answers end with a token of their own"
        longest, most = self.params.generate_tokens, self.params.batch_tokens
        with progress(f"{name} writes its answers", len(self.test), "examples") as advance:
            return write_answers(
                model, self._tokenizer, self.test, longest, self.meta.end_token_id, most, lambda n: advance(n, "")
            )

    def _exact(self, said: Sequence[str]) -> list[bool]:
        # Both sides without special tokens, which chat templates put into answers, too.
        asked = [self._tokenizer.decode(example.answer_ids, skip_special_tokens=True) for example in self.test]
        return [exact_match(*both, self.params.answer_marker) for both in zip(said, asked, strict=True)]

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return Tokenizer.from_file(str(self.base / "tokenizer.json"))

    def _start(self, model: CausalModel, frozen: int) -> Start:
        if frozen not in self.prefixes:
            units, shared = frozen_units(self.shards, frozen), self.meta.shared_prefix_tokens
            cache = BoundaryCache(self.cache, model, self.runtime, units, shared, self.params.batch_tokens)
            self.prefixes[frozen] = cache.open(self.test)
            print_opened(f"states behind layer {frozen}", {"test": self.prefixes[frozen]})
        return self.prefixes[frozen].start_for(model)


def frozen_layers(shards: Mapping[str, str], base: Mapping[str, str]) -> int:
    """Count the layers, from the embedding up, whose shards (file name → SHA-256) are the base's."""
    if shards["embedding.safetensors"] != base["embedding.safetensors"]:
        return 0
    layers = sorted(name for name in base if name.startswith("layer-"))
    return next((depth for depth, name in enumerate(layers) if shards[name] != base[name]), len(layers))


def prediction_rows(predictions: Mapping[str, Predictions], test: Sequence[Example]) -> list[dict[str, Any]]:
    """Rows of ``predictions.parquet``, one per model and test example."""
    return [
        {
            "run": run,
            "example_id": example.example_id,
            "text": example.text,
            "label": example.label if example.label is not None else example.answer,
            "predicted": said.predicted[i],
            "correct": bool(said.correct[i]),
            "probability": said.probability[i],
            "loss": None if said.loss is None else float(said.loss[i]),
        }
        for run, said in predictions.items()
        for i, example in enumerate(test)
    ]


@torch.no_grad()
def write_answers(
    model: CausalModel,
    tokenizer: Tokenizer,
    examples: Sequence[Example],
    longest: int,
    end: int | None,
    batch_tokens: int,
    advance: Callable[[int], None],
) -> list[str]:
    """Generate at most ``longest`` tokens greedily, or what the context has left; prompts of one length share batches.

    ``end`` is the token that ends an answer (in a chat, a turn). The model's own end tokens count too.
    """
    answers = [""] * len(examples)
    settings = model.network.config
    own = settings.eos_token_id
    ends = sorted({one for one in (end, *(own if isinstance(own, list) else [own])) if one is not None})
    by_length: dict[int, list[int]] = {}
    for i, example in enumerate(examples):
        by_length.setdefault(len(example.prompt_ids), []).append(i)
    # Equal lengths need no padding, and an unpadded prompt is what the model was trained on.
    for length, members in sorted(by_length.items()):
        context = getattr(settings, "max_position_embeddings", None) or length + longest
        room = min(longest, int(context) - length)
        config = GenerationConfig(max_new_tokens=room, do_sample=False, eos_token_id=ends, pad_token_id=end)
        size = max(1, batch_tokens // (length + room))
        for at in range(0, len(members), size):
            index = members[at : at + size]
            ids = torch.tensor([examples[i].prompt_ids for i in index], device=model.device)
            written = model.network.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
            for i, row in zip(index, written[:, length:].tolist(), strict=True):
                answers[i] = tokenizer.decode(row, skip_special_tokens=True)
            advance(len(index))
    return answers


def exact_match(answer: str, reference: str, marker: str | None) -> bool:
    """Compare texts up to white space; with a marker (gsm8k: ``####``) only what follows its last occurrence."""
    compared = (text if marker is None else text.rpartition(marker)[2] for text in (answer, reference))
    return len({" ".join(text.split()) for text in compared}) == 1
