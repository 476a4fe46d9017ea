"""Counts the cost of training from a model's shape: FLOPs and bytes.

Matrix products count, at two FLOPs per multiply-add. Norms, the softmax, activations, rotary embeddings and the
optimizer's update are left out (together below 1 % for models of any use). Every count is linear in :class:`Sums`.

The last layer computes keys and values of all tokens, and the rest at answer positions only. The implementation
also computes the queries of all tokens, and keys and values of answer positions twice; both count. A shared prefix
of a batch is computed once and counts once.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Final, Literal, NamedTuple

from salf.shape import LinearMap, ModelShape

FLOAT32_BYTES: Final = 4
HEAD_ROWS: Final = 1024  # answer positions whose logits exist at one time: answers may be whole texts


@dataclass(frozen=True)
class Flops:
    """FLOPs of the forward pass, and of back-propagation with the layers that it recomputes."""

    forward: int = 0
    backward: int = 0

    @property
    def total(self) -> int:
        """Both together."""
        return self.forward + self.backward

    def __add__(self, other: "Flops") -> "Flops":
        return Flops(self.forward + other.forward, self.backward + other.backward)

    def __mul__(self, times: float) -> "Flops":
        return Flops(round(self.forward * times), round(self.backward * times))


class Sums(NamedTuple):
    """What the FLOPs of a pass depend on.

    Attributes:
        queries: tokens pushed through a layer, padding included where it is computed.
        attended: the keys that each of these tokens sees, summed (causal, so T·(T+1)/2 for a plain sequence of T
            tokens; a kernel that computes the whole square does more).
        positions: answer positions, where the head is evaluated.
        seen: the keys that each of these positions sees, summed.
    """

    queries: int
    attended: int
    positions: int
    seen: int


Extra = Callable[[ModelShape, int, Sums], Flops]  # further work of one pass above a boundary


@dataclass(frozen=True)
class Technique:
    """What a technique computes and keeps; by default, what training of weights by AdamW does.

    Its entry in :data:`salf.methods.WORDS` declares it.

    Attributes:
        passes: over every batch.
        early: factor of ``passes`` in the first ``until`` of all steps.
        until: share of all steps.
        inputs: back-propagation computes the gradients of what maps read.
        weights: back-propagation computes the gradients of the maps' own weights.
        matrices_alone: no norm, embedding or head trains.
        rank: of low-rank adapters on all linear maps but experts; 0: there are none.
        directions: rank of a random direction that a pass adds to every trained matrix; 0: there are none.
        extra: further work of a pass.
        share: share of the scope's weights that train.
        kept: values per trained weight: its gradient, AdamW's two moments, and more.
        activations: passes whose activations are held at a time.
        pairs: float32 values held for every pair of a sequence's tokens in a trained layer. With any, attention adds
            values that have a gradient, and holds the probability of every head and pair as well.
        teacher: the whole base reads whole prompts before the first step.
    """

    passes: float = 1
    early: float = 1
    until: float = 1
    inputs: bool = True
    weights: bool = True
    matrices_alone: bool = False
    rank: int = 0
    directions: int = 0
    extra: tuple[Extra, ...] = ()
    share: float = 1
    kept: float = 3
    activations: float = 1
    pairs: int = 0
    teacher: bool = False

    def passes_at(self, progress: float | None) -> float:
        """Passes over a batch after a share of all steps; ``None``: their mean over all steps."""
        if progress is None:
            return self.passes * (1 + self.until * (self.early - 1))
        return self.passes * (self.early if progress < self.until else 1)


PLAIN: Final = Technique()


def adapters(rank: int) -> Technique:
    """Training of low-rank adapters at frozen weights."""
    return Technique(weights=False, rank=rank)


def interactions(shape: ModelShape, boundary: int, sums: Sums, *, width: int) -> Flops:
    """Learned context pruning: in each layer two maps of all rows to a width, and a product for every key they see."""
    layers, lowest_passes = shape.layers - boundary, boundary == 0 or shape.layer.build.input_norm
    maps = 4 * shape.hidden * width * sums.queries
    products = _attention_flops(shape, sums.attended) * width // (2 * shape.attention_width)
    inputs = (layers - (not lowest_passes)) * maps
    return Flops(layers * (maps + products), layers * (maps + 2 * products) + inputs)


def together(techniques: Sequence[Technique]) -> Technique:
    """What a method's words, one or more, do together."""
    return Technique(
        passes=prod(one.passes for one in techniques),
        early=prod(one.early for one in techniques),
        until=min(one.until for one in techniques),
        inputs=all(one.inputs for one in techniques),
        weights=all(one.weights for one in techniques),
        matrices_alone=any(one.matrices_alone for one in techniques),
        rank=max(one.rank for one in techniques),
        directions=max(one.directions for one in techniques),
        extra=tuple(extra for one in techniques for extra in one.extra),
        share=prod(one.share for one in techniques),
        kept=PLAIN.kept + sum(one.kept - PLAIN.kept for one in techniques),
        activations=prod(one.activations for one in techniques),
        pairs=sum(one.pairs for one in techniques),
        teacher=any(one.teacher for one in techniques),
    )


def head_forward_flops(shape: ModelShape, positions: int) -> int:
    """The head's forward pass at ``positions``."""
    return 2 * shape.hidden * shape.vocabulary * positions


def forward_flops(shape: ModelShape, layers: int, queries: int, attended: int) -> int:
    """Forward pass of all tokens through ``layers`` layers: their linear maps, and the products QKᵀ and PV."""
    return layers * (2 * shape.linear_products * queries + _attention_flops(shape, attended))


def reading_flops(shape: ModelShape, boundary: int, sums: Sums, technique: Technique = PLAIN) -> int:
    """Forward pass of layers boundary+1..L and the head, the last layer and the head at answer positions."""
    head = head_forward_flops(shape, sums.positions)
    if boundary == shape.layers:
        return head
    below = shape.layers - boundary - 1
    rows = suffix_rows(shape, below, 1, sums)
    computed = sum(part.products * used for part, used, _ in rows)
    computed += sum(technique.rank * (part.wide + part.high) * used for part, used, _ in rows if part.adapted)
    extra = sum(more(shape, boundary, sums).forward for more in technique.extra)
    return 2 * computed + _suffix_attention(shape, below, sums) + head + extra


def training_flops(
    shape: ModelShape,
    boundary: int,
    queries: int,
    attended: int,
    positions: int,
    seen: int,
    *,
    method: Literal["weights", "lora"] = "weights",
    rank: int = 8,
    recompute: bool = False,
) -> int:
    """Forward and backward of :func:`training_passes` together, of weights or of adapters of rank ``rank``.

    The four sums are those of :class:`Sums`.
    """
    technique, sums = adapters(rank) if method == "lora" else PLAIN, Sums(queries, attended, positions, seen)
    return training_passes(shape, boundary, sums, technique=technique, recompute=recompute).total


def training_passes(
    shape: ModelShape,
    boundary: int,
    sums: Sums,
    *,
    technique: Technique = PLAIN,
    recompute: bool = False,
    embeddings: bool = True,
    progress: float | None = None,
) -> Flops:
    """Suffix training on a batch: forward and backward of layers boundary+1..L and the head.

    The frozen layers 1..boundary are not included: add ``forward_flops(shape, boundary, queries, attended)``
    once where their output is cached, or once per pass where it is not.

    Backward, a linear map costs its forward pass for the gradient of its input, and again for that of its weight;
    the attention's two products cost twice their forward pass. Where weights train, every trained layer pays all of it.
    The lowest does too, because its first norm's weight, where it has one, needs the gradient that q, k and v pass
    down. With adapters alone, frozen weights need no gradient of their own, and the maps that read the lowest layer's
    own input pass nothing down. The head passes its input's gradient down; its weight's gradient is computed where the
    head trains: with weights, unless it is tied and the embeddings are frozen (boundary of 1 or more).

    ``recompute`` is gradient checkpointing, which runs most of the forward pass a second time within the backward pass.
    ``embeddings``: with boundary 0 they train, and a tied head. ``progress``: the share of all steps taken; ``None``:
    the mean of all steps. Rows whose prompts another pass has read count as ``queries`` alone, and their prompts' keys
    as ``attended``.

    Raises:
        ValueError: the boundary is no space of the model, or nothing is left to adapt.
    """
    if not 0 <= boundary <= shape.layers:
        raise ValueError(f"boundary {boundary} is outside 0..{shape.layers}")
    if technique.rank and boundary == shape.layers:
        raise ValueError(f"adapters with all {shape.layers} layers frozen train nothing")
    embeddings = embeddings and boundary == 0
    forward = reading_flops(shape, boundary, sums, technique)
    forward += _direction_flops(shape, boundary, sums, technique, embeddings)
    backward = _backward(shape, boundary, sums, technique, embeddings) if technique.inputs else 0
    if recompute and technique.inputs and boundary < shape.layers:
        rows = suffix_rows(shape, shape.layers - boundary - 1, 1, sums)
        backward += forward - head_forward_flops(shape, sums.positions) - _spared_again(shape, rows, technique.rank)
    return Flops(forward, backward) * technique.passes_at(progress)


def _direction_flops(shape: ModelShape, boundary: int, sums: Sums, technique: Technique, embeddings: bool) -> int:
    """Side paths of a direction: those of linear maps but experts, or of their adapters; of embeddings and head."""
    rows = suffix_rows(shape, shape.layers - boundary - 1, 1, sums) if boundary < shape.layers else []
    widths = sum((part.wide + part.high + 2 * technique.rank) * used for part, used, _ in rows if part.adapted)
    if not technique.rank:
        head = (embeddings or not shape.tied_head) * (shape.hidden + shape.vocabulary)
        widths += head * sums.positions + embeddings * shape.hidden * sums.queries
    return 2 * technique.directions * widths


def _backward(shape: ModelShape, boundary: int, sums: Sums, technique: Technique, embeddings: bool) -> int:
    """FLOPs of a back-propagation; ``embeddings``: they train, and a tied head."""
    head = head_forward_flops(shape, sums.positions)
    others = technique.weights and not technique.matrices_alone  # than the layers' matrices may train
    head *= 1 + (others and (embeddings or not shape.tied_head))
    if boundary == shape.layers:
        return head
    below = shape.layers - boundary - 1
    extra = sum(more(shape, boundary, sums).backward for more in technique.extra)
    flops = 2 * _suffix_attention(shape, below, sums) + head + extra
    needed = others and (embeddings or shape.layer.build.input_norm)  # what the lowest layer passes down
    for part, _, used in suffix_rows(shape, below, 1, sums):
        idle = 0 if needed or not part.first else sums.queries if below else used  # rows of the lowest layer
        flops += 2 * part.products * ((1 + technique.weights) * used - idle)
        flops += 2 * technique.rank * part.adapted * (2 * (part.wide + part.high) * used - part.wide * idle)
    return flops


def keys_values_flops(shape: ModelShape, layers: int, queries: int, attended: int) -> int:
    """Keys and values of all tokens at the last ``layers`` layers (1 at least), of which the last computes no more.

    It also computes the queries of all tokens.
    """
    last = sum(part.products for part in shape.layer.maps if part.role != "other")
    return forward_flops(shape, layers - 1, queries, attended) + 2 * last * queries


def update_traffic(weight: int = FLOAT32_BYTES, gradient: int = FLOAT32_BYTES, moments: int = 8) -> int:
    """Bytes that an optimizer step moves for each trained parameter, given those of its weight, gradient and moments.

    Back-propagation writes the gradient; its norm and the update read it. Weight and moments are read and written.
    """
    return 3 * gradient + 2 * (weight + moments)


def activation_bytes_per_token(
    shape: ModelShape, value_bytes: int = FLOAT32_BYTES, stream_bytes: int | None = None
) -> int:
    """Estimate what back-propagation keeps per token and trained layer.

    Counted like Korthikanti et al. 2022 (arXiv 2205.05198, §4), for a gated layer under a fused attention kernel
    that keeps no attention matrix. For each of the two norms: its input, the normalised values and its output
    (6 hidden). Queries, keys, values and the attention's output (2 attention + 2 kv widths); keys and values again
    for every head that shares them, and the output again as the next map's input (3 attention widths). The gate
    before and after its activation, the other branch and their product (4 intermediate; 2 without a gate). Norms of
    queries and keys, and activation functions of several steps (GPT-2's), keep up to a quarter more.

    ``value_bytes`` are of a value that the linear maps compute, ``stream_bytes`` of one of the residual stream and the
    norms: in mixed precision another, with a copy of the norms' outputs for the linear maps (2 hidden).
    """
    stream = value_bytes if stream_bytes is None else stream_bytes
    feed_forward = (4 if shape.layer.build.gated else 2) * shape.layer.intermediate
    copies = 2 * shape.hidden * (stream != value_bytes)
    inside = 5 * shape.attention_width + 2 * shape.kv_width + feed_forward + copies
    return value_bytes * inside + stream * 6 * shape.hidden


def _attention_flops(shape: ModelShape, attended: int) -> int:
    return 4 * shape.attention_width * attended


def _suffix_attention(shape: ModelShape, below: int, sums: Sums) -> int:
    """Attention of ``below`` layers below the last, and of the last."""
    return _attention_flops(shape, below * sums.attended + (sums.seen if shape.packed else sums.attended))


def suffix_rows(shape: ModelShape, below: int, last: int, sums: Sums) -> list[tuple[LinearMap, int, int]]:
    """A layer's linear maps, each with the rows that it computes and those whose results are used.

    The rows are those of ``below`` layers below the last, and of the last if ``last`` is 1. The last layer computes
    first queries, keys and values of all rows; then everything at answer positions, where keys and values are not
    used again. A padded layer computes all rows once.
    """
    queries, positions = sums.queries, sums.positions
    both = queries + positions
    rows = {
        "query": (both, positions),
        "key": (both, queries),
        "value": (both, queries),
        "fused": (both, both),
        "other": (positions, positions),
    }
    found = []
    for part in shape.layer.maps:
        computed, used = rows[part.role] if shape.packed else (queries, queries)
        found.append((part, below * queries + last * computed, below * queries + last * used))
    return found


def _spared_again(shape: ModelShape, rows: Sequence[tuple[LinearMap, int, int]], rank: int) -> int:
    """FLOPs that a recomputed forward pass saves against the first.

    It ends as soon as everything that back-propagation reads is there again: before the last product of each layer's
    last linear map (or of its adapter), unless a norm, a mixture's weights or dropout read that product.
    """
    if not shape.layer.ends_in_map or shape.layer.drops:
        return 0
    end, _, used = rows[-1]
    return 2 * used * (rank * end.high if rank else end.products)
