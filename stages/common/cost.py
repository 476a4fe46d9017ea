"""What training costs, counted from a model's shape: floating-point operations and bytes.

Counted are the matrix products, at two operations per multiply-add; norms, the softmax, activations,
rotary embeddings and the optimizer's update are left out (together below 1 % for models of any use).
Every count is linear in four sums over the work at hand, which the caller knows best:

- ``queries``: tokens pushed through a layer, padding included where it is computed;
- ``attended``: over those tokens, the keys that each one sees (causal, so T·(T+1)/2 for a plain
  sequence of T tokens; a kernel that computes the whole square does more);
- ``positions``: answer positions, where the head is evaluated;
- ``seen``: over these positions, the keys that each one sees.

The last layer of a pass computes keys and values of all tokens, and the rest at answer positions
only. How that is done costs a little more than it must: the queries of all tokens, and the keys and
values of answer positions a second time. Both are counted, because both are computed.

A beginning that all examples of a batch share is computed once: it counts once in the sums.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, Self

from stages.common.command import UserError

FLOAT32_BYTES: Final = 4
_ADAM_MOMENTS: Final = 2  # AdamW: running means of the gradient and of its square, in float32

# weights: the scope's own weights are trained; lora: they are frozen, low-rank adapters beside them are.
Technique = Literal["weights", "lora"]


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a Llama-like decoder: gated feed-forward part, grouped-query attention, RMS norms.

    Attributes:
        intermediate: width of the feed-forward part.
        kv_heads: key-value heads, each shared by ``heads / kv_heads`` query heads.
        tied_head: the head is the embedding matrix.
        qkv_bias, output_bias, mlp_bias: which linear maps carry a bias.
        extra_norms: parameters of a layer's norms beyond the two of width ``hidden``.
    """

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied_head: bool
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    extra_norms: int = 0

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Read the sizes out of a Hugging Face ``config.json``.

        Raises:
            UserError: an entry is missing; names it.
        """
        try:
            heads, hidden = int(config["num_attention_heads"]), int(config["hidden_size"])
            intermediate = int(config["intermediate_size"])
            head_dim = int(config.get("head_dim") or hidden // heads)
            family = str(config.get("model_type"))
            bias = bool(config.get("attention_bias", False))
            return cls(
                layers=int(config["num_hidden_layers"]),
                hidden=hidden,
                intermediate=intermediate,
                heads=heads,
                kv_heads=int(config.get("num_key_value_heads") or heads),
                head_dim=head_dim,
                vocabulary=int(config["vocab_size"]),
                tied_head=bool(config.get("tie_word_embeddings", False)),
                qkv_bias=bias or family == "qwen2",
                output_bias=bias and family != "qwen2",
                mlp_bias=bool(config.get("mlp_bias", False)),
                extra_norms={"qwen3": 2 * head_dim, "bitnet": hidden + intermediate}.get(family, 0),
            )
        except KeyError as error:
            raise UserError(
                f"config.json: no entry {error.args[0]!r}; is it a decoder-only language model's?"
            ) from None

    @property
    def attention_width(self) -> int:
        """Width of all query heads together."""
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Width of all key heads (and of all value heads) together."""
        return self.kv_heads * self.head_dim

    @property
    def linear_maps(self) -> dict[str, tuple[int, int]]:
        """Input and output width of a layer's linear maps, by Llama's names."""
        return {
            "q_proj": (self.hidden, self.attention_width),
            "k_proj": (self.hidden, self.kv_width),
            "v_proj": (self.hidden, self.kv_width),
            "o_proj": (self.attention_width, self.hidden),
            "gate_proj": (self.hidden, self.intermediate),
            "up_proj": (self.hidden, self.intermediate),
            "down_proj": (self.intermediate, self.hidden),
        }

    @property
    def linear_parameters(self) -> int:
        """Weights of a layer's linear maps, biases left out."""
        return sum(wide * high for wide, high in self.linear_maps.values())

    @property
    def layer_parameters(self) -> int:
        """All parameters of one layer."""
        biases = (
            self.qkv_bias * (self.attention_width + 2 * self.kv_width)
            + self.output_bias * self.hidden
            + self.mlp_bias * (2 * self.intermediate + self.hidden)
        )
        return self.linear_parameters + biases + 2 * self.hidden + self.extra_norms

    @property
    def embedding_parameters(self) -> int:
        """Parameters of the embedding matrix."""
        return self.vocabulary * self.hidden

    @property
    def norm_parameters(self) -> int:
        """Parameters of the final norm."""
        return self.hidden

    @property
    def head_parameters(self) -> int:
        """Parameters of the head alone: none where it is the embedding matrix."""
        return 0 if self.tied_head else self.vocabulary * self.hidden

    @property
    def parameters(self) -> int:
        """All parameters, a tied head counted once."""
        return (
            self.embedding_parameters
            + self.layers * self.layer_parameters
            + self.norm_parameters
            + self.head_parameters
        )

    def trained_parameters(self, boundary: int) -> int:
        """Parameters that train when layers 1..boundary are frozen; 0 freezes nothing, embeddings included.

        From boundary 1 on the embeddings are frozen, and a tied head with them.
        """
        if boundary == 0:
            return self.parameters
        return (self.layers - boundary) * self.layer_parameters + self.norm_parameters + self.head_parameters

    def lora_parameters(self, boundary: int, rank: int) -> int:
        """Parameters of rank-``rank`` adapters beside every linear map of layers boundary+1..L."""
        return (self.layers - boundary) * rank * sum(wide + high for wide, high in self.linear_maps.values())


def layer_forward_flops(shape: ModelShape, queries: int, attended: int) -> int:
    """One layer's forward pass: its linear maps, and the products QKᵀ and PV."""
    return 2 * shape.linear_parameters * queries + _attention_flops(shape, attended)


def head_forward_flops(shape: ModelShape, positions: int) -> int:
    """The head at so many positions."""
    return 2 * shape.hidden * shape.vocabulary * positions


def forward_flops(shape: ModelShape, layers: int, queries: int, attended: int) -> int:
    """Forward pass of all tokens through so many layers."""
    return layers * layer_forward_flops(shape, queries, attended)


def training_flops(
    shape: ModelShape,
    boundary: int,
    queries: int,
    attended: int,
    positions: int,
    seen: int,
    *,
    method: Technique = "weights",
    rank: int = 8,
) -> int:
    """One pass of suffix training: forward and backward of layers boundary+1..L and the head.

    The frozen layers 1..boundary are not in it: add ``forward_flops(shape, boundary, queries, attended)``
    once where their output is cached, or once per pass where it is not.

    Backward, a linear map costs its forward pass for the gradient of its input, and again for that of
    its weight; the attention's two products cost twice their forward pass. With ``weights`` every
    trained layer pays all of it: the lowest too, because its first norm's weight is trained and needs
    the gradient that q, k and v pass down. With ``lora`` frozen weights need no gradient of their own,
    and below the lowest adapters nothing is trained, so that q, k and v there pass nothing down. The
    head passes its input's gradient down; its weight's is computed where the head trains: with
    ``weights``, unless it is tied and the embeddings are frozen (boundary of 1 or more).

    Args:
        shape: the model.
        boundary: layers 1..boundary are frozen, 0..L.
        queries: tokens pushed through each layer over the pass.
        attended: keys that they see, summed.
        positions: answer positions.
        seen: keys that these see, summed.
        method: what is trained in the layers above the boundary; ``lora`` trains adapters alone (no
            norm, no head) of rank ``rank`` beside all seven linear maps.
        rank: of the adapters.

    Raises:
        ValueError: the boundary is no space of the model, or nothing is left to adapt.
    """
    _check_boundary(shape, boundary, method)
    head = head_forward_flops(shape, positions)
    if boundary == shape.layers:
        return (2 + (not shape.tied_head)) * head
    below = shape.layers - boundary - 1
    layer, attention = layer_forward_flops(shape, queries, attended), _attention_flops(shape, seen)
    last_forward = 2 * (_qkv(shape) * queries + shape.linear_parameters * positions) + attention
    last_backward = 2 * _used_in_last(shape, queries, positions) + 2 * attention  # the gradient of inputs
    weights = 2 * (shape.linear_parameters * queries * below) + 2 * _used_in_last(shape, queries, positions)
    forward = below * layer + last_forward + head
    inputs = below * (layer + _attention_flops(shape, attended)) + last_backward + head
    if method == "weights":
        head_trains = boundary == 0 or not shape.tied_head
        return forward + inputs + weights + head_trains * head
    return (
        forward
        + inputs
        - _lowest_inputs(shape, below, queries, positions)
        + _lora_flops(shape, below, queries, positions, rank)
    )


def optimizer_bytes(trained_parameters: int) -> int:
    """AdamW's state: two float32 moments for each trained parameter."""
    return _ADAM_MOMENTS * FLOAT32_BYTES * trained_parameters


def gradient_bytes(trained_parameters: int, value_bytes: int = FLOAT32_BYTES) -> int:
    """Gradients of the trained parameters."""
    return value_bytes * trained_parameters


def activation_bytes_per_token(shape: ModelShape, value_bytes: int = FLOAT32_BYTES) -> int:
    """What back-propagation keeps per token and trained layer: an approximation.

    Counted in the manner of Korthikanti et al. 2022 (arXiv 2205.05198, §4) for a gated layer under a
    fused attention kernel that keeps no attention matrix: for each of the two norms its input, the
    normalised values and its output (6 hidden); queries, keys, values and the attention's output
    (2 attention + 2 kv widths); the gate before and after its activation, the other branch and their
    product (4 intermediate).
    """
    width = 6 * shape.hidden + 2 * shape.attention_width + 2 * shape.kv_width + 4 * shape.intermediate
    return value_bytes * width


def _attention_flops(shape: ModelShape, attended: int) -> int:
    return 4 * shape.attention_width * attended


def _qkv(shape: ModelShape) -> int:
    return shape.hidden * (shape.attention_width + 2 * shape.kv_width)


def _used_in_last(shape: ModelShape, queries: int, positions: int) -> int:
    """Multiply-adds of the last layer's linear maps whose results are used: k and v everywhere, the rest at answers."""
    keys_values = 2 * shape.hidden * shape.kv_width
    return keys_values * queries + (shape.linear_parameters - keys_values) * positions


def _lowest_inputs(shape: ModelShape, below: int, queries: int, positions: int) -> int:
    """Operations that the lowest adapted layer saves: its q, k and v pass no gradient down."""
    if below:
        return 2 * _qkv(shape) * queries
    return 2 * shape.hidden * (2 * shape.kv_width * queries + shape.attention_width * positions)


def _lora_flops(shape: ModelShape, below: int, queries: int, positions: int, rank: int) -> int:
    """Forward and backward of the adapters, over the suffix's layers below the last and the last."""
    maps = shape.linear_maps
    widths = {name: wide + high for name, (wide, high) in maps.items()}
    every, qkv, kv = sum(widths.values()), sum(widths[f"{x}_proj"] for x in "qkv"), widths["k_proj"] + widths["v_proj"]
    last_forward = qkv * queries + every * positions
    last_backward = 2 * (kv * queries + (every - kv) * positions)
    # In the lowest layer the first factors of q, k and v pass nothing down.
    lowest = 3 * shape.hidden * queries if below else shape.hidden * (2 * queries + positions)
    return 2 * rank * (3 * below * every * queries + last_forward + last_backward - lowest)


def _check_boundary(shape: ModelShape, boundary: int, method: Technique) -> None:
    if not 0 <= boundary <= shape.layers:
        raise ValueError(f"boundary {boundary} is outside 0..{shape.layers}")
    if method == "lora" and boundary == shape.layers:
        raise ValueError(f"lora with all {shape.layers} layers frozen trains nothing")
