"""Architectures as data, one row per model type: the paths of its parts, and the sizes of its layers. No torch here.

A model type outside the table is found by its parameters' names (:func:`family_of`), runs padded, by the
model's own masks, and is counted as if it were built like Llama. The tests run every row against Hugging Face's own
hidden states, logits and gradients, and compare sizes with the parameters of its networks.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from salf.errors import UserError

if TYPE_CHECKING:
    from salf.shape import Config

Flag = tuple[str, bool]  # an entry of config.json, and what holds where it is absent
_NEVER: Final[Flag] = ("", False)
_ALWAYS: Final[Flag] = ("", True)


@dataclass(frozen=True)
class Build:
    """The build of a family's layers, for the cost model (:mod:`salf.shape`); the defaults are Llama's."""

    attention: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")  # or two: queries, keys and values are fused
    attention_bias: Flag = ("attention_bias", False)
    output_bias: bool = True  # where queries have a bias, the attention's output has one, too
    plain_heads: bool = False  # as many key-value heads as heads, and together as wide as the states
    kv_heads: Callable[["Config"], int] | None = None
    feed_forward: tuple[str, ...] = ("gate_proj", "up_proj", "down_proj")  # or two: without a gate, or fused with it
    width: str = "intermediate_size"  # the entry for the width of the feed-forward part, or of an expert
    bias: Flag = ("mlp_bias", False)  # of the feed-forward part
    experts: bool = False
    parallel: Flag = _NEVER  # attention and feed-forward part both read the layer's input
    layer_norm: bool = False  # norms have a bias
    norm_weights: bool = True
    input_norm: bool = True  # a norm with weights of its own reads the layer's input
    post_norm: bool = False  # a norm reads the output of the last linear map
    more_norms: Callable[["Config"], int] = lambda _: 0  # further parameters of a layer's norms
    space_0: Callable[["Config"], int] = lambda _: 0  # parameters that make it, without the embedding matrix
    dropout: tuple[str, float] | None = None  # the entry for dropout after a layer's last linear map, if it has one
    tied_head: bool = False  # where config.json does not say
    head_bias: bool = False

    @property
    def gated(self) -> bool:
        """Whether the feed-forward part has a gate."""
        return self.feed_forward[0].startswith("gate")


@dataclass(frozen=True)
class Family:
    """Dotted paths inside a ``...ForCausalLM`` model.

    ``packed``: attention goes through transformers' interface and hides nothing but the future and what lies outside
    a window that it hands to the interface, so rows need no padding.
    """

    embedding: str
    layers: str  # the list of decoder layers, inside the trunk
    norm: str  # the final one
    head: str = "lm_head"
    inputs: tuple[str, ...] = ()  # what else makes space 0 (positions, a norm): frozen and stored with the embedding
    packed: bool = False
    build: Build = field(default=Build(), compare=False)

    @property
    def trunk(self) -> str:
        """The module that runs the embedding, the layers and the final norm."""
        return self.layers.rpartition(".")[0]

    def unit_of(self, parameter: str, layers: int) -> str:
        """The shard that a parameter belongs to: ``embedding``, ``layer-07`` or ``final``.

        Layers count from 1, as in the paper; numbers are padded so that names sort by depth.
        """
        if (index := self.layer_index(parameter)) is not None:
            return layer_unit(index + 1, layers)
        return "embedding" if self.before_layers(parameter) else "final"

    def layer_index(self, parameter: str) -> int | None:
        """The layer that a parameter belongs to, counted from 0; ``None`` outside the layers."""
        inside = parameter.removeprefix(f"{self.layers}.")
        return None if inside == parameter else int(inside.partition(".")[0])

    def before_layers(self, parameter: str) -> bool:
        """Whether a parameter makes space 0."""
        return any(parameter.startswith(f"{part}.") for part in (self.embedding, *self.inputs))


def layer_unit(number: int, layers: int) -> str:
    """The shard of layer ``number``, from 1, of ``layers``: ``layer-07``."""
    return f"layer-{number:0{max(2, len(str(layers)))}d}"


_LLAMA: Final = Family("model.embed_tokens", "model.layers", "model.norm", packed=True)


def _llama(**build: Any) -> Family:
    return replace(_LLAMA, build=Build(**build))


def _old(
    embedding: str, layers: str, norm: str, *, inputs: tuple[str, ...] = (), packed: bool = True, **build: Any
) -> Family:
    """A family with biases and plain attention, as GPT-2 has them."""
    usual = {"plain_heads": True, "attention_bias": _ALWAYS, "bias": _ALWAYS, "layer_norm": True}
    return Family(embedding, layers, norm, inputs=inputs, packed=packed, build=Build(**{**usual, **build}))


def _neox(*paths: str, **build: Any) -> Family:
    """A family whose maps are called as GPT-NeoX's."""
    attention, feed_forward = ("query_key_value", "dense"), ("dense_h_to_4h", "dense_4h_to_h")
    return _old(*paths, attention=attention, feed_forward=feed_forward, dropout=("hidden_dropout", 0.0), **build)


def _multi_query(config: "Config") -> int:
    """GPT-BigCode and Falcon say with a flag that there is one key-value head."""
    if config.flag("new_decoder_architecture"):
        return config.number("num_kv_heads", default=config.heads)
    return 1 if config.flag("multi_query", default=True) else config.heads


def _opt_positions(config: "Config") -> int:
    if config.number("word_embed_proj_dim", default=config.hidden) != config.hidden:
        raise UserError("config.json: word_embed_proj_dim is not hidden_size: the cost of projections is not modelled")
    return config.hidden * (config.number("max_position_embeddings") + 2)  # OPT's positions start at 2


def _falcon_norms(config: "Config") -> int:
    further = config.number("num_ln_in_parallel_attn", default=2) - 1
    return config.flag("new_decoder_architecture") * further * 2 * config.hidden


def _wide_head_norms(config: "Config") -> int:
    return (config.heads + config.kv_heads) * config.head_dim


_TRANSFORMER: Final = ("transformer.h", "transformer.ln_f")
_GPT2: Final = _old(
    *("transformer.wte", *_TRANSFORMER),
    inputs=("transformer.wpe",),
    attention=("c_attn", "c_proj"),
    feed_forward=("c_fc", "c_proj"),
    width="n_inner",
    space_0=lambda config: config.hidden * config.number("max_position_embeddings", "n_positions"),
    dropout=("resid_pdrop", 0.1),
    tied_head=True,
)
FAMILIES: Final[dict[str, Family]] = {
    **dict.fromkeys(("granite", "llama", "mistral"), _LLAMA),
    **dict.fromkeys(("gemma", "smollm3"), _llama(tied_head=True)),
    "gemma2": _llama(post_norm=True, more_norms=lambda config: 2 * config.hidden, tied_head=True),
    "gemma3_text": _llama(
        post_norm=True, more_norms=lambda config: 2 * (config.hidden + config.head_dim), tied_head=True
    ),
    **dict.fromkeys(("granitemoe", "mixtral"), _llama(experts=True)),
    "bitnet": _llama(more_norms=lambda config: config.hidden + config.number("intermediate_size")),
    "cohere": _llama(
        parallel=_ALWAYS, more_norms=lambda c: c.flag("use_qk_norm") * _wide_head_norms(c), tied_head=True
    ),
    "olmo": _llama(norm_weights=False, input_norm=False),
    "olmo2": _llama(input_norm=False, post_norm=True, more_norms=_wide_head_norms),
    "olmoe": _llama(experts=True, more_norms=_wide_head_norms),
    "phi3": _llama(
        attention=("qkv_proj", "o_proj"),
        feed_forward=("gate_up_proj", "down_proj"),
        bias=_NEVER,
        dropout=("resid_pdrop", 0.0),
    ),
    "qwen2": _llama(attention_bias=("qkv_bias", True), output_bias=False),
    "qwen2_moe": _llama(
        attention_bias=("qkv_bias", True), output_bias=False, experts=True, width="moe_intermediate_size"
    ),
    "qwen3": _llama(more_norms=lambda config: 2 * config.head_dim),
    "qwen3_moe": _llama(experts=True, width="moe_intermediate_size", more_norms=lambda config: 2 * config.head_dim),
    "starcoder2": _llama(
        attention_bias=("use_bias", True),
        feed_forward=("c_fc", "c_proj"),
        bias=("use_bias", True),
        layer_norm=True,
        dropout=("residual_dropout", 0.0),
        tied_head=True,
    ),
    # BLOOM adds its linear biases, and Falcon its own rotary products, outside transformers' interface.
    "bloom": _neox(
        *("transformer.word_embeddings", *_TRANSFORMER),
        inputs=("transformer.word_embeddings_layernorm",),
        packed=False,
        width="ffn_hidden_size",
        space_0=lambda config: 2 * config.hidden,
        tied_head=True,
    ),
    "falcon": _neox(
        *("transformer.word_embeddings", *_TRANSFORMER),
        packed=False,
        attention_bias=("bias", False),
        plain_heads=False,
        kv_heads=_multi_query,
        width="ffn_hidden_size",
        bias=("bias", False),
        parallel=("parallel_attn", True),
        more_norms=_falcon_norms,
        tied_head=True,
    ),
    "gpt2": _GPT2,
    "gpt_bigcode": replace(_GPT2, build=replace(_GPT2.build, plain_heads=False, kv_heads=_multi_query)),
    "gpt_neox": _neox(
        *("gpt_neox.embed_in", "gpt_neox.layers", "gpt_neox.final_layer_norm"),
        attention_bias=("attention_bias", True),
        parallel=("use_parallel_residual", True),
        more_norms=lambda config: 2 * config.hidden * config.parallel,  # two norms of the same input
    ),
    "gptj": _old(
        *("transformer.wte", *_TRANSFORMER),
        packed=False,
        attention=("q_proj", "k_proj", "v_proj", "out_proj"),
        attention_bias=("attention_bias", False),
        feed_forward=("fc_in", "fc_out"),
        width="n_inner",
        parallel=_ALWAYS,
        dropout=("resid_pdrop", 0.0),
        head_bias=True,
    ),
    # No attention at all: a recurrence over the sequence, which right-hand padding does not reach.
    "mamba": Family("backbone.embeddings", "backbone.layers", "backbone.norm_f", build=Build(attention=())),
    "opt": _old(
        *("model.decoder.embed_tokens", "model.decoder.layers", "model.decoder.final_layer_norm"),
        inputs=("model.decoder.embed_positions",),
        attention=("q_proj", "k_proj", "v_proj", "out_proj"),
        attention_bias=("enable_bias", True),
        feed_forward=("fc1", "fc2"),
        width="ffn_dim",
        bias=("enable_bias", True),
        space_0=_opt_positions,
        dropout=("dropout", 0.1),
        tied_head=True,
    ),
    "phi": _old(
        *("model.embed_tokens", "model.layers", "model.final_layernorm"),
        attention=("q_proj", "k_proj", "v_proj", "dense"),
        plain_heads=False,
        feed_forward=("fc1", "fc2"),
        parallel=_ALWAYS,
        more_norms=lambda config: config.flag("qk_layernorm") * 4 * config.head_dim,
        dropout=("resid_pdrop", 0.0),
        head_bias=True,
    ),
}


def family_of(model_type: str, names: Iterable[str] = ()) -> Family:
    """The row of a model type; where there is none, its parts by transformers' conventions for parameters' names.

    The layers are the longest numbered list (``model.layers.0...``). Embeddings and final norm are in the same trunk
    and named so; the head is outside the trunk. A ``UserError`` says which part was not found.
    """
    if model_type in FAMILIES:
        return FAMILIES[model_type]
    names = list(names)
    layers = longest_list(names)
    if "." not in layers:
        raise UserError(f"model type {model_type!r}: its list of decoder layers (trunk.layers.0...) was not found")
    trunk = f"{layers.rpartition('.')[0]}."
    # The role of a part of the trunk, by its name; an embedding's norm is no final norm.
    words = {"inputs": r"pos|wpe|emb\w*(norm|ln)", "embedding": r"emb|wte", "norm": r"norm|ln", "other": ""}
    parts: dict[str, list[str]] = {role: [] for role in (*words, "head")}
    for part in sorted({name.rpartition(".")[0] for name in names if not name.startswith(f"{layers}.")}):
        own = part.removeprefix(trunk)
        role = next(role for role, pattern in words.items() if re.search(pattern, own))
        parts["head" if own == part else role].append(part)
    for role in ("embedding", "norm"):
        if not parts[role]:
            raise UserError(f"model type {model_type!r}: its {role} was not found by name")
    if strange := [*parts["other"], *parts["embedding"][1:], *parts["norm"][1:], *parts["head"][1:]]:
        raise UserError(f"model type {model_type!r}: what {', '.join(strange)} is for was not found out by name")
    head = (parts["head"] or ["lm_head"])[0]  # a tied one is not among the weights of a file
    return Family(parts["embedding"][0], layers, parts["norm"][0], head, inputs=tuple(parts["inputs"]))


def longest_list(names: Iterable[str]) -> str:
    """The outermost numbered prefix with the most numbers: ``model.layers`` of ``model.layers.0.mlp...``."""
    members: dict[str, set[str]] = defaultdict(set)
    for name in names:
        if match := re.match(r"(.+?)\.(\d+)\.", name):
            members[match[1]].add(match[2])
    return max(members, key=lambda prefix: len(members[prefix]), default="")
