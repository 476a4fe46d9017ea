"""Memory of a fine-tune above a boundary at its highest, from a model's sizes."""

from dataclasses import dataclass
from typing import Final

from salf.cost import ModelShape, activation_bytes_per_token
from salf.plan import CostModel


@dataclass(frozen=True)
class Precision:
    """Bytes of a value.

    Attributes:
        frozen: of a frozen weight.
        trained: of a trained weight, with the copy that mixed precision multiplies by.
        gradient: of a gradient.
        moments: of AdamW's two moments together.
        value: of what linear maps compute.
        stream: of the residual stream and the norms.
        logit: of one entry of the logits, with all that the loss keeps of it and its gradient.
        words: what this means.
    """

    frozen: int
    trained: int
    gradient: int
    moments: int
    value: int
    stream: int
    logit: int
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


@dataclass(frozen=True)
class Memory:
    """Bytes held while training above one boundary.

    Attributes:
        weights: of the whole model, frozen layers included.
        gradients: of what trains.
        moments: AdamW's, of what trains.
        activations: kept for back-propagation, of one pass.
        logits: at the answer positions of one pass, with the loss.
        peak: the most at any moment.
    """

    weights: int
    gradients: int
    moments: int
    activations: int
    logits: int
    peak: int


def memory(shape: ModelShape, work: CostModel, boundary: int, precision: Precision) -> Memory:
    """Bytes above a boundary 0..L.

    While back-propagation walks down, activations go and gradients come: the most is held at its start,
    when the head has its gradient, or at its end. With several parts to a batch (accumulated gradients)
    the earlier parts' gradients are there all the time. Attention is taken to be a fused kernel's, which
    keeps no probabilities: short sequences on a CPU, computed by plain products, hold some more.

    Args:
        shape: the model.
        work: sums over an epoch, from which those of a batch follow.
        boundary: layers 1..boundary are frozen.
        precision: bytes of the values.
    """
    trained = shape.trained_parameters(boundary)
    parts = work.parts_per_epoch
    per_token = activation_bytes_per_token(shape, precision.value, precision.stream)
    activations = round(_kept_tokens(shape, work, boundary) / parts * per_token)
    logits = round(work.positions / parts * shape.vocabulary * precision.logit)
    gradients = trained * precision.gradient
    weights = (shape.parameters - trained) * precision.frozen + trained * precision.trained
    moments = trained * precision.moments
    head_trains = boundary == 0 or not shape.tied_head
    head = head_trains * shape.hidden * shape.vocabulary * precision.gradient
    walking = activations + logits + (head if work.parts == 1 else gradients)
    return Memory(weights, gradients, moments, activations, logits, weights + moments + max(gradients, walking))


def _kept_tokens(shape: ModelShape, work: CostModel, boundary: int) -> int:
    """Tokens of an epoch that trained layers keep activations of, summed over these layers.

    The last layer of a packed model computes keys and values of all tokens and all else at answer positions.
    """
    trained = shape.layers - boundary
    if not trained or not shape.packed:
        return trained * work.queries
    return (trained - 1) * work.queries + work.positions
