"""The sizes of one decoder layer, read out of a ``config.json`` by family. No torch here.

A layer is a list of linear maps and some norms. A mixture of experts holds ``copies`` of a map and uses
``used`` of them for a token.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from salf.config import Config
from salf.errors import UserError

Role = Literal["query", "key", "value", "fused", "other"]


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
    gated: bool  # the feed-forward part has a gate
    input_norm: bool  # a norm with weights of its own reads the layer's input
    ends_in_map: bool  # nothing reads the output of the last linear map but the sum of the layer
    drops: bool  # dropout reads it as well, in layers that train
    final_norm: int  # parameters
    inputs: int = 0  # parameters that make space 0, without the embedding matrix
    head_bias: bool = False


# The entry for dropout after a layer's last linear map, and what holds where it is absent.
_DROPOUT: Final = {
    "bloom": ("hidden_dropout", 0.0),
    "falcon": ("hidden_dropout", 0.0),
    "gpt2": ("resid_pdrop", 0.1),
    "gpt_bigcode": ("resid_pdrop", 0.1),
    "gpt_neox": ("hidden_dropout", 0.0),
    "gptj": ("resid_pdrop", 0.0),
    "opt": ("dropout", 0.1),
    "phi": ("resid_pdrop", 0.0),
    "phi3": ("resid_pdrop", 0.0),
    "starcoder2": ("residual_dropout", 0.0),
}
_LAYER_NORMS: Final = {"bloom", "falcon", "gpt2", "gpt_bigcode", "gpt_neox", "gptj", "opt", "phi", "starcoder2"}


def layer_sizes(raw: Mapping[str, Any]) -> LayerSizes:
    """Read a family's layer; what is not in the table is taken to be built like Llama."""
    config = Config(raw)
    if config.kind == "mamba":
        raise UserError("config.json: model type 'mamba': the cost of a recurrence is not modelled, only attention's")
    feed_forward, intermediate = _feed_forward(config)
    if _parallel(config):
        feed_forward = [
            replace(part, first=part.wide == config.hidden and part is not feed_forward[-1]) for part in feed_forward
        ]
    norm = config.hidden * (1 + (config.kind in _LAYER_NORMS))
    return LayerSizes(
        maps=(*_attention(config), *feed_forward),
        norms=_norms(config, norm, intermediate),
        intermediate=intermediate,
        gated=config.kind not in _PLAIN,
        input_norm=config.kind not in {"olmo", "olmo2"},
        ends_in_map=config.kind not in {"gemma2", "gemma3_text", "olmo2", *_EXPERT_WIDTH},
        drops=config.kind in _DROPOUT and config.share(*_DROPOUT[config.kind]) > 0,
        final_norm=0 if config.kind == "olmo" else norm,
        inputs=_inputs(config),
        head_bias=config.kind in {"phi", "gptj"},
    )


# Names of the attention's maps, fused where there are two, and which of them carry a bias.
_FUSED: Final = {
    "bloom": ("query_key_value", "dense"),
    "falcon": ("query_key_value", "dense"),
    "gpt2": ("c_attn", "c_proj"),
    "gpt_bigcode": ("c_attn", "c_proj"),
    "gpt_neox": ("query_key_value", "dense"),
    "phi3": ("qkv_proj", "o_proj"),
}
_OUTPUT: Final = {"gptj": "out_proj", "opt": "out_proj", "phi": "dense"}


def _attention(config: Config) -> list[LinearMap]:
    hidden, width, kv_width = config.hidden, config.heads * config.head_dim, config.kv_heads * config.head_dim
    inside, outside = _attention_biases(config)
    if config.kind in _FUSED:
        name, output = _FUSED[config.kind]
        return [
            LinearMap(name, hidden, width + 2 * kv_width, inside, "fused", first=True),
            LinearMap(output, width, hidden, outside),
        ]
    return [
        LinearMap("q_proj", hidden, width, inside, "query", first=True),
        LinearMap("k_proj", hidden, kv_width, inside, "key", first=True),
        LinearMap("v_proj", hidden, kv_width, inside, "value", first=True),
        LinearMap(_OUTPUT.get(config.kind, "o_proj"), width, hidden, outside),
    ]


def _attention_biases(config: Config) -> tuple[bool, bool]:
    """Biases of queries, keys and values, and of the output."""
    if config.kind in {"qwen2", "qwen2_moe"}:
        return config.flag("qkv_bias", default=True), False
    if config.kind in {"bloom", "gpt2", "gpt_bigcode", "phi"}:
        return True, True
    said = {"falcon": ("bias", False), "gpt_neox": ("attention_bias", True)}
    said |= {"opt": ("enable_bias", True), "starcoder2": ("use_bias", True)}
    bias = config.flag(*said.get(config.kind, ("attention_bias", False)))
    return bias, bias


# Two maps without a gate: their names, and the entry that says how wide (4 hidden where it does not).
_PLAIN: Final = {
    "bloom": ("dense_h_to_4h", "dense_4h_to_h", "ffn_hidden_size"),
    "falcon": ("dense_h_to_4h", "dense_4h_to_h", "ffn_hidden_size"),
    "gpt2": ("c_fc", "c_proj", "n_inner"),
    "gpt_bigcode": ("c_fc", "c_proj", "n_inner"),
    "gpt_neox": ("dense_h_to_4h", "dense_4h_to_h", "intermediate_size"),
    "gptj": ("fc_in", "fc_out", "n_inner"),
    "opt": ("fc1", "fc2", "ffn_dim"),
    "phi": ("fc1", "fc2", "intermediate_size"),
    "starcoder2": ("c_fc", "c_proj", "intermediate_size"),
}
_EXPERT_WIDTH: Final = {
    "granitemoe": "intermediate_size",
    "mixtral": "intermediate_size",
    "olmoe": "intermediate_size",
    "qwen2_moe": "moe_intermediate_size",
    "qwen3_moe": "moe_intermediate_size",
}


def _feed_forward(config: Config) -> tuple[list[LinearMap], int]:
    """Its maps, and the width that a token goes through."""
    hidden, kind = config.hidden, config.kind
    if kind in _EXPERT_WIDTH:
        return _experts(config, config.number(_EXPERT_WIDTH[kind]))
    if kind in _PLAIN:
        up, down, entry = _PLAIN[kind]
        width = config.number(entry, default=4 * hidden)
        bias = {"falcon": config.flag("bias"), "opt": config.flag("enable_bias", default=True)}
        bias |= {"starcoder2": config.flag("use_bias", default=True)}
        carries = bias.get(kind, True)
        return [LinearMap(up, hidden, width, carries), LinearMap(down, width, hidden, carries)], width
    width, carries = config.number("intermediate_size"), config.flag("mlp_bias")
    if kind == "phi3":
        return [LinearMap("gate_up_proj", hidden, 2 * width), LinearMap("down_proj", width, hidden)], width
    return _gated(hidden, width, carries), width


def _gated(hidden: int, width: int, bias: bool = False) -> list[LinearMap]:
    return [
        LinearMap("gate_proj", hidden, width, bias),
        LinearMap("up_proj", hidden, width, bias),
        LinearMap("down_proj", width, hidden, bias),
    ]


def _experts(config: Config, width: int) -> tuple[list[LinearMap], int]:
    if config.raw.get("mlp_only_layers") or config.number("decoder_sparse_step", default=1) != 1:
        raise UserError(
            "config.json: mlp_only_layers or decoder_sparse_step: not every layer is a mixture of experts; "
            "the cost model counts layers that are all alike"
        )
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
    return [*maps, *_gated(hidden, shared), LinearMap("shared_expert_gate", hidden, 1)], used * width + shared


def _parallel(config: Config) -> bool:
    """Whether attention and feed-forward part both read the layer's input."""
    if config.kind == "falcon":
        return config.flag("new_decoder_architecture") or config.flag("parallel_attn", default=True)
    return config.kind in {"cohere", "gptj", "phi"} or (
        config.kind == "gpt_neox" and config.flag("use_parallel_residual", default=True)
    )


def _norms(config: Config, norm: int, intermediate: int) -> int:
    hidden, head_dim = config.hidden, config.head_dim
    heads = (config.heads + config.kv_heads) * head_dim
    if config.kind == "falcon" and config.flag("new_decoder_architecture"):
        return norm * config.number("num_ln_in_parallel_attn", default=2)
    extra = {
        "bitnet": hidden + intermediate,
        "cohere": config.flag("use_qk_norm") * heads,
        "gemma2": 2 * hidden,
        "gemma3_text": 2 * hidden + 2 * head_dim,
        "olmo": -2 * hidden,  # its norms have no weights
        "olmo2": heads,
        "olmoe": heads,
        "phi": config.flag("qk_layernorm") * 4 * head_dim,
        "qwen3": 2 * head_dim,
        "qwen3_moe": 2 * head_dim,
    }
    shares = _parallel(config) and config.kind != "gpt_neox"  # which has two norms of the same input
    return norm * (2 - shares) + extra.get(config.kind, 0)


def _inputs(config: Config) -> int:
    """Parameters of learned positions, or of the embedding's norm."""
    if config.kind == "bloom":
        return 2 * config.hidden
    if config.kind == "opt":
        if config.number("word_embed_proj_dim", default=config.hidden) != config.hidden:
            raise UserError(
                "config.json: word_embed_proj_dim is not hidden_size: the cost of projections is not modelled"
            )
        return config.hidden * (config.number("max_position_embeddings") + 2)  # OPT's positions start at 2
    if config.kind in {"gpt2", "gpt_bigcode"}:
        return config.hidden * config.number("max_position_embeddings", "n_positions")
    return 0
