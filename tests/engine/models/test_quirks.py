"""What architectures do each in their own way, by name: against Hugging Face's ``eager`` attention."""

import math

import pytest
import torch

from salf.engine.answers import Embeddings, training_logits
from salf.engine.models.adapter import take_apart
from salf.engine.models.attention import Packing
from salf.engine.models.walk import run_to_answers
from salf.errors import UserError
from salf.families import FAMILIES, family_of
from tests.engine.models.test_walk import PROMPTS, SHARED, batch_of, compare_gradients, open_tiny, reference, walk_all
from tests.engine.models.tiny import tiny_network

WINDOW = 4
assert max(map(len, PROMPTS)) > WINDOW + 1


def assert_own_logits(model_type, **overrides):
    """Our logits, packed behind nothing, a walked beginning, and joined to it, are the model's own."""
    model, theirs = open_tiny(model_type, **overrides), reference(model_type, **overrides)
    batch = batch_of(SHARED)
    with torch.no_grad():
        own = torch.stack([theirs(torch.tensor([prompt])).logits[0, -1] for prompt in PROMPTS])
        for shared, joined in [(0, False), (SHARED, False), (SHARED, True)]:
            ours = model.logits(walk_all(model, shared, joined)[-1])
            torch.testing.assert_close(ours, own, rtol=1e-4, atol=1e-5)
        at_answers = training_logits(model, Embeddings.after(model, PROMPTS[0][:SHARED]), batch)
    torch.testing.assert_close(at_answers, own, rtol=1e-4, atol=1e-5)
    return model, own


SLIDING = {
    "gemma2": {"sliding_window": WINDOW},
    "gemma3_text": {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"] * 2},
    "mistral": {"sliding_window": WINDOW},
    "mixtral": {"sliding_window": WINDOW},
    "phi3": {"sliding_window": WINDOW},
    "qwen2": {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    "qwen3": {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    "qwen3_moe": {"use_sliding_window": True, "sliding_window": WINDOW},
    "smollm3": {"use_sliding_window": True, "sliding_window": WINDOW, "layer_types": ["sliding_attention"] * 4},
    "starcoder2": {"sliding_window": WINDOW},
}


@pytest.mark.parametrize("model_type", sorted(SLIDING))
def test_a_sliding_window_hides_what_it_hides_in_the_model(model_type):
    _, own = assert_own_logits(model_type, **SLIDING[model_type])
    with torch.no_grad():
        wide = reference(model_type, **{**SLIDING[model_type], "sliding_window": 64})
        everything = torch.stack([wide(torch.tensor([prompt])).logits[0, -1] for prompt in PROMPTS])
    assert (own - everything).abs().max() > 1e-3  # the window is at work


def test_local_and_global_layers_alternate_with_rotary_angles_of_their_own():
    model, _ = assert_own_logits("gemma3_text", **SLIDING["gemma3_text"])
    calls = model.calls(4, Packing.of([5], model.device).position_ids())
    (local, _), (everywhere, _) = (call.options["position_embeddings"] for call in calls[:2])
    assert not torch.equal(local, everywhere)


@pytest.mark.parametrize(
    ("model_type", "factor"), [("gemma", math.sqrt(32)), ("gemma2", math.sqrt(32)), ("granite", 3.0)]
)
def test_embeddings_are_scaled_as_in_the_model(model_type, factor):
    overrides = {"embedding_multiplier": 3.0} if model_type == "granite" else {}
    model, _ = assert_own_logits(model_type, **overrides)
    with torch.no_grad():
        space_0 = Embeddings.after(model, []).states(batch_of(0))
    torch.testing.assert_close(space_0, model.embedding.weight[batch_of(0).ids] * factor)


def test_attention_scores_and_logits_are_soft_capped():
    caps = {"attn_logit_softcapping": 0.5, "final_logit_softcapping": 2.0}
    model, own = assert_own_logits("gemma2", **caps)
    assert own.abs().max() < 2.0
    with torch.no_grad():
        uncapped = reference("gemma2", attn_logit_softcapping=None, final_logit_softcapping=2.0)
        other = torch.stack([uncapped(torch.tensor([prompt])).logits[0, -1] for prompt in PROMPTS])
        plain = torch.stack([model.network(torch.tensor([prompt])).logits[0, -1] for prompt in PROMPTS])
    assert (own - other).abs().max() > 1e-3  # the cap on the scores is at work
    torch.testing.assert_close(plain, own, rtol=1e-4, atol=1e-5)  # and where the whole model runs, to write answers
    compare_gradients("gemma2", 2, **caps)


@pytest.mark.parametrize(
    ("model_type", "overrides"),
    [
        ("gpt_neox", {"use_parallel_residual": True}),
        ("gpt_neox", {"use_parallel_residual": False}),
        ("falcon", {"parallel_attn": True}),
        ("falcon", {"parallel_attn": False, "multi_query": False, "bias": True}),
        ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
        ("phi", {}),
        ("cohere", {"logit_scale": 0.3}),
    ],
)
def test_parallel_residuals(model_type, overrides):
    assert_own_logits(model_type, **overrides)


def test_learned_positions_count_from_an_offset():
    model, _ = assert_own_logits("opt")
    positions = model.network.model.decoder.embed_positions.weight
    with torch.no_grad():
        states = Embeddings.after(model, PROMPTS[0][:SHARED]).states(batch_of(SHARED))
    expected = model.embedding.weight[PROMPTS[1][SHARED]] + positions[SHARED + 2]
    torch.testing.assert_close(states[len(PROMPTS[0]) - SHARED], expected)


def test_linear_biases_run_padded():
    model, _ = assert_own_logits("bloom")
    assert not model.family.packed


def test_linear_biases_of_falcon_run_padded():
    """Its ``eager`` attention adds the biases twice (transformers 5.23): the reference is its ``sdpa``."""
    model = open_tiny("falcon", alibi=True, multi_query=False)
    with torch.no_grad():
        own = torch.stack([model.network(torch.tensor([prompt])).logits[0, -1] for prompt in PROMPTS])
        for shared, joined in [(0, False), (SHARED, False), (SHARED, True)]:
            ours = model.logits(walk_all(model, shared, joined)[-1])
            torch.testing.assert_close(ours, own, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model_type", ["phi", "gptj"])
def test_a_heads_bias_is_part_of_the_logits(model_type):
    model, own = assert_own_logits(model_type)
    assert model.head.bias is not None
    with torch.no_grad():
        model.head.bias.add_(1.0)
        moved = model.logits(walk_all(model, 0, joined=False)[-1])
    torch.testing.assert_close(moved, own + 1, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model_type", ["mixtral", "qwen3_moe", "qwen2_moe", "olmoe", "granitemoe"])
def test_a_mixture_of_experts_trains_without_its_auxiliary_loss(model_type):
    """Even where the configuration asks for it: the gradients are those of the answer's loss alone."""
    if model_type == "granitemoe":
        compare_gradients(model_type, 2)
        return
    model = open_tiny(model_type, output_router_logits=True)
    plain = open_tiny(model_type)
    batch = batch_of(0)
    for one in (model, plain):
        logits = training_logits(one, Embeddings.after(one, []), batch)
        torch.nn.functional.cross_entropy(logits, batch.targets).backward()
    for (name, mine), other in zip(model.network.named_parameters(), plain.network.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, msg=name)


def test_a_dense_layer_among_layers_of_experts():
    assert_own_logits("qwen3_moe", mlp_only_layers=[1], decoder_sparse_step=1)


def test_mamba_has_no_attention_and_runs_padded():
    model, _ = assert_own_logits("mamba")
    assert not model.family.packed
    compare_gradients("mamba", 2)


@pytest.mark.parametrize("model_type", ["stablelm", "exaone4", "glm", "xglm", "biogpt"])
def test_a_model_type_outside_the_table_is_found_by_names_and_checked(model_type):
    assert model_type not in FAMILIES
    network = tiny_network(model_type, head_dim=8 if model_type in {"glm", "exaone4"} else None)
    names = [name for name, _ in network.named_parameters(remove_duplicate=False)]
    family = family_of(model_type, names)
    assert network.get_submodule(family.embedding) is network.get_input_embeddings()
    assert network.get_submodule(family.head) is network.get_output_embeddings()
    model = take_apart(network)
    with torch.no_grad():
        ours = model.logits(walk_all(model, SHARED, joined=True)[-1])
        own = torch.stack([network(torch.tensor([prompt])).logits[0, -1] for prompt in PROMPTS])
    torch.testing.assert_close(ours, own, rtol=1e-4, atol=1e-5)


LONG = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4}


@pytest.mark.parametrize(
    ("rope", "limit"),
    [
        ({"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}, 12),
        ({**LONG, "original_max_position_embeddings": 12}, 12),
        ({**LONG, "original_max_position_embeddings": 128}, 128),
        ({"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}, None),
    ],
)
def test_rotary_angles_that_depend_on_the_batch_are_refused(rope, limit):
    """A prompt of 8 tokens beside one of 20: within the limit nothing depends on the neighbour."""
    sizes = {"rope_parameters": rope, "max_position_embeddings": 12 if rope["rope_type"] == "dynamic" else 128}
    model, theirs = open_tiny("llama", **sizes), reference("llama", **sizes)
    assert model.steady_positions == limit

    def ours(*lengths):
        prompts = [[(7 * n + 3) % 97 for n in range(length)] for length in lengths]
        ids = torch.tensor([token for prompt in prompts for token in prompt])
        packing = Packing.of(lengths, model.device)
        ends = torch.tensor(lengths).cumsum(0) - 1
        states = model.embed(ids, packing.position_ids()[0])
        alone = torch.stack([theirs(torch.tensor([prompt])).logits[0, -1] for prompt in prompts])
        return model.logits(run_to_answers(model, states, 0, packing, ends)), alone

    with torch.no_grad():
        torch.testing.assert_close(*ours(8, limit or 12), rtol=1e-4, atol=1e-5)
        if limit == 12:
            with pytest.raises(UserError, match=r"beyond 12 tokens .* set prepare\.max_tokens to 12 at most"):
                ours(8, 20)
        else:
            torch.testing.assert_close(*ours(8, 20), rtol=1e-4, atol=1e-5)
