"""Answer-side tuning in any training loop: cached prompt keys and values, and a model that goes on from there.

The base model reads the prompt part of every example once. Its keys and values are constants, so the trained model
runs at the positions after it only. Prompts are read in packed passes, as by the pipeline. The trained model is a
shallow copy of the network, as a suffix is: its trunk turns a batch's cached keys and values into transformers' own
``DynamicCache``, padded on the left, so that masks, windows and positions are the network's own code.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache, PreTrainedModel

from salf.answer_folder import AnswerSideRecord, Prompt
from salf.engine.answer_model import base_alone, describe, positions, prompt_tokens, save_answer_side, weights_by_unit
from salf.engine.batches import Split
from salf.engine.boundary_cache.folder import key_of
from salf.engine.boundary_cache.prompts import Columns, PromptRows, laid_out, prompt_rows
from salf.engine.boundary_cache.states import BoundaryStates, Timed, take_rows
from salf.engine.models.adapter import apart
from salf.engine.prefix import (
    IGNORED,
    CachedRows,
    Row,
    Rows,
    cached_states,
    kept,
    read_rows,
    require_positions,
    runtime_of,
    shared_tokens,
)
from salf.engine.suffix import (
    Network,
    SavedWhole,
    Trunk,
    frozen_layers,
    network_of,
    require_twin,
    twin_of,
    wrapped_again,
)
from salf.errors import UserError
from salf.families import family_of
from salf.parameters import NetworkParameters
from salf.plan import FreezePlan
from salf.split_point import base_rows

_BASE: Final = "_salf_base"  # where a network keeps its base's hashes, from answer_side on
# Settings of PEFT's with which the base's own weights stay as they are.
_HARMLESS: Final = {
    "bias": (None, "none"),
    "trainable_token_indices": (None,),
    "init_lora_weights": (None, True, False, "gaussian", "eva", "orthogonal"),
}


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
        self,
        prompts: PromptRows,
        states: BoundaryStates | None,
        split: Split,
        labels: Sequence[Tensor],
        record: AnswerSideRecord,
        plan: FreezePlan | None,
        *,
        reused: bool,
    ) -> None:
        """Wrap keys and values of a split's prompt parts, and with frozen layers the states of whole examples."""
        self._prompts, self._states, self._split, self._labels = prompts, states, split, labels
        self.columns, self.boundary = prompts.columns, prompts.columns.first
        self.record, self.plan, self.reused = record, plan, reused
        self.size = prompts.rows.nbytes + (states.rows.nbytes if states else 0)

    def __getitem__(self, index: int) -> Row:
        place = range(len(self))[index]
        split = (self._split.base_rows or ())[place]

        def rows(cached: PromptRows | BoundaryStates) -> Tensor:
            return take_rows(cached.rows, cached.layout.rows_of(torch.tensor([place]), joined=True), cached.device)

        own = (
            {"inputs_embeds": rows(self._states)[split:]}
            if self._states
            else {"input_ids": torch.tensor(self._split.examples[place].prompt_ids[split:])}
        )
        return {"past_key_values": rows(self._prompts), "labels": self._labels[place][split:], **own}


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
        extra: that many more prompt tokens on the trained side, of each row without `split`.
        file: where to keep the cache, as a memory-mapped safetensors file with the key of its model and tokens.
        bf16: multiply in bfloat16 (autocast), as a Trainer with `bf16=True` does; keys and values are kept in it.
        batch_tokens: tokens in one pass.

    Raises:
        UserError: rows have no prompt part (with their number), memory or disk is too small, the file holds something
            else, adapters are at or below the boundary, the model has layers without keys and values, or it was
            trained by `answer_side` in the meantime.
    """
    network = network_of(model)
    boundary = frozen_layers(network, plan_or_boundary, scope, least=0)
    if boundary == network.config.get_text_config().num_hidden_layers:
        raise UserError(f"boundary {boundary} freezes all layers, so none reads cached prompts; use salf.prefix_states")
    _require_adapters(model, boundary)
    split, labels, prompts = _split(dataset, network.get_input_embeddings().weight.shape[0], extra)
    record = describe(model, boundary, prompts)
    if vars(network).get(_BASE, record.base.sha256) != record.base.sha256:
        raise UserError("the model was trained since its first prompt cache: compute all caches before that")
    plan = plan_or_boundary if isinstance(plan_or_boundary, FreezePlan) else None
    states: BoundaryStates | None = None
    with base_alone(model), apart(network) as causal:
        require_positions(causal, split)
        runtime, units = runtime_of(causal, bf16=bf16), tuple(record.base.sha256.values())
        columns = Columns.of(causal, runtime, boundary)
        columns = replace(columns, dtype=torch.bfloat16) if bf16 else columns
        if boundary:
            states_file = None if file is None else Path(file).with_suffix(".states.safetensors")
            states, _ = cached_states(causal, runtime, split, boundary, batch_tokens, states_file)
        layout, start = laid_out(split, batch_tokens, states and replace(states, device=causal.device))
        key = partial(key_of, causal, runtime, units, layout, boundary, boundary, "exact")
        computed = Timed(part.to(columns.dtype) for part in prompt_rows(causal, runtime, layout, columns, start))
        rows, reused = kept("the prompts' keys and values", file, key, computed, layout, columns.row_bytes)
    cached = PromptRows(columns, layout, rows, torch.device("cpu"))
    return PromptCache(cached, states, split, labels, record, plan, reused=reused)


def _require_adapters(model: Any, boundary: int) -> None:
    """Refuse adapters in frozen layers, and what an answer-side folder does not hold."""
    known = getattr(model, "peft_config", {"default": None})
    if list(known) != ["default"]:
        raise UserError(f"answer-side tuning takes PEFT's one adapter default, not {', '.join(known)}")
    for name, harmless in _HARMLESS.items():
        if (value := getattr(known["default"], name, None)) not in harmless:
            raise UserError(f"PEFT's {name} = {value} changes the base's own weights, which read prompts; leave it out")
    parameters = NetworkParameters.of(model)
    family = family_of(network_of(model).config.model_type, parameters.own)
    if any((family.layer_index(name) or 0) < boundary for name in parameters.added):
        raise UserError(f"PEFT put adapters at or below boundary {boundary}; give it layers_to_transform above")


def _split(dataset: Rows, vocabulary: int, extra: int) -> tuple[Split, list[Tensor], list[Prompt]]:
    """Examples with their split points, labels, and prompts; a ``UserError`` counts those without a prompt part."""
    examples, labels = read_rows(dataset, vocabulary)
    lengths = list(map(prompt_tokens, labels))
    ends = [dataset[number].get("split") for number in range(len(examples))]
    points = [
        base_rows(length, length, extra) if end is None else base_rows(length, int(end))
        for length, end in zip(lengths, ends, strict=True)
    ]
    if without := points.count(0):
        raise UserError(f"{without:,} of {len(points):,} rows have no prompt part: two tokens or more with labels -100")
    shared = shared_tokens([one.prompt_ids[:point] for one, point in zip(examples, points, strict=True)])
    prompts: list[Prompt] = [
        (example.prompt_ids[:length], point) for example, length, point in zip(examples, lengths, points, strict=True)
    ]
    return Split(examples, shared, base_rows=points), labels, prompts


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
        raise UserError("these are not items of salf.prompt_cache; an evaluation split needs its cache, too")
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
        UserError: the cache is of another model, nothing is left to train, adapters are at or below the boundary, or
            the model's logits after cached prompts are not those without a cache.
    """
    network = network_of(model)
    _require_adapters(model, cache.boundary)
    if getattr(network.config, "output_router_logits", False):
        raise UserError("an auxiliary loss needs the prompts, too; set the config's output_router_logits to False")
    form = "weights" if network is model else "lora"
    units = cache.record.base.sha256  # by depth; above the boundary, weights may have been trained before
    fixed = list(units)[: None if form == "lora" else cache.boundary + 1]
    now = weights_by_unit(model)
    if differing := [unit for unit in fixed if now.get(unit) != units[unit]]:
        raise UserError(f"the cache is of another model, whose {differing[0]} differs; compute one with this model")
    parameters = NetworkParameters.of(model)
    family = family_of(network.config.model_type, parameters.own)
    saved = {"plan": cache.plan, "record": cache.record.model_copy(update={"form": form})}
    kind = type(network.get_submodule(family.trunk))
    twin, _ = twin_of(network, family, cache.boundary, _Network, _Trunk, columns=cache.columns, kind=kind)
    vars(twin).update(saved, main_input_name="inputs_embeds" if cache.boundary else "input_ids")
    with base_alone(model):
        require_twin(twin, family, partial(_after_two, network, cache.boundary))
    parameters.train_above(family, cache.boundary)
    vars(network)[_BASE] = units
    for name, parameter in parameters.own.items():  # the base reads prompts with its embeddings; answers share them
        parameter.requires_grad &= not family.before_layers(name)
    return twin if network is model else wrapped_again(model, twin, _Saved, **saved)


class _Trunk(Trunk):
    """What is different in the trunk: a batch's cached prompts come before its tokens, or its boundary states."""

    columns: Columns
    kind: type  # the network's own class of trunk
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
        other = (inputs_embeds is None) == bool(self.columns.first)
        if given is None or attention_mask is None or not isinstance(past_key_values, Tensor) or other:
            raise UserError("an answer side takes batches of collate_answers with its boundary, not bare tokens")
        if self.training and any(getattr(part, "gradient_checkpointing", False) for part in self.modules()):
            raise UserError("transformers' gradient checkpointing drops cached keys and values; switch it off")
        placed = positions(self.kind, attention_mask, given.shape[1])
        # Frozen layers do not run: their place in the cache says how long it is.
        empty = past_key_values.new_zeros(1).expand(len(given), 1, past_key_values.shape[1], 1)
        layers = [*[(empty, empty)] * self.columns.first, *self.columns.split(past_key_values).values()]
        cached = DynamicCache(layers)
        options |= {"attention_mask": attention_mask, "past_key_values": cached, "use_cache": False, **placed}
        if self.columns.first:
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


def _after_two(network: PreTrainedModel, boundary: int, ids: Tensor, mask: Tensor, states: Tensor) -> dict[str, Tensor]:
    """A batch whose prompts are two tokens each, cached by transformers."""
    cache = DynamicCache()
    network(input_ids=ids[:, :2], past_key_values=cache, use_cache=True)
    parts = [part for layer in cache.layers[boundary:] for part in (layer.keys, layer.values)]
    prompts = torch.cat([part.transpose(1, 2).flatten(2) for part in parts], dim=-1)  # [B, 2, W]
    own = {"inputs_embeds": states[:, 2:]} if boundary else {"input_ids": ids[:, 2:]}
    return {**own, "attention_mask": mask, "past_key_values": prompts}
