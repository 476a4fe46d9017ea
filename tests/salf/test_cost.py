"""The counts of salf.cost against PyTorch's own counter on real (random) models."""

from itertools import pairwise

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, BitNetConfig, LlamaConfig, Qwen2Config, Qwen3Config

from salf import cost
from salf.cost import Flops
from salf.engine.answers import Embeddings, training_logits
from salf.engine.batches import Batch, Example
from salf.engine.boundary_cache.states import cache_boundary
from salf.engine.models.adapter import CausalModel
from salf.engine.runtime import choose_runtime
from salf.errors import UserError
from salf.families import family_of
from salf.scale.prediction import PRECISIONS
from salf.settings import Device
from salf.shape import ModelShape

pytestmark = pytest.mark.usefixtures("fused_attention")

BATCH, TOKENS, RANK = 3, 11, 4
QUERIES, SQUARE = BATCH * TOKENS, BATCH * TOKENS * TOKENS  # eager attention computes the whole square
SHARED = 2
EXAMPLES = [
    Example("", None, "", "", tuple(range(2, 2 + prompt)), tuple(range(20, 20 + answer)))
    for prompt, answer in [(5, 1), (9, 3), (6, 2)]
]
SIZES = {
    "vocab_size": 53,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def llama(**changes):
    torch.manual_seed(0)
    config = LlamaConfig(**SIZES, attn_implementation="eager", **changes)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").train()
    return model, ModelShape.from_config(config.to_dict())


def counted(model):
    """Hugging Face's forward pass, the attention matrix and all."""
    ids = torch.arange(QUERIES).reshape(BATCH, TOKENS) % 53
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, use_cache=False)
    return counter.get_total_flops()


def batch():
    """Sequences of several lengths with one to three answer tokens behind two shared ones."""
    return Batch.of(EXAMPLES, range(len(EXAMPLES)), SHARED)


def counted_passes(forward):
    """What PyTorch counts in ``forward``, which returns logits, and in back-propagation from their mean square."""
    with FlopCounterMode(display=False) as there:
        loss = sum(logits.square().mean() for logits in forward())
    with FlopCounterMode(display=False) as back:
        loss.backward()
    return Flops(there.get_total_flops(), back.get_total_flops())


def counted_training(network, boundary):
    """The linear maps of our own pass and its gradients; PyTorch does not count its fused attention on a CPU."""
    model, rows = CausalModel(network, family_of("llama")), batch()
    start = Embeddings.after(model, range(2, 2 + SHARED))
    if boundary:
        runtime = choose_runtime(Device(kind="cpu", dtype="float32"))
        start = cache_boundary(model, runtime, EXAMPLES, SHARED, boundary, batch_tokens=99)
    return counted_passes(lambda: [training_logits(model, start, rows)])


def expected_training(shape, boundary, **options):
    rows = batch()
    sums = cost.Sums(len(rows.ids) + SHARED, 0, len(rows.targets), 0)
    return cost.training_passes(shape, boundary, sums, **options)


def freeze_below(model, boundary, *, keep_head):
    """Freeze by hand: nothing below the boundary needs a gradient, as with cached states."""
    frozen = [model.model.embed_tokens, *model.model.layers[:boundary]] + ([] if keep_head else [model.lm_head])
    for module in frozen:
        module.requires_grad_(False)


@pytest.mark.parametrize("tied", [True, False])
def test_forward_agrees_with_pytorchs_counter(tied):
    model, shape = llama(tie_word_embeddings=tied)
    assert counted(model) == cost.forward_flops(shape, 4, QUERIES, SQUARE) + cost.head_forward_flops(shape, QUERIES)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("boundary", [0, 1, 2, 3, 4])
def test_training_above_a_boundary_agrees_with_pytorchs_counter(boundary, tied):
    model, shape = llama(tie_word_embeddings=tied)
    if boundary:
        freeze_below(model, boundary, keep_head=not tied)
    assert counted_training(model, boundary) == expected_training(shape, boundary)


@pytest.mark.parametrize("boundary", [0, 2, 3])
def test_lora_agrees_with_pytorchs_counter_on_a_peft_model(boundary):
    model, shape = llama(tie_word_embeddings=True)
    adapted = get_peft_model(
        model,
        LoraConfig(
            r=RANK,
            target_modules=shape.adapted_maps,
            layers_to_transform=list(range(boundary, 4)),
            layers_pattern="layers",
        ),
    )
    assert counted_training(model, boundary) == expected_training(shape, boundary, technique=cost.adapters(RANK))
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert trained == shape.lora_parameters(boundary, RANK)


def test_attention_costs_what_its_keys_cost_forward_and_twice_that_backward():
    _, shape = llama()
    without, attending = (cost.training_passes(shape, 1, cost.Sums(100, n, 7, m)) for n, m in [(0, 0), (900, 80)])
    once = (2 * 900 + 80) * 4 * shape.attention_width
    assert attending == without + Flops(once, 2 * once)
    assert cost.training_flops(shape, 1, 100, 900, 7, 80) == attending.total


@pytest.mark.parametrize("config", [LlamaConfig, Qwen2Config, Qwen3Config, BitNetConfig])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_parameters_are_those_of_the_model(config, tied, bias):
    configuration = config(**SIZES, head_dim=8, tie_word_embeddings=tied, attention_bias=bias, mlp_bias=bias)
    if config is not LlamaConfig:
        configuration.mlp_bias = False  # only Llama reads it
    model = AutoModelForCausalLM.from_config(configuration)
    shape = ModelShape.from_config(configuration.to_dict())
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    assert shape.layer_parameters == sum(p.numel() for p in model.model.layers[2].parameters())
    assert shape.trained_parameters(0) == shape.parameters
    assert shape.trained_parameters(4) == shape.norm_parameters + shape.head_parameters


def test_head_dim_of_its_own_is_counted():
    model, shape = llama(head_dim=16)
    assert shape.attention_width == 64
    assert counted(model) == cost.forward_flops(shape, 4, QUERIES, SQUARE) + cost.head_forward_flops(shape, QUERIES)


def test_activations_are_near_what_autograd_keeps():
    torch.manual_seed(0)
    # Wide enough that what is per sequence (masks, rotary angles) does not matter.
    sizes = {**SIZES, "hidden_size": 128, "intermediate_size": 344, "num_hidden_layers": 6}
    config = LlamaConfig(**sizes)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").train()
    ids = torch.arange(QUERIES).reshape(BATCH, TOKENS) % 53
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor):
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    def bytes_kept(layers):
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            states = model.model(input_ids=ids, use_cache=False).last_hidden_state  # noqa: F841 (keeps the graph)
            return sum(tensor.untyped_storage().nbytes() for tensor in kept.values()) / layers

    measured = bytes_kept(6) / QUERIES
    shape = ModelShape.from_config(config.to_dict())
    assert cost.activation_bytes_per_token(shape) == pytest.approx(measured, rel=0.2)


def test_optimizer_and_gradients_against_a_real_adamw():
    model, shape = llama()
    freeze_below(model, 2, keep_head=True)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    model(input_ids=torch.ones(1, 4, dtype=torch.long)).logits.mean().backward()
    optimizer.step()
    moments = [s for state in optimizer.state.values() for n, s in state.items() if n != "step"]
    count = shape.trained_parameters(2)
    held = PRECISIONS["float32"]
    assert held.moments * count == sum(m.nbytes for m in moments)
    assert held.gradient * count == sum(p.grad.nbytes for p in trained)


def test_counts_are_linear_and_fall_with_the_boundary():
    _, shape = llama()
    once = cost.training_flops(shape, 1, 10, 55, 2, 9)
    assert cost.training_flops(shape, 1, 30, 165, 6, 27) == 3 * once
    costs = [cost.training_flops(shape, boundary, 10, 55, 2, 9) for boundary in range(5)]
    assert all(above > below for above, below in pairwise(costs))


def test_impossible_boundaries_are_refused():
    _, shape = llama()
    with pytest.raises(ValueError, match=r"outside 0\.\.4"):
        cost.training_flops(shape, 5, 1, 1, 1, 1)
    with pytest.raises(ValueError, match="train nothing"):
        cost.training_flops(shape, 4, 1, 1, 1, 1, method="lora")


def test_a_config_of_another_kind_of_model_is_one_line():
    with pytest.raises(UserError, match="no entry 'intermediate_size'"):
        ModelShape.from_config({"num_attention_heads": 2, "hidden_size": 8, "num_hidden_layers": 1, "vocab_size": 3})
