"""An optimizer step in parts, with layers recomputed, in bfloat16: held against the batch in one piece."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

from salf.engine.answers import start_of, training_logits
from salf.engine.batches import Batch, Split
from salf.engine.boundary_cache.states import cache_boundary
from salf.engine.models.adapter import CausalModel
from salf.engine.runtime import choose_runtime
from salf.engine.training.costs import cut
from salf.engine.training.forms import Trainable
from salf.families import family_of
from salf.methods import Method
from salf.settings import Device
from tests.engine.training.tiny_training import (
    RUNTIME,
    SHARED,
    made_examples,
    params,
    run,
    scope_above,
    stepper_of,
    trainable,
    weights,
)

EXAMPLES = made_examples()
WHOLE = list(range(7))  # answers of one and of two tokens: a mean over parts is not the mean over tokens


def gradients(made, parts, *, runtime=RUNTIME, start=None, **changes):
    """Loss and gradients that the stepper hands to AdamW, clipped to next to nothing else than themselves."""
    stepper = stepper_of(made, EXAMPLES, params(clip_norm=1e9, **changes), start, runtime=runtime)
    seen = {}
    stepper.optimizer.register_step_post_hook(
        lambda *_: seen.update({n: p.grad.clone() for n, p in made.model.network.named_parameters() if p.requires_grad})
    )
    loss = stepper.take([Batch.of(EXAMPLES, part, SHARED) for part in parts], 1e-9, 0)
    return loss, seen


def reference(made):
    """Hugging Face's forward, one example after another; torch's cross-entropy over all answer tokens."""
    losses = []
    for example in (EXAMPLES[i] for i in WHOLE):
        logits = made.model.network(torch.tensor([list(example.inputs)])).logits[0, len(example.prompt_ids) - 1 :]
        losses.append(torch.nn.functional.cross_entropy(logits, torch.tensor(example.answer_ids), reduction="none"))
    loss = torch.cat(losses).mean()
    loss.backward()
    return loss.item(), {n: p.grad for n, p in made.model.network.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("parts", [1, 2, 3, 7, 20])
@pytest.mark.parametrize("boundary", [0, 2])
def test_parts_of_a_batch_add_up_to_the_whole_models_gradients(boundary, parts):
    loss, found = gradients(trainable(boundary), cut(WHOLE, parts))
    expected_loss, expected = reference(trainable(boundary))
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-5 * float(gradient.abs().max()) + 1e-6)


@pytest.mark.parametrize("parts", [1, 2, 3, 7, 9])
def test_a_cut_batch_holds_every_example_once_in_parts_of_like_size(parts):
    found = cut(WHOLE, parts)
    assert sorted(i for part in found for i in part) == WHOLE
    sizes = {len(part) for part in found}
    assert min(sizes) >= 1
    assert max(sizes) - min(sizes) <= 1
    assert len(found) == min(parts, len(WHOLE))


@pytest.mark.parametrize("boundary", [0, 2, 3, 4])
@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_recomputed_layers_give_the_same_gradients_bit_by_bit(boundary, cached, dropout):
    found = []
    for recompute in (False, True):
        made = trainable(boundary, attention_dropout=dropout)
        # Uncached, the passes run through the frozen prefix: a reentrant form would lose all gradients there.
        start = cache_boundary(made.model, RUNTIME, EXAMPLES, SHARED, boundary, 64) if cached and boundary else None
        found.append(gradients(made, cut(WHOLE, 2), start=start, gradient_checkpointing=recompute))
    (loss, expected), (again, recomputed) = found
    assert loss == again
    assert all(torch.equal(recomputed[name], gradient) for name, gradient in expected.items())
    assert all(gradient.any() for gradient in recomputed.values())


def adapted(boundary):
    """PEFT's adapters beside the linear maps above the boundary, with values that are not its zeros."""
    network = trainable(boundary).model.network.requires_grad_(False)
    torch.manual_seed(1)
    settings = LoraConfig(
        r=2,
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        layers_to_transform=list(range(boundary, 4)),
        layers_pattern="layers",
        init_lora_weights=False,
    )
    adapters = get_peft_model(network, settings)
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    model = CausalModel(network, family_of("llama"))
    return Trainable(model, Method("full", ("lora",)), scope_above(boundary), adapters, parameters, [])


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(("boundary", "cached"), [(0, False), (2, False), (2, True)])
def test_adapters_get_the_gradients_that_they_get_in_the_whole_model(boundary, cached, recompute, parts):
    made = adapted(boundary)
    start = cache_boundary(made.model, RUNTIME, EXAMPLES, SHARED, boundary, 64) if cached else None
    loss, found = gradients(made, cut(WHOLE, parts), start=start, gradient_checkpointing=recompute)
    expected_loss, expected = reference(adapted(boundary))
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert found.keys() == expected.keys()
    assert len(expected) == (4 - boundary) * 7 * 2  # two matrices beside each of a layer's seven maps
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-5 * float(gradient.abs().max()) + 1e-6)


def test_recomputed_layers_run_twice_and_frozen_ones_once():
    made = trainable(2)
    calls = dict.fromkeys(range(4), 0)
    for number, layer in enumerate(made.model.layers):
        layer.self_attn.q_proj.register_forward_pre_hook(
            lambda *_, number=number: calls.update({number: calls[number] + 1})
        )
    gradients(made, [WHOLE], gradient_checkpointing=True)
    # The last layer's pass has two parts, each of which asks for queries.
    assert calls == {0: 1, 1: 1, 2: 2, 3: 4}


def test_recomputation_keeps_the_layers_inputs_and_little_else():
    held = []
    for recompute in (False, True):
        made, batch = trainable(1), Batch.of(EXAMPLES, WHOLE, SHARED)
        sizes = {}

        def keep(tensor, sizes=sizes):
            sizes[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            training_logits(made.model, start_of(Split(EXAMPLES, SHARED), made.model), batch, recompute=recompute)
        of_weights = {parameter.data_ptr() for parameter in made.model.network.parameters()}
        held.append(sum(size for place, size in sizes.items() if place not in of_weights))
    assert held[1] < held[0] / 5


def test_bfloat16_is_near_float32():
    """Stated tolerance: the loss to 2 %, the direction of all gradients together to a cosine of 0.99."""
    bfloat16 = choose_runtime(Device(kind="cpu", dtype="bfloat16"))
    for boundary, changes in ((0, {}), (2, {}), (2, {"gradient_checkpointing": True})):
        loss, expected = gradients(trainable(boundary), cut(WHOLE, 2), **changes)
        rounded_loss, rounded = gradients(trainable(boundary), cut(WHOLE, 2), runtime=bfloat16, **changes)
        assert rounded_loss == pytest.approx(loss, rel=0.02)
        flat, also_flat = (torch.cat([g.flatten() for g in each.values()]) for each in (expected, rounded))
        assert all(gradient.dtype == torch.float32 for gradient in rounded.values())
        assert torch.cosine_similarity(flat, also_flat, dim=0) > 0.99
        assert also_flat.norm() == pytest.approx(float(flat.norm()), rel=0.05)


def test_a_whole_run_in_parts_ends_with_the_weights_of_one_in_one_piece():
    """Stated tolerance: 2e-4 after six steps of AdamW at rate 0.01, which moves every weight by up to 0.06."""
    whole, parts = trainable(1), trainable(1)
    one = run(whole, EXAMPLES, params())
    other = run(parts, EXAMPLES, params(accumulate=3, gradient_checkpointing=True))
    for mine, theirs in zip(one.curve, other.curve, strict=True):
        assert mine.validation_loss == pytest.approx(theirs.validation_loss, rel=1e-4)
    for name, weight in weights(whole).items():
        torch.testing.assert_close(weights(parts)[name], weight, rtol=1e-3, atol=2e-4)


def test_the_optimizer_holds_state_for_trained_tensors_alone_and_decays_no_norm():
    made = trainable(2)
    before = weights(made)
    stepper = stepper_of(made, EXAMPLES, params(weight_decay=0.5))
    stepper.take([Batch.of(EXAMPLES, WHOLE, SHARED)], 0.01, 0)
    assert {id(p) for p in stepper.optimizer.state} == {id(p) for p in made.parameters}
    for group in stepper.optimizer.param_groups:
        assert {p.ndim >= 2 for p in group["params"]} == {group["weight_decay"] > 0}
    for name, parameter in made.model.network.named_parameters():
        assert parameter.requires_grad != torch.equal(parameter, before[name]), name


def test_weight_decay_is_adamws_own():
    """Without a gradient (rate times decay is all that acts): matrices shrink by it, norms stay."""
    made = trainable(3)
    stepper = stepper_of(made, EXAMPLES, params(weight_decay=0.5))
    before = weights(made)
    for parameter in made.parameters:
        parameter.grad = torch.zeros_like(parameter)
    for group in stepper.optimizer.param_groups:
        group["lr"] = 0.1
    stepper.optimizer.step()
    for name, parameter in made.model.network.named_parameters():
        shrunk = parameter.requires_grad and parameter.ndim >= 2
        torch.testing.assert_close(parameter.detach(), before[name] * (0.95 if shrunk else 1.0))
