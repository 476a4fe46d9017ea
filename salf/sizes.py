"""The sizes of one decoder layer, read out of a ``config.json`` by family. No torch here.

A layer is a list of linear maps and some norms. A mixture of experts holds ``copies`` of a map and uses
``used`` of them for a token.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

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


def layer_sizes(raw: Mapping[str, Any]) -> LayerSizes:
    """Read a family's layer."""
    config = Config(raw)
    build = config.build
    if not build.attention:
        raise UserError(
            f"config.json: model type {config.kind!r}: the cost of a recurrence is not modelled, only attention's"
        )
    feed_forward, intermediate = _feed_forward(config)
    if config.parallel:
        feed_forward = [
            replace(part, first=part.wide == config.hidden and part is not feed_forward[-1]) for part in feed_forward
        ]
    norm = config.hidden * (1 + build.layer_norm) * build.norm_weights
    return LayerSizes(
        maps=(*_attention(config), *feed_forward),
        norms=norm * (2 - config.parallel) + build.more_norms(config),
        intermediate=intermediate,
        gated=build.gated,
        input_norm=build.input_norm,
        ends_in_map=not (build.post_norm or build.experts),
        drops=build.dropout is not None and config.share(*build.dropout) > 0,
        final_norm=norm,
        inputs=build.space_0(config),
        head_bias=build.head_bias,
    )


def _attention(config: Config) -> list[LinearMap]:
    hidden, width, kv_width = config.hidden, config.heads * config.head_dim, config.kv_heads * config.head_dim
    inside = config.flag(*config.build.attention_bias)
    *names, last = config.build.attention
    output = LinearMap(last, width, hidden, inside and config.build.output_bias)
    if len(names) == 1:
        return [LinearMap(names[0], hidden, width + 2 * kv_width, inside, "fused", first=True), output]
    roles: tuple[tuple[Role, int], ...] = (("query", width), ("key", kv_width), ("value", kv_width))
    return [
        *(
            LinearMap(name, hidden, high, inside, role, first=True)
            for name, (role, high) in zip(names, roles, strict=True)
        ),
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
    gated = [LinearMap("gate_proj", hidden, shared), LinearMap("up_proj", hidden, shared)]
    down = LinearMap("down_proj", shared, hidden)
    return [*maps, *gated, down, LinearMap("shared_expert_gate", hidden, 1)], used * width + shared
