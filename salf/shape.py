"""A model's sizes, read out of a ``config.json`` by family, and how many parameters they make. No torch here.

A layer is a list of linear maps and some norms. A mixture of experts holds ``copies`` of a map and uses
``used`` of them for a token.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

from salf.errors import UserError
from salf.families import FAMILIES, Build

Role = Literal["query", "key", "value", "fused", "other"]


@dataclass(frozen=True)
class Config:
    """The entries of a ``config.json``, under today's names or older ones."""

    raw: Mapping[str, Any]

    def entry(self, *names: str, default: Any = None) -> Any:
        """The first of the entries that is there."""
        return next((self.raw[name] for name in names if self.raw.get(name) is not None), default)

    def number(self, *names: str, default: int | None = None) -> int:
        """The first of the entries that is there; a ``UserError`` where none is and there is no default."""
        found = self.entry(*names, default=default)
        if found is None:
            raise UserError(f"config.json: no entry {names[0]!r}; is it a decoder-only language model's?")
        return int(found)

    def flag(self, name: str, default: bool = False) -> bool:
        """An entry that says yes or no."""
        return bool(self.entry(name, default=default))

    @property
    def kind(self) -> str:
        """The model type."""
        return str(self.raw.get("model_type"))

    @property
    def build(self) -> Build:
        """How layers are built; a model type outside the table is taken to be built like Llama."""
        return FAMILIES[self.kind].build if self.kind in FAMILIES else Build()

    @property
    def parallel(self) -> bool:
        """Whether attention and feed-forward part both read the layer's input."""
        return self.flag(*self.build.parallel) or self.flag("new_decoder_architecture")

    @property
    def hidden(self) -> int:
        """H."""
        return self.number("hidden_size", "n_embd", "n_embed")

    @property
    def heads(self) -> int:
        """Query heads."""
        return self.number("num_attention_heads", "n_head")

    @property
    def kv_heads(self) -> int:
        """Key-value heads."""
        if self.build.kv_heads:
            return self.build.kv_heads(self)
        return self.heads if self.build.plain_heads else self.number("num_key_value_heads", default=self.heads)

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        default = self.hidden // self.heads
        return default if self.build.plain_heads else self.number("head_dim", default=default)


@dataclass(frozen=True)
class LinearMap:
    """A linear map of a layer."""

    name: str  # its last name in the network; adapters are attached to it by this name
    wide: int  # inputs
    high: int  # outputs
    bias: bool = False
    role: Role = "other"  # what of the attention it makes; "fused" makes queries, keys and values at once
    copies: int = 1  # experts
    used: int = 1  # experts that a token goes through
    first: bool = False  # it reads the layer's own input, through a norm at most
    adapted: bool = True  # low-rank adapters can be attached to it (not to a stack of experts, nor their router)

    @property
    def parameters(self) -> int:
        """Weights and biases of all copies."""
        return self.copies * self.high * (self.wide + self.bias)

    @property
    def products(self) -> int:
        """Multiply-adds for one token."""
        return self.used * self.wide * self.high


@dataclass(frozen=True)
class LayerSizes:
    """One layer, and the other parts of a family."""

    maps: tuple[LinearMap, ...]
    norms: int  # parameters of the layer's norms
    intermediate: int  # width of the feed-forward part that a token goes through
    build: Build
    ends_in_map: bool  # nothing reads the output of the last linear map but the sum of the layer
    drops: bool  # dropout reads it as well, in layers that train
    final_norm: int  # parameters
    inputs: int  # parameters that make space 0, without the embedding matrix

    @classmethod
    def of(cls, config: Config) -> Self:
        """Read a family's layer."""
        build = config.build
        if not build.attention:
            raise UserError(f"config.json: model type {config.kind!r}: the cost of a recurrence is not modelled")
        feed_forward, intermediate = _feed_forward(config)
        if config.parallel:
            *into, down = feed_forward
            feed_forward = [*(replace(part, first=part.wide == config.hidden) for part in into), down]
        norm = config.hidden * (1 + build.layer_norm) * build.norm_weights
        dropout, share = build.dropout or ("", 0.0)
        return cls(
            maps=(*_attention(config), *feed_forward),
            norms=norm * (2 - config.parallel) + build.more_norms(config),
            intermediate=intermediate,
            build=build,
            ends_in_map=not (build.post_norm or build.experts),
            drops=config.entry(dropout, default=share) > 0,
            final_norm=norm,
            inputs=build.space_0(config),
        )


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a decoder whose layers are all alike.

    ``packed``: rows run without padding, and the last layer at answer positions alone.
    """

    layers: int  # L
    hidden: int  # H, width of the states
    heads: int  # of queries
    kv_heads: int  # each shared by heads / kv_heads query heads
    head_dim: int
    vocabulary: int  # V
    tied_head: bool  # the head is the embedding matrix
    layer: LayerSizes
    packed: bool = True

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Read the sizes out of a ``config.json``; a model type outside the table is taken to be built like Llama.

        Raises:
            UserError: an entry is missing, or the family's cost is not modelled; says which and why.
        """
        sizes = Config(config)
        return cls(
            layers=sizes.number("num_hidden_layers", "n_layer"),
            hidden=sizes.hidden,
            heads=sizes.heads,
            kv_heads=sizes.kv_heads,
            head_dim=sizes.head_dim,
            vocabulary=sizes.number("vocab_size"),
            tied_head=sizes.flag("tie_word_embeddings", default=sizes.build.tied_head),
            layer=LayerSizes.of(sizes),
            packed=sizes.kind in FAMILIES and FAMILIES[sizes.kind].packed,
        )

    @property
    def traits(self) -> dict[str, str]:
        """What some techniques refuse (:attr:`salf.methods.Word.refused`), and how messages call it."""
        experts = any(part.copies > 1 for part in self.layer.maps)
        found = {"padded": "a model whose layers run padded"} if not self.packed else {}
        return found | ({"experts": "a mixture of experts"} if experts else {})

    @property
    def attention_width(self) -> int:
        """Width of all query heads together."""
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Width of all key heads (and of all value heads) together."""
        return self.kv_heads * self.head_dim

    @property
    def adapted_maps(self) -> list[str]:
        """Names of the linear maps that take adapters."""
        return list(dict.fromkeys(part.name for part in self.layer.maps if part.adapted))

    @property
    def linear_products(self) -> int:
        """Multiply-adds of a layer's linear maps for one token."""
        return sum(part.products for part in self.layer.maps)

    @property
    def layer_parameters(self) -> int:
        """All parameters of one layer."""
        return sum(part.parameters for part in self.layer.maps) + self.layer.norms

    @property
    def embedding_parameters(self) -> int:
        """Parameters that make space 0: the embedding matrix, and learned positions or a norm where there are any."""
        return self.vocabulary * self.hidden + self.layer.inputs

    @property
    def norm_parameters(self) -> int:
        """Parameters of the final norm."""
        return self.layer.final_norm

    @property
    def head_parameters(self) -> int:
        """Parameters of the head alone: of a tied one, which is the embedding matrix, its bias if it has one."""
        return (not self.tied_head) * self.vocabulary * self.hidden + self.layer.build.head_bias * self.vocabulary

    @property
    def parameters(self) -> int:
        """All parameters, a tied head counted once."""
        return (
            self.embedding_parameters
            + self.layers * self.layer_parameters
            + self.norm_parameters
            + self.head_parameters
        )

    def trained_parameters(self, boundary: int, *, embeddings: bool = True) -> int:
        """Parameters that train when layers 1..boundary are frozen; 0 freezes nothing, embeddings included.

        From boundary 1 on, or without ``embeddings``, these are frozen, and a tied head with them.
        """
        if boundary == 0 and embeddings:
            return self.parameters
        own_head = 0 if self.tied_head else self.head_parameters
        return (self.layers - boundary) * self.layer_parameters + self.norm_parameters + own_head

    def lora_parameters(self, boundary: int, rank: int) -> int:
        """Parameters of rank-``rank`` adapters on the linear maps of layers boundary+1..L."""
        widths = sum(part.wide + part.high for part in self.layer.maps if part.adapted)
        return (self.layers - boundary) * rank * widths


def _attention(config: Config) -> list[LinearMap]:
    hidden, width, kv_width = config.hidden, config.heads * config.head_dim, config.kv_heads * config.head_dim
    inside = config.flag(*config.build.attention_bias)
    *names, last = config.build.attention
    output = LinearMap(last, width, hidden, inside and config.build.output_bias)
    if len(names) == 1:
        return [LinearMap(names[0], hidden, width + 2 * kv_width, inside, "fused", first=True), output]
    query, key, value = names
    return [
        LinearMap(query, hidden, width, inside, "query", first=True),
        LinearMap(key, hidden, kv_width, inside, "key", first=True),
        LinearMap(value, hidden, kv_width, inside, "value", first=True),
        output,
    ]


def _feed_forward(config: Config) -> tuple[list[LinearMap], int]:
    """Its maps, and the width that a token goes through."""
    hidden, build = config.hidden, config.build
    width = config.number(build.width, default=None if build.gated else 4 * hidden)
    if build.experts:
        return _experts(config, width)
    bias, (*into, down) = config.flag(*build.bias), build.feed_forward
    fused = 1 + (build.gated and len(into) == 1)
    maps = [LinearMap(name, hidden, fused * width, bias) for name in into]
    return [*maps, LinearMap(down, width, hidden, bias)], width


def _experts(config: Config, width: int) -> tuple[list[LinearMap], int]:
    if config.raw.get("mlp_only_layers") or config.number("decoder_sparse_step", default=1) != 1:
        raise UserError("config.json: mlp_only_layers, decoder_sparse_step: only layers that are all alike are counted")
    hidden, used = config.hidden, config.number("num_experts_per_tok")
    copies = config.number("num_local_experts", "num_experts")
    maps = [
        LinearMap("gate", hidden, copies, adapted=False),
        LinearMap("gate_up_proj", hidden, 2 * width, adapted=False, copies=copies, used=used),
        LinearMap("down_proj", width, hidden, adapted=False, copies=copies, used=used),
    ]
    if config.kind != "qwen2_moe":
        return maps, used * width
    shared = config.number("shared_expert_intermediate_size")
    gated = [LinearMap("gate_proj", hidden, shared), LinearMap("up_proj", hidden, shared)]
    down = LinearMap("down_proj", shared, hidden)
    return [*maps, *gated, down, LinearMap("shared_expert_gate", hidden, 1)], used * width + shared
