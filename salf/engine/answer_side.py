"""Answer-side tuning in any training loop: cached prompt keys and values, and a model that goes on from there.

The base model reads the prompt part of every example once. Its keys and values are constants, so the trained model
runs at the positions after it only. It is a shallow copy of the network, as a suffix is (:mod:`salf.engine.suffix`):
its trunk turns a batch's cached keys and values into transformers' own ``DynamicCache``, padded on the left, so that
masks, windows and positions are the network's own code.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from math import gcd
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache

from salf.answer_folder import AnswerSideRecord
from salf.engine.answer_model import base_alone, describe, positions, save_answer_side
from salf.engine.batches import Example, inference_batches
from salf.engine.boundary_cache.key import Key
from salf.engine.boundary_cache.states import Layout, Timed
from salf.engine.models.adapter import CausalModel, apart, require_same_logits
from salf.engine.models.causal_model import in_eval_mode
from salf.engine.prefix import (
    IGNORED,
    CachedRows,
    Row,
    Rows,
    kept,
    read_rows,
    require_positions,
    runtime_of,
    shared_tokens,
)
from salf.engine.progress import progress
from salf.engine.runtime import Runtime
from salf.engine.suffix import Network, SavedWhole, Trunk, frozen_layers, network_of, outputs_of, twin_of, wrapped_again
from salf.errors import UserError
from salf.families import family_of
from salf.files import sha256_file
from salf.parameters import NetworkParameters, layer_index
from salf.plan import FreezePlan
from salf.split_point import base_rows

_SPLIT: Final = "split"  # the column of rows that say where their prompt part ends

Shape = tuple[int, int]  # heads and head size of a layer's keys or values


@dataclass(frozen=True)
class _Form:
    """How an example lies in the cache: s rows [width] of the prompt, then T boundary states, in units of one row."""

    boundary: int
    shapes: tuple[Shape, ...]  # keys and values in turn, of layers boundary + 1..L
    dtype: torch.dtype  # of keys and values
    state: tuple[int, torch.dtype] | None  # hidden size and type of boundary states; ``None``: tokens instead

    @property
    def width(self) -> int:
        """Numbers that a token of the prompt leaves."""
        return sum(heads * size for heads, size in self.shapes)

    @property
    def state_width(self) -> int:
        """Numbers of the keys' type that take the place of a boundary state's."""
        return self.state[0] * self.state[1].itemsize // self.dtype.itemsize if self.state else 0

    @property
    def unit(self) -> int:
        """Numbers of a row of the cache."""
        return gcd(self.width, self.state_width)

    def rows(self, prompt: int, rest: int) -> int:
        """Rows of the cache that so many tokens of the prompt, and after it, take."""
        return (prompt * self.width + rest * self.state_width) // self.unit

    def cache(self, prompt: Tensor) -> DynamicCache:
        """A batch's [B, P, width] as transformers takes them; frozen layers, which do not run, get a place holder."""
        parts = prompt.split([heads * size for heads, size in self.shapes], dim=-1)
        layers = [
            part.unflatten(-1, shape).transpose(1, 2)  # [B, heads, P, head size]
            for part, shape in zip(parts, self.shapes, strict=True)
        ]
        empty = prompt.new_zeros(1).expand(len(prompt), 1, prompt.shape[1], 1)
        return DynamicCache([(empty, empty)] * self.boundary + list(zip(layers[::2], layers[1::2], strict=True)))


class PromptCache(CachedRows):
    """Base keys and values of the prompt parts of a tokenised dataset, one item per example.

    An item has `past_key_values` [s, W], where W counts the numbers that a token leaves in all trained layers;
    `input_ids` [T], the tokens after the prompt part, or their boundary states `inputs_embeds` [T, H] if layers are
    frozen; and `labels` [T]. Use `collate_answers` to make batches.

    Attributes:
        boundary: the last frozen layer; 0 if none is.
        size: bytes of the cache.
        reused: it comes from a file that was already there.
        record: what a saved model's `answer_side.json` will say.
        plan: the freeze plan that gave the boundary, if one did.
    """

    def __init__(
        self, cached: "_Cached", record: AnswerSideRecord, plan: FreezePlan | None, *, reused: bool = False
    ) -> None:
        """Wrap what was read."""
        self._cached, self.form = cached, cached.form
        self.record, self.plan, self.reused = record, plan, reused
        self.boundary, self.size = cached.form.boundary, cached.rows.nbytes

    def __len__(self) -> int:
        return len(self._cached.examples)

    def __getitem__(self, index: int) -> Row:
        return self._cached.item(range(len(self))[index])


@dataclass(frozen=True)
class _Split:
    """A row of a dataset, split."""

    ids: Tensor  # [N]
    labels: Tensor  # [N]
    split: int  # s: the base reads the first s tokens
    prompt: int  # tokens before the first label

    def read(self, boundary: int) -> Tensor:
        """The tokens that the base reads: the prompt part, or all where boundary states are wanted."""
        return self.ids if boundary else self.ids[: self.split]


@dataclass(frozen=True)
class _Cached:
    """The cache's rows, and where each example's are."""

    form: _Form
    layout: Layout
    examples: Sequence[_Split]
    rows: Tensor  # [layout.rows, form.unit]

    def item(self, index: int) -> Row:
        """See :class:`PromptCache`."""
        example, layout, form = self.examples[index], self.layout, self.form
        first, count = int(layout.firsts[index]), int(layout.lengths[index])
        # A copy, never a view: a mapped file may begin at any address.
        flat = torch.cat([self.rows[: layout.shared], self.rows[first : first + count]]).flatten()
        numbers = example.split * form.width
        item = {"past_key_values": flat[:numbers].view(-1, form.width), "labels": example.labels[example.split :]}
        if form.state is None:
            return {**item, "input_ids": example.ids[example.split :]}
        return {**item, "inputs_embeds": flat[numbers:].view(form.state[1]).view(-1, form.state[0])}


def prompt_cache(
    model: nn.Module,
    dataset: Rows,
    plan_or_boundary: FreezePlan | int = 0,
    *,
    scope: str | None = None,
    extra: int = 0,
    file: str | Path | None = None,
    bf16: bool = False,
    batch_tokens: int = 4096,
) -> PromptCache:
    """Let a model read the prompt part of every example, once and without gradients, before it is trained.

    The prompt part ends before the position that predicts the first label. The model runs in eval mode, and without
    PEFT's adapters, so one cache serves all seeds, learning rates, and full weights as well as LoRA. Passes hold
    examples of similar length; a prefix that all examples share is computed and kept once.

    Args:
        model: a Hugging Face causal language model with its weights from before training, or PEFT's wrapper around it.
        dataset: rows with `input_ids` and `labels`, which are -100 over the prompt; `attention_mask` marks padding. An
            optional column `split` says how many of a row's tokens the base reads, if fewer than it could.
        plan_or_boundary: a freeze plan, or the last frozen layer (0 to L); 0 trains all layers.
        scope: a selector or `freeze-<k>`, to use its boundary instead of the plan's own.
        extra: that many more prompt tokens of each row on the trained side.
        file: where to keep the cache, as a memory-mapped safetensors file with the key of its model and tokens.
        bf16: multiply in bfloat16 (autocast), as a Trainer with `bf16=True` does; keys and values are kept in it.
        batch_tokens: tokens in one pass.

    Raises:
        UserError: rows have no prompt part (with their number), memory or disk is too small, the file holds something
            else, adapters are at or below the boundary, or the model has layers without keys and values.
    """
    network = network_of(model)
    boundary = frozen_layers(network, plan_or_boundary, scope, least=0)
    if boundary == network.config.get_text_config().num_hidden_layers:
        raise UserError(f"boundary {boundary} freezes all layers, so none reads cached prompts; use salf.prefix_states")
    _require_no_adapter(model, boundary)
    examples = _split(dataset, network.get_input_embeddings().weight.shape[0], extra)
    prompts = [(row.ids[: row.prompt].tolist(), row.split) for row in examples]
    record = describe(model, boundary, prompts)
    plan = plan_or_boundary if isinstance(plan_or_boundary, FreezePlan) else None
    with base_alone(model), apart(network) as causal:
        require_positions(causal, max(len(row.ids) for row in examples))
        reading = _Reading(causal, runtime_of(causal, bf16=bf16), boundary, examples, batch_tokens)
        cached, reused = reading.cached(file, record.base.sha256)
    return PromptCache(cached, record, plan, reused=reused)


def _require_no_adapter(model: nn.Module, boundary: int) -> None:
    parameters = NetworkParameters.of(model)
    family = family_of(network_of(model).config.model_type, parameters.own)
    if any((layer_index(name, family) or 0) < boundary for name in parameters.added):
        raise UserError(f"PEFT put adapters at or below boundary {boundary}; give it layers_to_transform above")


def _split(dataset: Rows, vocabulary: int, extra: int) -> list[_Split]:
    """Rows with their split points; a ``UserError`` counts those without a prompt part."""
    examples, labels = read_rows(dataset, vocabulary)
    ends = [dataset[number].get(_SPLIT) for number in range(len(examples))]
    rows = []
    for example, marks, end in zip(examples, labels, ends, strict=True):
        labelled = (marks != IGNORED).nonzero()
        prompt = int(labelled[0]) if len(labelled) else 0
        split = base_rows(prompt, prompt if end is None else int(end), extra)
        rows.append(_Split(torch.tensor(example.prompt_ids), marks, split, prompt))
    if without := sum(row.split == 0 for row in rows):
        raise UserError(
            f"{without:,} of {len(rows):,} rows have no prompt part that the base model could read: labels are -100 "
            "over the prompt, which has two tokens at least, more with split or extra"
        )
    return rows


class _Reading:
    """The base's pass over all examples."""

    def __init__(
        self,
        model: CausalModel,
        runtime: Runtime,
        boundary: int,
        examples: Sequence[_Split],
        batch_tokens: int,
        *,
        shown: bool = True,
    ) -> None:
        self.model, self.runtime, self.examples, self.batch_tokens = model, runtime, examples, batch_tokens
        self.shown = shown  # whether progress is
        self.ids = [row.read(boundary) for row in examples]
        self.shared = shared_tokens([tuple(row.ids[: row.split].tolist()) for row in examples])
        self.boundary = boundary
        with torch.no_grad():
            cache, states = self._pass(self.ids[0][None, :1], None)
        if len(cache.layers) != model.depth or any(layer.keys is None for layer in cache.layers):
            raise UserError(
                f"model type {model.network.config.model_type!r}: not all of its layers have keys and values, so a "
                "prompt cannot be cached; freeze layers instead (salf.prefix_states)"
            )
        parts = [part for layer in cache.layers[boundary:] for part in (layer.keys, layer.values)]
        shapes = tuple((part.shape[1], part.shape[3]) for part in parts)
        held = runtime.dtype if runtime.dtype == torch.bfloat16 else model.network.dtype
        self.form = _Form(boundary, shapes, held, None if states is None else (states.shape[2], states.dtype))
        tokens = [len(ids) - self.shared for ids in self.ids]
        counts = [
            self.form.rows(row.split - self.shared, len(ids) - row.split)
            for row, ids in zip(examples, self.ids, strict=True)
        ]
        groups = inference_batches(tokens, batch_tokens)
        self.layout = Layout.of_rows(self.form.rows(self.shared, 0), groups, counts)

    def cached(self, file: str | Path | None, units: Mapping[str, str]) -> tuple[_Cached, bool]:
        """What was read, and whether it was in the file; ``units``: hashes of the base's weights."""
        size = self.layout.rows * self.form.unit * self.form.dtype.itemsize
        needed, parts = (self.layout.rows, size), Timed(self._parts())
        rows, reused = kept("the prompts' keys and values", file, lambda: self._digest(units), parts, needed)
        return _Cached(self.form, self.layout, self.examples, rows), reused

    def _digest(self, units: Mapping[str, str]) -> str:
        examples = [Example("", None, "", "", tuple(ids.tolist()), ()) for ids in self.ids]
        key = Key.of(self.model, self.runtime, tuple(units.values()), examples, self.shared, self.batch_tokens)
        own = {"answer_side": [self.boundary, *(row.split for row in self.examples)], "by": sha256_file(Path(__file__))}
        return replace(key, given={**key.given, **own}).digest

    @torch.no_grad()
    def _parts(self) -> Iterator[Tensor]:
        """Rows of the shared prefix, then of each pass's examples, in the layout's order and on the host."""
        beginning = None
        if self.shared:
            beginning, _ = self._pass(self.ids[0][None, : self.shared], None)
            yield self._keys_values(beginning, 0).reshape(-1, self.form.unit).cpu()
        shown = progress("prompts once", len(self.examples), "examples") if self.shown else nullcontext(_silent)
        with shown as advance:
            for group in self.layout.groups:
                yield torch.cat(list(self._group(group, beginning))).cpu()
                advance(len(group), "")

    def _group(self, group: Sequence[int], beginning: DynamicCache | None) -> Iterator[Tensor]:
        own = [self.ids[i][self.shared :] for i in group]
        cache, states = self._pass(pad_sequence(own, batch_first=True), beginning)
        prompts = self._keys_values(cache, self.shared)  # [B, T, width]
        for at, i in enumerate(group):
            split = self.examples[i].split - self.shared
            yield prompts[at, :split].reshape(-1, self.form.unit)
            if states is not None:
                yield states[at, split : len(own[at])].contiguous().view(self.form.dtype).reshape(-1, self.form.unit)

    def _pass(self, ids: Tensor, beginning: DynamicCache | None) -> tuple[DynamicCache, Tensor | None]:
        """Keys and values after tokens [B, T], padded on the right, and states [B, T, H] at the boundary if it is one.

        A causal model never looks back from the padding on the right, so no mask is needed.
        """
        ids = ids.to(self.model.device)
        past = [] if beginning is None else beginning.layers
        cache = DynamicCache(
            [(one.keys.expand(len(ids), -1, -1, -1), one.values.expand(len(ids), -1, -1, -1)) for one in past] or None
        )
        whole = ids.new_ones(len(ids), cache.get_seq_length() + ids.shape[1])
        placed = positions(type(self.model.trunk), whole, ids.shape[1])
        options = {"past_key_values": cache, "use_cache": True, **placed}
        with self.runtime.autocast():
            if not self.boundary:
                self.model.trunk(input_ids=ids, **options)
                return cache, None
            with outputs_of(self.model.layers[self.boundary - 1]) as outputs:
                self.model.trunk(input_ids=ids, **options)
        return cache, outputs[0][0] if isinstance(outputs[0], tuple) else outputs[0]

    def _keys_values(self, cache: DynamicCache, start: int) -> Tensor:
        """Of tokens from ``start`` on, and all trained layers: [B, T, width]."""
        parts = [part for layer in cache.layers[self.boundary :] for part in (layer.keys, layer.values)]
        rows = [part[:, :, start:].transpose(1, 2).flatten(2) for part in parts]
        return torch.cat(rows, dim=-1).to(self.form.dtype)


def _silent(_done: float, _words: str) -> None:
    """No progress to be seen."""


def collate_answers(rows: Sequence[Row]) -> Row:
    """Make a batch of items of `PromptCache`, for a `DataLoader` or a Trainer's `data_collator`.

    Prompt parts are padded on the left and the rest on the right, so that they meet. Position ids are not needed: they
    follow from the mask.

    Returns:
        `past_key_values` [B, P, W], `attention_mask` [B, P + T], `labels` [B, T], and `input_ids` [B, T] or
        `inputs_embeds` [B, T, H].

    Raises:
        UserError: rows are something else, such as token ids.
    """
    if not all("past_key_values" in row for row in rows):
        raise UserError("these are no items of prompt_cache; an evaluation split needs its cache, too")
    name = "input_ids" if "input_ids" in rows[0] else "inputs_embeds"
    labels = [row["labels"] for row in rows]
    prompts = [row["past_key_values"] for row in rows]
    seen = pad_sequence([one.new_ones(len(one), dtype=torch.long) for one in prompts], True, 0, "left")
    own = pad_sequence([torch.ones_like(one) for one in labels], batch_first=True)
    return {
        "past_key_values": pad_sequence(prompts, batch_first=True, padding_side="left"),
        "attention_mask": torch.cat([seen, own], dim=1),
        "labels": pad_sequence(labels, True, IGNORED),
        name: pad_sequence([row[name] for row in rows], batch_first=True),
    }


def answer_side(model: nn.Module, cache: PromptCache) -> Any:
    """Return the model that goes on where cached prompt parts end, and trains at the positions after them only.

    The result is called like the Hugging Face model itself, with batches of `collate_answers`: `labels` (-100 is
    ignored), `num_items_in_batch`, `return_dict` and the rest mean the same, and `attention_mask` covers prompt part
    and tokens, as always with `past_key_values`. It shares the model's parameters. `requires_grad` is set as by
    `FreezePlan.apply` with the cache's boundary; embeddings, and a head tied to them, stay the base's in any case.

    For adapters wrap the model first (`get_peft_model(model, ...)`) and give the wrapper.

    `save_pretrained`, and so a checkpoint of a Trainer, writes a folder that `AnswerSideModel.from_pretrained` opens:
    the trained weights and the base's name, or an adapter. It is not an ordinary model folder, and transformers does
    not open it.

    Args:
        model: the model that the cache was computed with, or PEFT's wrapper around it.
        cache: the prompt cache of the training examples.

    Raises:
        UserError: nothing is left to train, adapters are at or below the boundary, or the model's logits after cached
            prompts are not those without a cache.
    """
    network = network_of(model)
    _require_no_adapter(model, cache.boundary)
    parameters = NetworkParameters.of(model)
    family = family_of(network.config.model_type, parameters.own)
    form = "weights" if network is model else "lora"
    saved = {"plan": cache.plan, "record": cache.record.model_copy(update={"form": form})}
    twin, trunk = twin_of(network, family, cache.boundary, _Network, _Trunk)
    vars(twin).update(saved, main_input_name="inputs_embeds" if cache.boundary else "input_ids")
    vars(trunk).update(form=cache.form, plain=type(network.get_submodule(family.trunk)))
    with base_alone(model), in_eval_mode(network):
        _check(network, twin, trunk)
    tied = network.get_input_embeddings().weight is network.get_output_embeddings().weight
    parameters.train_above(family, cache.boundary, tied_head=tied)
    for name, parameter in parameters.own.items():  # the base reads prompts with its embeddings; answers share them
        parameter.requires_grad &= not family.before_layers(name)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError(f"above boundary {cache.boundary} nothing is left to train: PEFT put no adapter there")
    return twin if network is model else wrapped_again(model, twin, _Wrapper, **saved)


class _Trunk(Trunk):
    """What is different in the trunk: a batch's cached prompts come before its tokens, or its boundary states."""

    form: _Form
    plain: type  # the network's own class of trunk
    training: bool
    modules: Any

    def forward(
        self,
        input_ids: Tensor | None = None,
        *,
        inputs_embeds: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Tensor | None = None,
        **options: Any,
    ) -> Any:
        """Run the trunk at the positions after the prompt parts."""
        given = input_ids if inputs_embeds is None else inputs_embeds
        if given is None or attention_mask is None or not isinstance(past_key_values, Tensor):
            raise UserError(
                "an answer side takes batches of collate_answers; for token ids alone call the model itself"
            )
        if self.training and any(getattr(part, "gradient_checkpointing", False) for part in self.modules()):
            raise UserError("transformers' gradient checkpointing drops cached keys and values; switch it off")
        placed = positions(self.plain, attention_mask, given.shape[1])
        cached = self.form.cache(past_key_values)
        options |= {"attention_mask": attention_mask, "past_key_values": cached, "use_cache": False, **placed}
        if self.form.boundary:
            return super().forward(input_ids, inputs_embeds=inputs_embeds, **options)
        plain: Any = super(Trunk, self)
        return plain.forward(input_ids=input_ids, inputs_embeds=inputs_embeds, **options)


class _Saved(SavedWhole):
    """What is different in the whole: it is saved as an answer-side folder."""

    record: AnswerSideRecord
    plan: FreezePlan | None

    def save_pretrained(self, save_directory: str | Path, **_: Any) -> None:
        """Write what `AnswerSideModel.from_pretrained` opens."""
        save_answer_side(Path(save_directory), self.whole, self.record, self.plan)

    def generate(self, *_: Any, **__: Any) -> Any:
        """Refuse.

        Raises:
            UserError: always.
        """
        raise UserError(
            "an answer side does not generate: the base reads the prompt; save it, and open the folder with "
            "salf.AnswerSideModel.from_pretrained"
        )


class _Network(_Saved, Network):
    """What is different in the network as a whole."""

    @property
    def peft_config(self) -> Any:
        """The network's own, where PEFT wrapped that one before."""
        try:
            return vars(self)["peft_config"]
        except KeyError:
            raise AttributeError("peft_config") from None

    @peft_config.setter
    def peft_config(self, _: Any) -> None:
        """PEFT tells what it wraps; it would save an adapter that anything opens as an ordinary one."""
        raise UserError("give PEFT the model, and its wrapper to salf.answer_side, not the other way round")


class _Wrapper(_Saved):
    """What is different in PEFT's wrapper."""

    def merge_and_unload(self, *_: Any, **__: Any) -> Any:
        """Refuse.

        Raises:
            UserError: always.
        """
        raise UserError("an adapter that acts after the prompt part only cannot be merged into the weights")

    merge_adapter = merge_and_unload


def _check(network: Any, twin: Any, trunk: Any) -> None:
    """Compare logits after cached prompts with those without a cache, on a few tokens; learn how layers return states.

    Raises:
        UserError: they differ.
    """
    tokens = [torch.arange(1, count) for count in (7, 6)]
    examples = [_Split(ids, ids, split, split + 1) for ids, split in zip(tokens, (3, 2), strict=True)]
    with apart(network) as causal:
        reading = _Reading(causal, runtime_of(causal, bf16=False), trunk.form.boundary, examples, 99, shown=False)
        cached, _ = reading.cached(None, {})
        family, device = causal.family, causal.device
    items = collate_answers([cached.item(at) for at in range(len(examples))])
    batch = {name: value.to(device) for name, value in items.items()}
    ids = pad_sequence(tokens, batch_first=True).to(device)

    def both() -> tuple[Tensor, Tensor]:
        with outputs_of(network.get_submodule(family.layers)[max(trunk.form.boundary, 1) - 1]) as outputs:
            theirs = network(input_ids=ids, use_cache=False).logits
        trunk.entry.take(outputs[0])
        ours = twin(**batch).logits
        ends = [(row.split, len(row.ids)) for row in examples]
        return (
            torch.cat([ours[at, : end - split] for at, (split, end) in enumerate(ends)]),
            torch.cat([theirs[at, split:end] for at, (split, end) in enumerate(ends)]),
        )

    require_same_logits(network, both)
