"""Lets model folders answer the test splits."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import GenerationConfig

from salf.answer_folder import AnswerSideRecord
from salf.engine.answer_model import AnswerSideModel, base_alone
from salf.engine.answers import Answer, Reader, answer_states
from salf.engine.batches import Example, Split, Start
from salf.engine.boundary_cache.cache import BoundaryCache, Opened, print_opened
from salf.engine.boundary_cache.folder import frozen_units
from salf.engine.boundary_cache.prompts import answer_side
from salf.engine.models.adapter import WHOLE, CausalModel, Frozen, open_model, take_apart
from salf.engine.progress import progress
from salf.engine.rules import Rule, rule_of
from salf.engine.runtime import Runtime
from salf.engine.shift import Shift, measure_shift
from salf.engine.suffix import network_of
from salf.engine.techniques.dcp import interactions, kept_shares, pruned
from salf.engine.techniques.head import class_rule, of_classes, open_class_head
from salf.engine.techniques.roste import quantised
from salf.metrics import KeptContext
from salf.records import PreparedRecord
from salf.settings import TASKS, AnswerSide, Caching
from stages.common.params import Evaluate
from stages.evaluate.scores import Predictions

_SHOWN: Final = 128  # tokens of a text whose fate is shown


@dataclass(frozen=True)
class ReadyModel:
    """An opened model folder."""

    name: str
    model: CausalModel  # reads
    writer: Any  # generates
    started: Callable[[str], Split]  # a split by its name, with the start of this model's passes


@dataclass(frozen=True)
class Predictor:
    """Lets every model read the same ``splits``; models with the same frozen layers share their states of a split."""

    runtime: Runtime
    params: Evaluate
    meta: PreparedRecord
    base: Path
    shards: Mapping[str, str]
    cache: Caching
    splits: Mapping[str, Split]
    prefixes: dict[tuple[str, int], Opened] = field(default_factory=dict)
    prompts: dict[tuple[str, tuple[int, ...]], Opened] = field(default_factory=dict)
    classes: bool = False  # models answer by class heads, not by label words

    @cached_property
    def shorter(self) -> "Predictor":
        """The same for models that read prompts without what all of them begin with."""
        cut = {name: self.splits[name].without_beginning(self.base) for name in self.meta.tests}
        return replace(self, splits={**self.splits, **cut}, prefixes={})

    @cached_property
    def by_classes(self) -> "Predictor":
        """The same for models with class heads, which answer nothing but test splits."""
        tests = {name: of_classes(self.splits[name], rule_of(self.meta)) for name in self.meta.tests}
        return replace(self, splits=tests, prefixes={}, classes=True)

    def open(self, folder: Path, name: str, frozen: int | None = None) -> ReadyModel:
        """Open the model in ``folder``, whose embedding and layers 1..frozen are the base's; ``None``: all are.

        Layers drop tokens, or are quantised, as in training, in the base all of them. All are offloaded, since nothing
        trains.
        """
        held = self.runtime.frozen(None if self.runtime.frozen_weights == "offload" else frozen)
        model = open_trained(folder, self.base, self.runtime, held)
        if self.classes:
            open_class_head(model, folder)

        def started(split: str) -> Split:
            return replace(self.splits[split], start=self._start(model, frozen, split) if frozen else None)

        return ReadyModel(name, model, model.network, started)

    def open_answer_side(self, folder: Path, name: str, side: AnswerSide) -> ReadyModel:
        """The same with weights that act on answers alone: the base reads the prompts, up to where ``side`` says."""
        opened, trained = open_twin(folder, self.base, self.runtime)

        def started(name: str) -> Split:
            split = self.splits[name].after_prompts(side)
            prompts = self._prompts(opened, split, name)
            start = answer_side(trained, self.runtime, split, prompts.start, None, opened.record.boundary)
            return replace(split, start=start)

        return ReadyModel(name, trained, opened, started)

    def read(self, ready: ReadyModel, name: str, rule: Rule) -> list[Answer]:
        """Read a split, and say by ``rule`` which answers the model prefers."""
        split, reader = ready.started(name), Reader(ready.model, self.runtime, rule, self.params.batch_tokens)
        with progress(f"evaluating {ready.name} on {name}", len(split), "examples") as advance:
            return reader.read(split, lambda n: advance(n, ""))

    def shift(self, ready: ReadyModel, name: str, examples: int) -> Shift:
        """Measure how far the model's predictions on the first examples of a split are from the base's."""
        split = ready.started(name)
        some = split.subset(range(min(examples, len(split))))
        return measure_shift(ready.model, self._base, self.runtime, some, self.params.batch_tokens)

    @torch.no_grad()
    def kept(self, ready: ReadyModel, name: str) -> KeptContext | None:
        """Read a split, and the beginning of its first text: what is kept of the context, if a model drops any."""
        owns, most = interactions(ready.model.network), self.params.batch_tokens
        if not owns:
            return None
        split = ready.started(name)
        passes = answer_states(ready.model, self.runtime, split, most)
        shares = torch.cat([kept_shares(ready.model.network, batch) for _, batch, _ in passes], 1).mean(1).tolist()
        text = replace(split.examples[0], answer_ids=split.examples[0].answer_ids[:_SHOWN])
        list(answer_states(ready.model, self.runtime, Split([text], 0), most))
        kept = ["".join("1" if one else "0" for one in (own.log_kept[0, -1] == 0).tolist()) for own in owns]
        layers = range(ready.model.depth - len(owns) + 1, ready.model.depth + 1)
        return KeptContext(
            share=float(np.mean(shares)),
            layers=dict(zip(layers, shares, strict=True)),
            tokens=[self._tokenizer.decode([token]) for token in text.inputs],
            kept=dict(zip(layers, kept, strict=True)),
        )

    @cached_property
    def _base(self) -> CausalModel:
        """The base model, none of its layers quantised: only what is above a boundary runs."""
        return open_model(self.base, self.runtime.device, self.runtime.dtype)

    def predict(self, ready: ReadyModel, name: str) -> Predictions:
        """Answer a test split."""
        rule, split = rule_of(self.meta), self.splits[name]
        rule = class_rule(rule) if self.classes else rule
        answers = self.read(ready, name, rule)
        loss = np.array([answer.loss for answer in answers])
        tokens = np.array([len(example.answer_ids) for example in split.examples], float)
        if TASKS[self.meta.task].text:
            return Predictions([""] * len(answers), None, loss, tokens, [None] * len(answers))
        if rule is not None:
            said = [answer.predicted or "" for answer in answers]
            correct = [answer.correct or False for answer in answers]
        else:
            said = self._written(ready, name)
            # Both sides without special tokens, which chat templates put into answers, too.
            asked = [self._tokenizer.decode(one.answer_ids, skip_special_tokens=True) for one in split.examples]
            correct = [exact_match(*both, self.params.answer_marker) for both in zip(said, asked, strict=True)]
        return Predictions(said, np.array(correct, float), loss, tokens, [answer.probability for answer in answers])

    def _written(self, ready: ReadyModel, name: str) -> list[str]:
        assert self.meta.end_token_id is not None, "free answers end with a token of their own"
        longest, most, split = self.params.generate_tokens, self.params.batch_tokens, ready.started(name)
        with progress(f"{ready.name} writes its answers", len(split), "examples") as advance:
            return write_answers(
                ready.writer, self._tokenizer, split, longest, self.meta.end_token_id, most, lambda n: advance(n, "")
            )

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return Tokenizer.from_file(str(self.base / "tokenizer.json"))

    def _prompts(self, opened: AnswerSideModel, split: Split, name: str) -> Opened:
        """The keys and values of a split's prompts by the base model."""
        boundary = opened.record.boundary
        place = name, (boundary, *(split.base_rows or ()))
        if place not in self.prompts:
            with base_alone(opened.trained):
                base = take_apart(opened.base)
                cache = self._cache_of(base, base.depth, split.shared)
                again = partial(open_model, self.base, self.runtime.device, self.runtime.dtype)
                self.prompts[place] = cache.open_prompts(split, boundary, None, again)
            print_opened(f"prompts above layer {boundary}", {name: self.prompts[place]})
        return self.prompts[place]

    def _start(self, model: CausalModel, frozen: int, name: str) -> Start:
        split, place = self.splits[name], (name, frozen)
        if place not in self.prefixes:
            self.prefixes[place] = self._cache_of(model, frozen, split.shared).open(split.examples)
            print_opened(f"boundary states of layer {frozen}", {name: self.prefixes[place]})
        return self.prefixes[place].start_for(model)

    def _cache_of(self, model: CausalModel, frozen: int, shared: int) -> BoundaryCache:
        units = frozen_units(self.shards, frozen)
        return BoundaryCache(self.cache, model, self.runtime, units, shared, self.params.batch_tokens)


def open_trained(folder: Path, base: Path, runtime: Runtime, frozen: Frozen = WHOLE) -> CausalModel:
    """Open a model whose layers drop tokens, or are quantised, as in training; ``base`` is the base model's folder."""
    model = open_model(folder, runtime.device, runtime.dtype, frozen=frozen, base=base)
    pruned(quantised(model.network, folder), folder)
    return model


def open_twin(folder: Path, base: Path, runtime: Runtime) -> tuple[AnswerSideModel, CausalModel]:
    """Open an answer-side model, and take its trained twin apart, whose weights act at every position that it reads."""
    dtype = getattr(torch, AnswerSideRecord.load(folder).base.dtype)
    opened = AnswerSideModel.from_pretrained(folder, open_model(base, runtime.device, dtype).network).to(runtime.dtype)
    return opened, take_apart(network_of(opened.trained).eval())


def frozen_layers(shards: Mapping[str, str], base: Mapping[str, str]) -> int:
    """Count the layers, from the embedding up, whose shards (file name → SHA-256) are the base's."""
    if shards["embedding.safetensors"] != base["embedding.safetensors"]:
        return 0
    layers = sorted(name for name in base if name.startswith("layer-"))
    return next((depth for depth, name in enumerate(layers) if shards[name] != base[name]), len(layers))


def prediction_rows(name: str, predictions: Mapping[str, Predictions], test: Sequence[Example]) -> list[dict[str, Any]]:
    """Rows of ``predictions.parquet``, one per model and example of the test split ``name``."""
    return [
        {
            "split": name,
            "run": run,
            "example_id": example.example_id,
            "text": example.text,
            "label": example.label if example.label is not None else example.answer,
            "predicted": said.predicted[i],
            "correct": None if said.correct is None else bool(said.correct[i]),
            "probability": said.probability[i],
            "loss": None if said.loss is None else float(said.loss[i]),
        }
        for run, said in predictions.items()
        for i, example in enumerate(test)
    ]


@torch.no_grad()
def write_answers(
    writer: Any,
    tokenizer: Tokenizer,
    split: Split,
    longest: int,
    end: int | None,
    batch_tokens: int,
    advance: Callable[[int], None],
) -> list[str]:
    """Generate at most ``longest`` tokens greedily, or what the context has left; prompts of one length share batches.

    ``writer`` is a Hugging Face model, or an answer-side model where the base reads the split's prompts. ``end`` is
    the token that ends an answer (in a chat, a turn). The model's own end tokens count too.
    """
    answers, settings = [""] * len(split), writer.config
    own = settings.eos_token_id
    ends = sorted({one for one in (end, *(own if isinstance(own, list) else [own])) if one is not None})
    by_length: dict[tuple[int, ...], list[int]] = {}
    for i, example in enumerate(split.examples):
        read = (split.base_rows[i],) if split.base_rows else ()
        by_length.setdefault((len(example.prompt_ids), *read), []).append(i)
    # Equal lengths need no padding, and an unpadded prompt is what the model was trained on.
    for (length, *before), members in sorted(by_length.items()):
        context = getattr(settings, "max_position_embeddings", None) or length + longest
        room = min(longest, int(context) - length)
        config = GenerationConfig(max_new_tokens=room, do_sample=False, eos_token_id=ends, pad_token_id=end)
        size = max(1, batch_tokens // (length + room))
        for at in range(0, len(members), size):
            index = members[at : at + size]
            ids = torch.tensor([split.examples[i].prompt_ids for i in index], device=next(writer.parameters()).device)
            options = {"split": before * len(index)} if before else {}
            asked = {"attention_mask": torch.ones_like(ids), "generation_config": config, **options}
            written = writer.generate(ids, **asked)
            for i, row in zip(index, written[:, length:].tolist(), strict=True):
                answers[i] = tokenizer.decode(row, skip_special_tokens=True)
            advance(len(index))
    return answers


def exact_match(answer: str, reference: str, marker: str | None) -> bool:
    """Compare texts up to white space; with a marker (gsm8k: ``####``) only what follows its last occurrence."""
    compared = (text if marker is None else text.rpartition(marker)[2] for text in (answer, reference))
    return len({" ".join(text.split()) for text in compared}) == 1
