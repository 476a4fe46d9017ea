"""The examples that signals are measured on, and one forward pass over their prompts.

Answers' tokens are never read. The prompts' shared prefix runs once and is left out of all means.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, takewhile
from pathlib import Path
from pkgutil import resolve_name
from typing import Final

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from salf.engine.answers import Embeddings
from salf.engine.batches import Example, Split, inference_batches, stream_examples
from salf.engine.models.adapter import WHOLE, CausalModel, open_model
from salf.engine.models.attention import Packing
from salf.engine.models.walk import walk, walk_beginning
from salf.engine.progress import progress
from salf.engine.runtime import Runtime, choose_runtime
from salf.errors import UserError
from salf.files import require
from salf.records import read_sizes
from salf.selectors import SIGNALS
from salf.settings import Device
from stages.common.params import Signals

SPLIT: Final = "train"
States = NDArray[np.float32]
Classes = NDArray[np.int64]


@dataclass(frozen=True)
class PromptStates:
    """The states of a forward pass over n prompts, without the final norm."""

    answer: States  # at the position that predicts the answer's first token, [L+1, n, H]
    pooled: States  # averaged over each prompt's own tokens, [L+1, n, H]
    cosines: NDArray[np.float64]  # cos(h_{k-1}, h_k) averaged over all prompts' own tokens, by layer, [L]


@dataclass(frozen=True)
class Sample:
    """The examples of a signal; states and classes are computed at first use."""

    model: CausalModel
    runtime: Runtime
    split: Split  # n examples of the training split
    params: Signals

    @cached_property
    def states(self) -> PromptStates:
        """The prompts' states."""
        return prompt_states(self.model, self.runtime, self.split, self.params.batch_tokens)

    @cached_property
    def classes(self) -> Classes:
        """The class of each example, [n]."""
        return classes_of(self.split.examples)


def measure(base: Path, prepared: Path, device: Device, params: Signals) -> tuple[dict[str, Sequence[float]], int]:
    """The columns of the signals ``params.kinds``, and the model's number of layers."""
    runtime, split = choose_runtime(device), _draw(prepared, params)
    signals = [SIGNALS[kind] for kind in params.kinds]
    if tell_apart := [kind for kind in params.kinds if SIGNALS[kind].of_classes]:
        try:  # before anything is computed
            classes_of(split.examples)
        except UserError as fault:
            raise UserError(f"signals.kinds: {tell_apart[0]} tells classes apart, and {fault}") from None
    stored = any(signal.of_weights for signal in signals)
    model = open_model(base, runtime.device, frozen=WHOLE if stored else runtime.frozen())
    print(f"signals of {len(split)} examples on {runtime.device} in {runtime.dtype_name}: {runtime.reason}")
    sample, columns = Sample(model, runtime, split, params), dict[str, Sequence[float]]()
    for signal in signals:
        found = resolve_name(f"stages.signals.{signal.function}")(sample)
        columns |= dict(zip(signal.columns, found, strict=True))
    return columns, model.depth


def _draw(prepared: Path, params: Signals) -> Split:
    """``signals.sample`` examples of the training split, in the order of the file."""
    count = pq.read_metadata(require(prepared / f"{SPLIT}.parquet", made_by="prepare")).num_rows
    drawn = np.random.default_rng(params.seed).permutation(count)[: params.sample]
    examples = list(stream_examples(prepared, SPLIT, np.sort(drawn)))
    return Split(examples, read_sizes(prepared).shared_prefix_tokens)


def classes_of(examples: Sequence[Example]) -> Classes:
    """The class of each example as a number 0..C-1: its label, or the first token in which free answers differ, [n]."""
    # A chat template may begin all answers alike (an empty block of thoughts).
    places = zip(*(example.answer_ids for example in examples), strict=False)
    first = sum(1 for _ in takewhile(lambda tokens: len(set(tokens)) == 1, places))
    keys = [example.answer_ids[first : first + 1] if example.label is None else example.label for example in examples]
    counts = Counter(keys)
    alone = sum(count == 1 for count in counts.values())
    what = "answers' first tokens" if examples[0].label is None else "labels"
    if len(counts) < 2:
        raise UserError(f"the {what} of the sample are all the same")
    if 2 * alone > len(keys):
        raise UserError(
            f"{alone} of the sample's {len(keys)} {what} occur once; raise signals.sample, or leave such kinds out"
        )
    number = {key: index for index, key in enumerate(sorted(counts))}
    return np.array([number[key] for key in keys])


def block_influence(sample: Sample) -> tuple[NDArray[np.float64]]:
    """The turn of the states by each layer 1..L: 1 − cos(h_{k-1}, h_k), [L] (ShortGPT, arXiv 2403.03853, §3.1)."""
    return (1 - sample.states.cosines,)


@torch.no_grad()
def prompt_states(model: CausalModel, runtime: Runtime, split: Split, batch_tokens: int) -> PromptStates:
    """Run the prompts of a split through all layers."""
    examples = [replace(example, answer_ids=example.answer_ids[:1]) for example in split.examples]
    prompts = Split(examples, split.shared)
    shape = (model.depth + 1, len(prompts), model.embedding.weight.shape[1])
    answer, pooled = np.empty(shape, np.float32), np.empty(shape, np.float32)
    cosines, tokens = np.zeros(model.depth), 0
    with runtime.autocast(), progress("signals", len(prompts), "examples") as advance:
        start = Embeddings.after(model, prompts.prefix)
        beginning = walk_beginning(model, start.beginning(), 0, model.depth)
        for picks in inference_batches(prompts.lengths, batch_tokens):
            batch = prompts.batch(picks).to(model.device)
            packing = Packing.of(batch.lengths, model.device, walked=beginning)
            embedded = model.embed(batch.ids, batch.positions)  # space 0
            before: Tensor | None = None
            for space, states in enumerate(chain([embedded], walk(model, embedded, 0, model.depth, packing))):  # [N, H]
                answer[space, picks] = states[batch.answers].float().cpu().numpy()
                means = [part.float().mean(0) for part in states.split(list(batch.lengths))]
                pooled[space, picks] = torch.stack(means).cpu().numpy()  # [B, H]
                if before is not None:
                    each = nn.functional.cosine_similarity(before.float(), states.float(), dim=-1)  # [N]
                    cosines[space - 1] += float(each.double().sum())
                before = states
            tokens += sum(batch.lengths)
            advance(len(picks), "")
    for space in range(model.depth + 1):
        if not (np.isfinite(answer[space]).all() and np.isfinite(pooled[space]).all()):
            raise UserError(
                f"a state of space {space} is not a number: the model overflows in this precision; "
                "set device.dtype to float32"
            )
    return PromptStates(answer, pooled, cosines / tokens)
