"""A configuration's cost at every boundary: FLOPs, time, and memory at its highest."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from salf.cost import FLOAT32_BYTES, HEAD_ROWS, PLAIN, Technique, activation_bytes_per_token, update_traffic
from salf.files import significant
from salf.plan_records import CostModel, Record, Spent
from salf.scale.inputs import Configuration, Machine
from salf.shape import ModelShape
from salf.workload import BoundaryFlops, beginning, counted, prompt_cache_bytes, spent_on_lora


@dataclass(frozen=True)
class Precision:
    """Bytes of a value, and the same in words."""

    frozen: int
    trained: int  # with the copy that mixed precision multiplies by
    gradient: int
    moments: int  # AdamW's two together
    value: int  # the linear maps' outputs
    stream: int  # the residual stream and the norms
    logit: int  # one entry of the logits, with what the loss keeps of it and its gradient
    words: str


PRECISIONS: Final = {
    "float32": Precision(4, 4, 4, 8, 4, 4, 12, "weights, gradients, moments and activations in float32"),
    "mixed": Precision(
        4, 6, 4, 8, 2, 4, 16, "weights, gradients and moments in float32, products in bfloat16 (torch.autocast)"
    ),
    "bfloat16": Precision(
        2, 2, 2, 4, 2, 2, 16, "weights, gradients, moments and activations in bfloat16; the loss in float32"
    ),
}


class Memory(Record):
    """Bytes held while training above one boundary."""

    weights: int  # of the whole model, frozen layers included
    gradients: int
    moments: int
    activations: int  # of one pass
    logits: int  # at the answer positions of one pass, with the loss
    peak: int  # the most at any moment


def memory(
    shape: ModelShape,
    work: CostModel,
    boundary: int,
    precision: Precision,
    *,
    answers_alone: bool = False,
    technique: Technique = PLAIN,
) -> Memory:
    """Bytes above a boundary 0..L.

    While back-propagation walks down, activations go and gradients come: the most is held at its start,
    when the head has its gradient, or at its end. With several parts to a batch (accumulated gradients)
    the earlier parts' gradients are there all the time. Attention is taken to be a fused kernel's, which
    keeps no probabilities: short sequences on a CPU, computed by plain products, hold some more.
    """
    trained = shape.trained_parameters(boundary, embeddings=not answers_alone)
    if technique.rank:
        trained = shape.lora_parameters(boundary, technique.rank)
    parts = work.parts_per_epoch
    per_token = activation_bytes_per_token(shape, precision.value, precision.stream)
    queries = work.answer.queries if answers_alone and work.answer else work.queries
    layers = shape.layers - boundary
    # The last layer of a packed model computes keys and values of all tokens, and all else at answer positions.
    last = work.positions if shape.packed else queries
    kept = ((layers - 1) * queries + last if layers else 0) * per_token
    if technique.pairs:
        kept += 2 * work.attended * layers * (technique.pairs * FLOAT32_BYTES + shape.heads * precision.value)
    if work.recompute:  # every layer's input, and what one layer keeps
        inputs = layers * queries * shape.hidden * precision.stream
        kept = min(kept, queries * per_token) + inputs
    activations = round(technique.activations * kept / parts)
    logits = round(min(work.positions / parts, HEAD_ROWS) * shape.vocabulary * precision.logit)
    gradients = round(trained * technique.share * min(technique.kept, 1) * precision.gradient)
    frozen = shape.parameters - (0 if technique.rank else trained)
    weights = frozen * precision.frozen + trained * precision.trained
    moments = round(trained * technique.share * max(technique.kept - 1, 0) / 2 * precision.moments)
    head_trains = ((boundary == 0 and not answers_alone) or not shape.tied_head) and not technique.rank
    head = head_trains * shape.hidden * shape.vocabulary * precision.gradient
    walking = activations + logits + (head if work.parts == 1 else gradients)
    return Memory(
        weights=weights,
        gradients=gradients,
        moments=moments,
        activations=activations,
        logits=logits,
        peak=weights + moments + max(gradients, walking),
    )


class Cost(Spent):
    """FLOPs, time and memory of training weights above one boundary on one device.

    What is computed before the first step is cached. ``cache_bytes``: boundary states of the whole training split, and
    prompts' keys and values for answers alone.
    """

    trained_parameters: int
    seconds: float
    memory: Memory
    cache_bytes: int


class Boundary(Cost):
    """The cost above a boundary; with ``lora`` of adapters, with ``answer`` of weights that act on answers alone.

    Both are ``None`` where all layers are frozen, and ``answer`` where layers run padded.
    """

    boundary: int
    lora: Spent | None
    answer: Cost | None


@dataclass(frozen=True)
class Prediction:
    """A configuration at every boundary 0..L, and what was taken for granted."""

    model: Configuration
    work: CostModel
    machine: Machine
    assumptions: list[str]
    boundaries: Sequence[Boundary]

    def as_json(self) -> dict[str, Any]:
        """The same as JSON values."""
        return {
            "model": self.model.name,
            "origin": self.model.origin,
            "parameters": self.model.shape.parameters,
            "layers": self.model.shape.layers,
            "machine": asdict(self.machine),
            "workload": self.work.model_dump(mode="json"),
            "assumptions": self.assumptions,
            "boundaries": [boundary.model_dump() for boundary in self.boundaries],
        }


_ANSWERS: Final = (
    "answers: weights that act on answers alone (+answer); the base model reads prompts once, and the cache holds "
    "their keys and values; embeddings, and a head tied to them, are frozen"
)


def predict(model: Configuration, work: CostModel, machine: Machine, precision: Precision) -> Prediction:
    """Count every boundary."""
    shape, whole = model.shape, BoundaryFlops.of(model.shape, work, 0)
    updated = "optimizer updates and data transfer are not timed"
    if machine.bytes_per_second is not None:
        updated = f"optimizer updates take their memory traffic at {machine.bytes_per_second / 1e9:,.3g} GB/s"

    def cost(flops: BoundaryFlops, boundary: int, *, answers_alone: bool = False) -> Cost:
        trained = shape.trained_parameters(boundary, embeddings=not answers_alone)
        updates = work.epochs * math.ceil(work.rows / work.batch_rows) * trained
        updates *= update_traffic(precision.frozen, precision.gradient, precision.moments)
        steps = work.epochs * flops.epoch.total
        cache = work.frozen_queries * shape.hidden * precision.stream if boundary else 0
        return Cost(
            **dict(flops.spent(whole, work.epochs)),
            trained_parameters=trained,
            seconds=significant(machine.seconds(flops.frozen, steps, updates, answers_alone=answers_alone)),
            memory=memory(shape, work, boundary, precision, answers_alone=answers_alone),
            cache_bytes=cache + answers_alone * prompt_cache_bytes(shape, work, boundary, precision.value),
        )

    def at(boundary: int) -> Boundary:
        answers = BoundaryFlops.on_answers(shape, work, boundary)
        return Boundary(
            **dict(cost(BoundaryFlops.of(shape, work, boundary), boundary)),
            boundary=boundary,
            lora=spent_on_lora(shape, work, boundary),
            answer=cost(answers, boundary, answers_alone=True) if answers else None,
        )

    assumptions = [
        f"{work.rows:,} examples, {work.epochs} epochs, boundary states computed once and cached",
        "percentages: of full fine-tuning's FLOPs, and of its backward FLOPs; both for LoRA too",
        beginning(work.batch_rows, work.shared, work.parts, shape.packed),
        *counted(work.lora_rank),
        f"{precision.words}; AdamW; attention by a kernel that stores no score matrix; no gradient checkpointing",
        "the frozen layers' weights stay in memory",
        f"{machine.name} computes at {machine.words}; {updated}",
        *([_ANSWERS] if work.answer else []),
        "several devices: weights, gradients, moments and activations divide evenly (FSDP), communication is free",
    ]
    return Prediction(model, work, machine, assumptions, [at(boundary) for boundary in range(shape.layers + 1)])
