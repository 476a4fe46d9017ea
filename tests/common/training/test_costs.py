"""Operations of a step, parts and recomputed layers included, against PyTorch's own counter."""

from dataclasses import replace

import pytest
from peft import LoraConfig, get_peft_model
from torch.utils.flop_counter import FlopCounterMode

from stages.common.answers import Embeddings, Reader, training_logits
from stages.common.batches import Batch
from stages.common.boundary_cache.compute import cache_boundary
from stages.common.models.adapter import CausalModel
from stages.common.models.families import family_of
from stages.common.training.costs import Costs
from stages.common.training.step import cut
from tests.common.test_cost import EXAMPLES, RANK, SHARED, freeze_below, llama
from tests.common.training.tiny_training import RUNTIME

pytestmark = pytest.mark.usefixtures("fused_attention")


def made(boundary, technique):
    network, shape = llama(tie_word_embeddings=True)
    if technique == "lora":
        config = LoraConfig(
            r=RANK,
            target_modules=shape.adapted_maps,
            layers_to_transform=list(range(boundary, 4)),
            layers_pattern="layers",
        )
        get_peft_model(network, config)
    elif boundary:
        freeze_below(network, boundary, keep_head=False)
    return CausalModel(network, family_of("llama")), shape


def without_attention(costs, parts, layers=None):
    """PyTorch does not count its fused attention on a CPU: neither do we here."""
    total = costs.step(parts, SHARED, layers)
    of_suffix, of_last = 3 + costs.recompute, 3 + costs.recompute
    below, width = 4 - costs.boundary - 1, 4 * costs.shape.attention_width
    for part in parts if costs.boundary < 4 else []:
        attended = part.attended(SHARED) + SHARED * (SHARED + 1) // 2
        total -= width * (of_suffix * below * attended + of_last * part.seen(SHARED))
    return total


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize(
    ("technique", "boundary"),
    [*[("weights", k) for k in range(5)], *[("lora", k) for k in range(4)]],
)
def test_a_step_costs_what_pytorch_counts(technique, boundary, parts, recompute):
    model, shape = made(boundary, technique)
    start = Embeddings.behind(model, range(2, 2 + SHARED))
    if boundary:
        start = cache_boundary(model, RUNTIME, EXAMPLES, SHARED, boundary, batch_tokens=99)
    batches = [Batch.of(EXAMPLES, part, SHARED) for part in cut(range(len(EXAMPLES)), parts)]
    with FlopCounterMode(display=False) as counter:
        for batch in batches:
            training_logits(model, start, batch, recompute=recompute).square().mean().backward()
    costs = Costs(shape, boundary, technique, RANK, recompute=recompute)
    assert counter.get_total_flops() == without_attention(costs, batches)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    ("layers", "final"), [((1,), False), ((1, 2), True), ((4,), True), ((2, 4), False), ((), True)]
)
def test_frozen_layers_that_back_propagation_passes_spare_their_weights_gradients_alone(layers, final, tied, recompute):
    """Embeddings train, so that gradients pass through all layers, whichever of them train."""
    network, shape = llama(tie_word_embeddings=tied)
    for number, layer in enumerate(network.model.layers, 1):
        layer.requires_grad_(number in layers)
    network.model.norm.requires_grad_(final)
    if not tied:
        network.lm_head.requires_grad_(final)
    model = CausalModel(network, family_of("llama"))
    batches = [Batch.of(EXAMPLES, part, SHARED) for part in cut(range(len(EXAMPLES)), 2)]
    start = Embeddings.behind(model, range(2, 2 + SHARED))
    with FlopCounterMode(display=False) as counter:
        for batch in batches:
            training_logits(model, start, batch, recompute=recompute).square().mean().backward()
    costs = Costs(shape, 0, "weights", RANK, recompute=recompute, own_head_frozen=not final)
    assert counter.get_total_flops() == without_attention(costs, batches, layers)


@pytest.mark.parametrize("boundary", range(5))
def test_a_reading_costs_what_pytorch_counts(boundary):
    model, shape = made(boundary, "weights")
    beginning = range(2, 2 + SHARED)
    examples = [replace(example, prompt_ids=(*beginning, *example.prompt_ids)) for example in EXAMPLES]
    start = Embeddings.behind(model, beginning)
    if boundary:
        start = cache_boundary(model, RUNTIME, examples, SHARED, boundary, batch_tokens=99)
    with FlopCounterMode(display=False) as counter:
        Reader(model, RUNTIME, None, batch_tokens=99).read(examples, SHARED, start)
    whole, above = Batch.of(examples, range(len(examples)), SHARED), 4 - boundary
    # PyTorch does not count its fused attention on a CPU.
    seen = above * SHARED * (SHARED + 1) // 2 + max(above - 1, 0) * whole.attended(SHARED)
    seen += whole.seen(SHARED) if above else 0
    expected = Costs(shape, boundary, "weights", 0).reading(examples, SHARED) - 4 * shape.attention_width * seen
    assert counter.get_total_flops() == expected
