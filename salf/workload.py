"""The work of a fine-tune: the sums over the training split that its costs are counted from."""

from dataclasses import dataclass
from typing import Final

from salf.cost import FLOAT32_BYTES, PLAIN, Flops, Sums, Technique, forward_flops, keys_values_flops, training_passes
from salf.files import significant
from salf.methods import WORDS
from salf.plan_records import AnswerSums, CostModel, Spent
from salf.records import PreparedSizes
from salf.settings import AnswerSide
from salf.shape import ModelShape

_FORMULA: Final = (
    "FLOPs of E epochs, cached: flops_frozen + E * flops_epoch; uncached: E * (flops_frozen + flops_epoch); "
    "the share of E epochs: many + (one - many) / E, with many = flops_share_many_epochs and "
    "one = flops_share_uncached"
)

_RECOMPUTED: Final = (
    "gradient checkpointing: each trained layer keeps its input alone, and runs again for back-propagation"
)


@dataclass(frozen=True)
class BoundaryFlops:
    """FLOPs of the frozen layers' pass over the data, and of one epoch above them."""

    frozen: int
    epoch: Flops

    @classmethod
    def of(cls, shape: ModelShape, work: CostModel, boundary: int, technique: Technique = PLAIN) -> "BoundaryFlops":
        """Count a boundary of 0..L."""
        sums = Sums(work.queries, work.attended, work.positions, work.seen)
        return cls(
            frozen=forward_flops(shape, boundary, work.frozen_queries, work.frozen_attended),
            epoch=training_passes(shape, boundary, sums, technique=technique, recompute=work.recompute),
        )

    @classmethod
    def on_answers(cls, shape: ModelShape, work: CostModel, boundary: int) -> "BoundaryFlops | None":
        """Count answers alone above a boundary: ``frozen`` holds the base model's pass over prompts, too."""
        sums, layers = work.answer, shape.layers - boundary
        if sums is None or not layers:
            return None
        prompts = keys_values_flops(shape, layers, sums.prompt_queries, sums.prompt_attended)
        prefix = forward_flops(shape, layers, work.shared, work.shared * (work.shared + 1) // 2)
        frozen = forward_flops(shape, boundary, work.frozen_queries, work.frozen_attended)
        passes = Sums(sums.queries, sums.attended, work.positions, work.seen)
        epoch = training_passes(shape, boundary, passes, recompute=work.recompute, embeddings=False)
        return cls(frozen + prefix + prompts, epoch)

    def cached(self, epochs: int) -> int:
        """All epochs, the frozen layers' output computed once."""
        return self.frozen + epochs * self.epoch.total

    def uncached(self, epochs: int) -> int:
        """All epochs, the frozen layers computed in each."""
        return epochs * (self.frozen + self.epoch.total)

    def spent(self, whole: "BoundaryFlops", epochs: int) -> Spent:
        """All epochs with cached states, and shares of ``whole``, full fine-tuning."""
        return Spent(
            flops=self.cached(epochs),
            flops_share=significant(self.cached(epochs) / whole.cached(epochs)),
            flops_backward=epochs * self.epoch.backward,
            flops_backward_share=significant(self.epoch.backward / whole.epoch.backward),
        )


def spent_on_lora(shape: ModelShape, work: CostModel, boundary: int) -> Spent | None:
    """A fine-tune of adapters above a boundary, as shares of full fine-tuning's weights; ``None`` above all layers."""
    if boundary == shape.layers:
        return None
    whole = BoundaryFlops.of(shape, work, 0)
    return BoundaryFlops.of(shape, work, boundary, WORDS["lora"].technique(work)).spent(whole, work.epochs)


def cost_model(
    sizes: PreparedSizes,
    epochs: int,
    batch_rows: int,
    *,
    parts: int = 1,
    packed: bool = True,
    recompute: bool = False,
    lora_rank: int = 8,
    answer_side: AnswerSide | None = None,
) -> CostModel:
    """The sums over the training split that the costs are counted from.

    The tokens that all prompts begin with go through trained layers once for every part of a batch, and through
    frozen ones once in all: no step changes what comes of them there. Layers that run padded take them with every
    row. Rows are taken at their mean length: the attention's share is a little more when they vary.

    A batch is computed in ``parts``, one after the other or on several devices. ``packed``: layers run without padding;
    ``recompute``: trained layers run a second time for back-propagation. ``answer_side``: where the trained side of an
    example begins, if the costs of answers alone are wanted and the sizes say where prompts end.
    """
    train, shared = sizes.splits["train"], sizes.shared_prefix_tokens
    whole, rest = divmod(train.rows, batch_rows)
    walked = whole * min(parts, batch_rows) + min(parts, rest) if packed else train.rows
    frozen_walked = 1 if packed else train.rows
    own = train.tokens / train.rows - shared
    answer = train.answer_tokens / train.rows
    own_tokens, own_attended = train.tokens - train.rows * shared, round(train.rows * own * (shared + (own + 1) / 2))
    shared_attended = shared * (shared + 1) // 2
    return CostModel(
        epochs=epochs,
        batch_rows=batch_rows,
        value_bytes=FLOAT32_BYTES,
        rows=train.rows,
        parts=parts,
        shared=shared,
        queries=own_tokens + walked * shared,
        attended=own_attended + walked * shared_attended,
        positions=train.answer_tokens,
        seen=round(train.answer_tokens * (shared + own - (answer - 1) / 2)),
        frozen_queries=own_tokens + frozen_walked * shared,
        frozen_attended=own_attended + frozen_walked * shared_attended,
        recompute=recompute,
        lora_rank=lora_rank,
        answer=_answer_sums(sizes, answer_side) if answer_side and packed else None,
        formula=_FORMULA,
        assumptions=[
            f"flops and shares are those of finetune.epochs = {epochs} epochs; for others see the formula",
            beginning(batch_rows, shared, parts, packed),
            *counted(lora_rank),
            *([_RECOMPUTED] if recompute else []),
            "AdamW with float32 moments, float32 gradients and activations; weights themselves not counted",
        ],
    )


def _answer_sums(sizes: PreparedSizes, side: AnswerSide) -> AnswerSums | None:
    train, shared = sizes.splits["train"], sizes.shared_prefix_tokens
    ends = train.field_tokens if side.start == "field" else train.turn_tokens
    if ends is None:
        return None
    rows, prompts = train.rows, train.tokens + train.rows - train.answer_tokens
    read = max(shared * rows, min(ends, prompts - rows) - side.extra * rows)  # as salf.split_point, of the mean example
    before, own = read / rows, (train.tokens - read) / rows
    return AnswerSums(
        start=side.start,
        extra=side.extra,
        base_rows=read,
        queries=train.tokens - read,
        attended=round(rows * own * (before + (own + 1) / 2)),
        prompt_queries=read - rows * shared,
        prompt_attended=round(rows * (before - shared) * (shared + (before - shared + 1) / 2)),
    )


def prompt_cache_bytes(shape: ModelShape, work: CostModel, boundary: int, value_bytes: int) -> int:
    """Keys and values of all prompts at the layers above a boundary, the shared prefix held once."""
    rows = work.answer.prompt_queries + work.shared if work.answer else 0
    return rows * (shape.layers - boundary) * 2 * shape.kv_width * value_bytes


def counted(lora_rank: int) -> list[str]:
    """The definition of a FLOP, in words."""
    return [
        f"the weights above the boundary train; with LoRA, adapters of rank {lora_rank} on their linear maps instead",
        "matrix products only, 2 FLOPs per multiply-add; backward FLOPs include layers that run a second time",
        "every row has the mean length; no padding; the head and most of the last layer at answer positions only",
    ]


def beginning(batch_rows: int, shared: int, parts: int, packed: bool) -> str:
    """Say in words how often the shared prefix is computed."""
    batches = f"batches of {batch_rows} rows" + (f" in {parts} parts" if parts > 1 else "")
    if not packed:
        return f"{batches}: the {shared} tokens of the shared prefix are computed in every row"
    often = "a part" if parts > 1 else "a batch"
    return f"{batches}: the {shared} tokens of the shared prefix are computed once {often}, once in frozen layers"
