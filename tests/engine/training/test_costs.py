"""Operations of a step, parts and recomputed layers included, against PyTorch's own counter."""

from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils.flop_counter import FlopCounterMode

from salf import cost
from salf.cost import Flops
from salf.engine.answers import Embeddings, Reader, training_logits, training_states
from salf.engine.batches import Batch, Split
from salf.engine.boundary_cache.prompts import PromptLayers, answer_side, cache_prompts
from salf.engine.boundary_cache.states import cache_boundary
from salf.engine.models.adapter import CausalModel
from salf.engine.training.costs import Costs, cut
from salf.engine.training.scope import Scope
from salf.families import FAMILIES, family_of
from salf.shape import ModelShape
from tests.engine.models.tiny import tiny_network
from tests.engine.training.tiny_training import RUNTIME
from tests.salf.test_cost import EXAMPLES, RANK, SHARED, counted_passes, freeze_below, llama

TECHNIQUES = {"weights": cost.PLAIN, "lora": cost.adapters(RANK)}

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


def without_attention(costs, parts):
    """PyTorch does not count its fused attention on a CPU: neither do we here."""
    total = costs.step(parts)
    below, width = 4 - costs.scope.boundary - 1, 4 * costs.shape.attention_width
    for part in parts if costs.scope.boundary < 4 else []:
        once = width * (below * (part.attended + SHARED * (SHARED + 1) // 2) + part.seen)
        total += Flops(-once, -(2 + costs.recompute) * once)
    return total


def counted(model, start, batches, recompute):
    """PyTorch's count of the parts of a step."""
    return counted_passes(lambda: [training_logits(model, start, batch, recompute=recompute) for batch in batches])


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize(
    ("technique", "boundary"),
    [*[("weights", k) for k in range(5)], *[("lora", k) for k in range(4)]],
)
def test_a_step_costs_what_pytorch_counts(technique, boundary, parts, recompute):
    model, shape = made(boundary, technique)
    start = Embeddings.after(model, range(2, 2 + SHARED))
    if boundary:
        start = cache_boundary(model, RUNTIME, EXAMPLES, SHARED, boundary, batch_tokens=99)
    batches = [Batch.of(EXAMPLES, part, SHARED) for part in cut(range(len(EXAMPLES)), parts)]
    costs = Costs(shape, Scope.above(boundary, 4), TECHNIQUES[technique], recompute)
    assert counted(model, start, batches, recompute) == without_attention(costs, batches)


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
    start = Embeddings.after(model, range(2, 2 + SHARED))
    costs = Costs(shape, Scope(4, 0, layers, final=final), recompute=recompute)
    assert counted(model, start, batches, recompute) == without_attention(costs, batches)


DROPOUT = {
    "bloom": "hidden_dropout",
    "falcon": "hidden_dropout",
    "gpt2": "resid_pdrop",
    "gpt_bigcode": "resid_pdrop",
    "gpt_neox": "hidden_dropout",
    "gptj": "resid_pdrop",
    "opt": "dropout",
    "phi": "resid_pdrop",
    "phi3": "resid_pdrop",
    "starcoder2": "residual_dropout",
}


def counted_with_dropout(kind, share, technique, layers):
    """PyTorch's count and ours of a step at boundary 0 with recomputed layers, of which ``layers`` train."""
    attention = {"attn_pdrop": 0.0, "attention_dropout": 0.0}
    network = tiny_network(kind, **{DROPOUT[kind]: share}, **attention)
    shape = ModelShape.from_config(network.config.to_dict())
    if technique == "lora":
        maps = {"target_modules": shape.adapted_maps, "fan_in_fan_out": kind in {"gpt2", "gpt_bigcode"}}
        get_peft_model(network, LoraConfig(r=RANK, **maps))
    model = CausalModel(network, family_of(kind))
    for number in layers:
        model.layers[number - 1].train()
    if technique == "weights":
        for number, layer in enumerate(model.layers, 1):
            layer.requires_grad_(number in layers)
    batches = [Batch.of(EXAMPLES, range(len(EXAMPLES)), SHARED)]
    start = Embeddings.after(model, range(2, 2 + SHARED))
    costs = Costs(shape, Scope(4, 0, layers), TECHNIQUES[technique], recompute=True)
    ours = without_attention(costs, batches) if shape.packed else costs.step(batches)
    return counted(model, start, batches, recompute=True), ours, shape


@pytest.mark.parametrize("kind", DROPOUT)
@pytest.mark.parametrize(
    ("technique", "layers"), [("weights", (1, 2, 3, 4)), ("weights", (1, 3)), ("weights", (4,)), ("lora", (1, 2, 3, 4))]
)
def test_dropout_after_the_last_map_has_that_map_recomputed_where_it_trains(kind, technique, layers):
    without, with_dropout = (counted_with_dropout(kind, share, technique, layers) for share in (0.0, 0.1))
    more = [having.backward - lacking.backward for having, lacking in zip(with_dropout[:2], without[:2], strict=True)]
    assert more[0] == more[1] > 0
    if without[2].packed and kind != "bloom":  # the others' attention is plain products, which the counter sees
        assert without[0] == without[1]


def test_what_a_configuration_does_not_say_of_dropout_is_what_transformers_takes():
    for kind in sorted(set(FAMILIES) - {"mamba"}):
        network = tiny_network(kind)
        raw = {name: value for name, value in network.config.to_dict().items() if "drop" not in name}
        network.train()
        shares = [part.p for part in network.modules() if isinstance(part, torch.nn.Dropout)]
        shares.append(getattr(network.config, DROPOUT.get(kind, ""), 0.0))
        assert ModelShape.from_config(raw).layer.drops == (max(shares) > 0), kind


@pytest.mark.parametrize("boundary", range(5))
def test_a_reading_costs_what_pytorch_counts(boundary):
    model, shape = made(boundary, "weights")
    beginning = range(2, 2 + SHARED)
    examples = [replace(example, prompt_ids=(*beginning, *example.prompt_ids)) for example in EXAMPLES]
    start = Embeddings.after(model, beginning)
    if boundary:
        start = cache_boundary(model, RUNTIME, examples, SHARED, boundary, batch_tokens=99)
    with FlopCounterMode(display=False) as counter:
        Reader(model, RUNTIME, None, batch_tokens=99).read(Split(examples, SHARED, start))
    whole, above = Batch.of(examples, range(len(examples)), SHARED), 4 - boundary
    # PyTorch does not count its fused attention on a CPU.
    seen = above * SHARED * (SHARED + 1) // 2 + max(above - 1, 0) * whole.attended
    seen += whole.seen if above else 0
    expected = (
        Costs(shape, Scope.above(boundary, 4)).reading(Split(examples, SHARED)) - 4 * shape.attention_width * seen
    )
    assert counter.get_total_flops() == expected


BASE_ROWS = (4, 7, 5)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("kept", ["cached", "prompts for every batch", "everything for every batch"])
@pytest.mark.parametrize(("technique", "boundary"), [("weights", 0), ("weights", 2), ("lora", 0), ("lora", 3)])
def test_answers_alone_cost_what_pytorch_counts(technique, boundary, kept, recompute, monkeypatch):
    """Before the first step, and in one; PyTorch does not count its fused attention on a CPU: neither do we here."""
    monkeypatch.setattr(cost, "_attention_flops", lambda *_: 0)
    base, _ = made(0, "weights")
    model, shape = made(boundary, technique)
    if technique == "weights":
        freeze_below(model.network, boundary, keep_head=False)
    split = Split(EXAMPLES, SHARED, base_rows=BASE_ROWS)
    states, source = None, None
    with FlopCounterMode(display=False) as counter:
        if boundary and kept != "everything for every batch":
            states = cache_boundary(base, RUNTIME, EXAMPLES, SHARED, boundary, batch_tokens=99)
        if kept == "cached":
            source = cache_prompts(base, RUNTIME, split, 99, states)
        else:
            source = PromptLayers.of_model(base, RUNTIME, 4, split.prefix)
    uncached = {"uncached": states is None, "prompts_uncached": kept != "cached"}
    costs = Costs(
        shape,
        Scope(4, boundary, tuple(range(boundary + 1, 5)), embeddings=False),
        TECHNIQUES[technique],
        recompute,
        **uncached,
    )
    probe = (
        kept == "cached" and 2 * sum(part.products for part in shape.layer.maps) * 3
    )  # one token, to learn the sizes
    last = kept == "cached" and 2 * sum(part.products for part in shape.layer.maps if part.role != "other")
    walked_twice = kept == "everything for every batch"
    assert counter.get_total_flops() - probe - last == costs.frozen(split) - walked_twice * cost.forward_flops(
        shape, boundary, SHARED, 0
    )

    start = answer_side(model, RUNTIME, split, source, states, boundary)
    parts = [split.batch(part) for part in cut(range(len(EXAMPLES)), 2)]
    done = counted_passes(
        lambda: [model.logits(training_states(model, start, part, recompute=recompute)) for part in parts]
    )
    total = Flops()
    for part in parts:
        total += costs.step([part])
    assert done == total
