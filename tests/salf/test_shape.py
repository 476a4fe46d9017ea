"""Sizes read out of a configuration against the network's own tensors, and costs against PyTorch's counter."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

from salf import cost
from salf.engine.answers import Embeddings, training_logits
from salf.engine.batches import Batch, Example
from salf.engine.models.adapter import CausalModel
from salf.engine.models.attention import Packing
from salf.engine.models.walk import run
from salf.errors import UserError
from salf.families import FAMILIES, family_of
from salf.shape import ModelShape
from tests.engine.models.tiny import tiny_network
from tests.salf.test_cost import counted_passes

pytestmark = pytest.mark.usefixtures("fused_attention")

MODELLED = sorted(set(FAMILIES) - {"mamba"})
VARIANTS = [
    *((kind, {}) for kind in MODELLED),
    ("cohere", {"use_qk_norm": True, "tie_word_embeddings": False}),
    ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2, "bias": True}),
    ("falcon", {"parallel_attn": False, "multi_query": False, "tie_word_embeddings": False}),
    ("gemma3_text", {"attention_bias": True}),
    ("gpt2", {"n_inner": 40}),
    ("gpt_bigcode", {"multi_query": False}),
    ("gpt_neox", {"use_parallel_residual": False, "attention_bias": False}),
    ("opt", {"enable_bias": False}),
    ("phi", {"qk_layernorm": True}),
    ("qwen2_moe", {"qkv_bias": False}),
    ("starcoder2", {"use_bias": False}),
]
SHARED = 2
EXAMPLES = [
    Example("", None, "", "", (*range(2, 2 + prompt),), (*range(20, 20 + answer),))
    for prompt, answer in [(5, 1), (9, 3), (6, 2)]
]


def open_tiny(kind, overrides):
    network = tiny_network(kind, **overrides)
    # One expert after the other: the counter does not see into grouped products.
    network.set_experts_implementation("eager")
    shape = ModelShape.from_config(network.config.to_dict())
    return CausalModel(network, family_of(kind)), shape


def names(variants):
    return [f"{kind}{'-' if more else ''}{'-'.join(more)}" for kind, more in variants]


@pytest.mark.parametrize(("kind", "overrides"), VARIANTS, ids=names(VARIANTS))
def test_parameters_are_those_of_the_network(kind, overrides):
    model, shape = open_tiny(kind, overrides)
    assert shape.parameters == sum(p.numel() for p in model.network.parameters())
    assert shape.layer_parameters == sum(p.numel() for p in model.layers[2].parameters())
    assert shape.norm_parameters == sum(p.numel() for p in model.norm.parameters())
    assert shape.tied_head == model.tied_head
    before = sum(p.numel() for n, p in model.network.named_parameters() if model.family.before_layers(n))
    assert shape.embedding_parameters == before


def train(model, boundary):
    """Forward and backward of the suffix, from states that need no gradient; counted."""
    batch = Batch.of(EXAMPLES, range(len(EXAMPLES)), SHARED)
    embeddings = Embeddings.after(model, range(2, 2 + SHARED))
    if boundary:
        with torch.no_grad():
            packing = Packing.of(batch.lengths, model.device, past=SHARED)
            states = run(model, embeddings.states(batch, joined=True), 0, boundary, packing)

        class Start:
            space, shared = boundary, SHARED

            @staticmethod
            def states(_batch, **_joined):
                return states

        embeddings = Start
    return counted_passes(lambda: [training_logits(model, embeddings, batch)])


def expected(shape, boundary, *, attention_counted=False, **options):
    """PyTorch does not count its fused attention on a CPU; attention in plain products it counts."""
    batch = Batch.of(EXAMPLES, range(len(EXAMPLES)), SHARED)
    queries = len(batch.ids) + SHARED
    if not shape.packed:
        queries = len(EXAMPLES) * (SHARED + max(batch.lengths))
    square = queries * (SHARED + max(batch.lengths)) if attention_counted else 0
    return cost.training_passes(shape, boundary, cost.Sums(queries, square, len(batch.targets), 0), **options)


@pytest.mark.parametrize("boundary", [1, 3])
@pytest.mark.parametrize(("kind", "overrides"), VARIANTS, ids=names(VARIANTS))
def test_training_agrees_with_pytorchs_counter(kind, overrides, boundary):
    model, shape = open_tiny(kind, overrides)
    if kind == "gemma2":  # soft-capped scores are products that the counter sees
        for layer in model.layers:
            layer.self_attn.attn_logit_softcapping = None
    model.network.requires_grad_(False)
    for name, parameter in model.network.named_parameters():
        layer = name.removeprefix(f"{model.family.layers}.").split(".")[0]
        above = int(layer) >= boundary if layer.isdigit() else not model.family.before_layers(name)
        parameter.requires_grad_(boundary == 0 or above)
    # Heads that share keys fall back from the fused kernel to plain products.
    counted = kind in {"bloom", "gptj"} or (kind == "falcon" and shape.kv_heads == 1)
    assert train(model, boundary) == expected(shape, boundary, attention_counted=counted)


@pytest.mark.parametrize("boundary", [0, 2, 3])
@pytest.mark.parametrize(
    "kind", ["gpt2", "gpt_neox", "opt", "phi", "phi3", "falcon", "olmo2", "cohere", "mixtral", "qwen3_moe"]
)
def test_lora_agrees_with_pytorchs_counter_on_a_peft_model(kind, boundary):
    model, shape = open_tiny(kind, {})
    model.network.requires_grad_(False)
    adapted = get_peft_model(
        model.network,
        LoraConfig(
            r=4,
            target_modules=shape.adapted_maps,
            layers_to_transform=list(range(boundary, 4)),
            layers_pattern=model.family.layers.rsplit(".", 1)[-1],
            fan_in_fan_out=kind == "gpt2",
        ),
    )
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert trained == shape.lora_parameters(boundary, 4)
    assert train(model, boundary) == expected(
        shape, boundary, attention_counted=kind == "falcon", technique=cost.adapters(4)
    )


def test_what_is_not_modelled_is_refused_by_name():
    with pytest.raises(UserError, match="'mamba': the cost of a recurrence is not modelled"):
        ModelShape.from_config(tiny_network("mamba").config.to_dict() | {"num_attention_heads": 4})
    mixed = tiny_network("qwen3_moe", mlp_only_layers=[1]).config.to_dict()
    with pytest.raises(UserError, match=r"mlp_only_layers.* layers that are all alike"):
        ModelShape.from_config(mixed)
    with pytest.raises(UserError, match="word_embed_proj_dim is not hidden_size"):
        ModelShape.from_config(tiny_network("opt").config.to_dict() | {"word_embed_proj_dim": 16})


def test_older_names_of_entries_are_read():
    raw = {"model_type": "gpt2", "n_layer": 12, "n_embd": 768, "n_head": 12, "n_positions": 1024, "vocab_size": 50257}
    assert ModelShape.from_config(raw).parameters == 124_439_808  # GPT-2 small, as published
