"""PACE, held against closed forms, plain LoRA bit for bit, and Hugging Face's forward with noise by hand."""

from dataclasses import replace

import pytest
import torch

from salf.engine.batches import Batch, Candidate, Split
from salf.engine.boundary_cache.states import FrozenLayers, cache_boundary
from salf.engine.models.adapter import CausalModel
from salf.engine.rules import CandidateRule, LabelTree, answer_outputs
from salf.engine.techniques import pace
from salf.engine.training.costs import cut
from salf.engine.training.forms import Trainable
from salf.families import family_of
from salf.methods import Method
from salf.settings import Pace
from tests.engine.models.tiny import tiny_network
from tests.engine.training.tiny_training import (
    DEPTH,
    RUNTIME,
    SHARED,
    assert_equal_weights,
    made_examples,
    params,
    run,
    scope_above,
    stepper_of,
)

EXAMPLES = made_examples()
WHOLE = list(range(len(EXAMPLES)))
SIGMA, STRENGTH = 0.7, 0.3


def made(word=None, boundary=2, *, zero=False, packed=True, **overrides):
    """A model with adapters that are not at their first value, 0, unless asked for."""
    model = CausalModel(tiny_network(**overrides), replace(family_of("llama"), packed=packed))
    words = ("lora", word) if word else ("lora",)
    ready = Trainable.of(model, Method("full", words), scope_above(boundary), params(), seed=1, steps=6)
    torch.manual_seed(5)
    for name, parameter in model.network.named_parameters():
        if "lora_B" in name and not zero:
            parameter.data.normal_(std=0.1)
    return ready


def settings(*, recompute=False, **changes):
    own = {"sigma": SIGMA, "strength": STRENGTH, "over": "vocabulary", **changes}
    return params(pace=Pace(**own), clip_norm=1e9, gradient_checkpointing=recompute)


def objective_of(ready, number=0, *, shared=SHARED, start=None, **changes):
    found = stepper_of(ready, EXAMPLES, settings(**changes), training=Split(EXAMPLES, shared, start)).objective
    found.begin([Batch.of(EXAMPLES, WHOLE, shared)], number)
    return found


def outputs_by_hand(ready, objective, example, which):
    """Logits at an example's answer, by transformers, its adapters' outputs scaled by the noise of its own."""
    noise = objective._drawn(Batch.of(EXAMPLES, [example], 0), which)
    hooks, width = [], 0
    for layer in ready.model.layers:
        for name, part in layer.named_modules():
            if name.endswith("lora_B.default"):
                columns = slice(width, width := width + part.out_features)
                factor = noise(columns, torch.ones(1, len(EXAMPLES[example].inputs), part.out_features))
                hooks.append(part.register_forward_hook(lambda _, __, out, factor=factor: out * factor))
    logits = ready.model.network(torch.tensor([EXAMPLES[example].inputs])).logits[0]
    for hook in hooks:
        hook.remove()
    return logits[len(EXAMPLES[example].prompt_ids) - 1 :]


def loss_by_hand(ready, objective, examples=WHOLE):
    total = torch.zeros(())
    for example in examples:
        first, second = (outputs_by_hand(ready, objective, example, which) for which in (1, 2))
        total += torch.nn.functional.cross_entropy(first, torch.tensor(EXAMPLES[example].answer_ids), reduction="sum")
        total += STRENGTH * (first - second).square().sum()
    return total


def gradients(ready):
    return {name: p.grad for name, p in ready.model.network.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("parts", [1, 5])
@pytest.mark.parametrize(("packed", "recompute"), [(True, False), (True, True), (False, False), (False, True)])
def test_loss_and_gradients_are_those_of_two_noisy_passes_by_hand(packed, recompute, parts):
    by_hand, ready = made("pace"), made("pace", packed=packed)
    expected = loss_by_hand(by_hand, objective_of(by_hand, 3, shared=0))
    expected.backward()
    objective = objective_of(ready, 3, shared=0, recompute=recompute)
    loss = torch.zeros(())
    for part in cut(WHOLE, parts):
        loss += objective(Batch.of(EXAMPLES, part, 0))
    loss.backward()
    torch.testing.assert_close(loss, expected)
    for name, gradient in gradients(by_hand).items():
        torch.testing.assert_close(gradients(ready)[name], gradient, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("boundary", [0, 2])
def test_without_noise_both_passes_are_one_and_training_is_plain_lora_bit_for_bit(boundary, dropout):
    plain, ours = (made(word, boundary, zero=True, attention_dropout=dropout) for word in (None, "pace"))
    common = settings(sigma=0.0)
    expected, found = (run(each, EXAMPLES, common) for each in (plain, ours))
    assert_equal_weights(plain, ours)
    for ours, theirs in zip(found.curve[1:], expected.curve[1:], strict=True):
        assert ours.train_loss == pytest.approx(theirs.train_loss, rel=1e-6)


def test_a_linear_maps_mean_distance_is_twice_its_variance():
    """E ‖f₁ − f₂‖² = 2 σ² ‖Δh‖², and the mean of f is f without noise."""
    ready = made("pace", boundary=3)  # of one layer, whose noise is not lowered
    objective, part = objective_of(ready), Batch.of(EXAMPLES, WHOLE, SHARED)
    adapter = ready.model.layers[3].mlp.down_proj
    torch.manual_seed(0)
    row = torch.randn(48).expand(1, len(part.answers), 48)
    plain, without = adapter(row)[0, 0], adapter.base_layer(row)[0, 0]
    apart, mean = [], []
    for number in range(600):
        objective.begin([part], number)
        both = []
        for which in (1, 2):
            token = pace._noise.set(objective._drawn(part, which))
            both.append(adapter(row)[0])
            pace._noise.reset(token)
        apart.append((both[0] - both[1]).square().sum(-1))
        mean.append(both[0])
    torch.testing.assert_close(adapter(row)[0, 0], plain, rtol=0, atol=0)
    expected = 2 * SIGMA**2 * (plain - without).square().sum()
    assert torch.cat(apart).mean().item() == pytest.approx(expected.item(), rel=0.03)
    torch.testing.assert_close(torch.cat(mean).mean(0), plain, rtol=0, atol=0.05 * (plain - without).abs().max().item())


def test_noise_falls_with_depth_is_an_examples_own_and_never_the_shared_prefixes():
    ready = made("pace", boundary=1)
    objective, part = objective_of(ready), Batch.of(EXAMPLES, [4, 7, 9], SHARED)
    widths = [torch.full((width,), SIGMA * share) for share in (1, 2 / 3, 1 / 3) for width in _widths(ready)]
    torch.testing.assert_close(objective.scales, torch.cat(widths))
    multiply, outputs = objective._drawn(part, 1), len(objective.scales)
    rows = multiply(slice(None), torch.ones(1, SHARED + len(part.ids), outputs))[0]
    assert torch.equal(rows[:SHARED], torch.ones(SHARED, outputs))
    own = rows[SHARED:].split(part.lengths)
    assert all(torch.equal(row, one[0]) for one in own for row in one)
    assert not any(torch.equal(own[i][0], own[j][0]) for i, j in ((0, 1), (0, 2), (1, 2)))
    at_answers = multiply(slice(None), torch.ones(1, len(part.answers), outputs))[0]
    assert torch.equal(at_answers, rows[SHARED + part.answers])
    alone = objective._drawn(Batch.of(EXAMPLES, [7], SHARED), 1)  # in a batch of its own
    answers = alone(slice(None), torch.ones(1, len(EXAMPLES[7].answer_ids), outputs))
    assert torch.equal(answers[0, 0], own[1][0])


def _widths(ready):
    parts = ready.model.layers[DEPTH - 1].named_modules()
    return [part.out_features for name, part in parts if name.endswith("lora_B.default")]


def test_adapters_of_zero_have_no_term():
    ready = made("pace", zero=True)
    part = Batch.of(EXAMPLES, WHOLE, SHARED)
    plain = stepper_of(made(zero=True), EXAMPLES, settings()).objective(part)
    assert torch.equal(objective_of(ready)(part), plain)


def test_frozen_layers_run_once_for_both_passes():
    ready = made("pace")
    seen = []
    ready.model.layers[0].register_forward_pre_hook(lambda *_: seen.append(0))
    start = FrozenLayers.of_model(ready.model, RUNTIME, 2, EXAMPLES[0].prompt_ids[:SHARED])
    objective = objective_of(ready, start=start)
    seen.clear()
    loss = objective(Batch.of(EXAMPLES, WHOLE, SHARED))
    assert len(seen) == 1
    cached = made("pace")
    states = cache_boundary(cached.model, RUNTIME, EXAMPLES, SHARED, 2, 64)
    torch.testing.assert_close(objective_of(cached, start=states)(Batch.of(EXAMPLES, WHOLE, SHARED)), loss)


def minimised(objective, parts, number):
    """Mean over the answer tokens of what a step minimises, and the examples that it reads."""
    read = objective.begin(parts, number)
    with torch.no_grad():
        total = sum(float(objective(part)) for part in read)
    return total / sum(len(part.targets) for part in read), sorted(i for part in read for i in part.index.tolist())


def test_lazy_steps_are_pace_on_half_of_the_batch_and_others_noisy_passes_over_all():
    lazy, full = (stepper_of(made(word), EXAMPLES, settings(every=3)).objective for word in ("pace-lazy", "pace"))
    plain = stepper_of(made("pace"), EXAMPLES, settings(strength=0.0)).objective
    parts = [Batch.of(EXAMPLES, part, SHARED) for part in cut(WHOLE[:7], 2)]
    halves = {}
    for number in range(4):
        loss, read = minimised(lazy, parts, number)
        other = plain if number % 3 else full
        assert loss == pytest.approx(minimised(other, [Batch.of(EXAMPLES, read, SHARED)], number)[0], rel=1e-5)
        assert len(read) == (7 if number % 3 else 4)
        halves[number] = read
    assert halves[0] != halves[3]


@pytest.mark.parametrize("parts", [1, 3])
def test_fast_holds_an_example_to_the_logits_of_its_last_pass(parts):
    ready = made("pace-fast")
    stepper, batches, logits = stepper_of(ready, EXAMPLES, settings()), [WHOLE[:5], WHOLE[5:8]], {}
    for number, at in enumerate((0, 1, 0)):  # the third step reads the first one's examples again
        whole = Batch.of(EXAMPLES, batches[at], SHARED)
        places = [[batches[at][i] for i in part] for part in cut(range(len(batches[at])), parts)]
        loss, _ = minimised(stepper.objective, [Batch.of(EXAMPLES, part, SHARED) for part in places], number)
        with torch.no_grad():
            logits[number] = ready.model.logits(stepper.objective.noisy(whole))
        stepper.take([Batch.of(EXAMPLES, part, SHARED) for part in places], 1e-12, number)
        apart = STRENGTH * (logits[2] - logits[0]).square().sum() / len(whole.targets) if number == 2 else 0.0
        assert loss == pytest.approx(float(torch.nn.functional.cross_entropy(logits[number], whole.targets) + apart))
    assert apart > 0.01


def test_the_curves_training_loss_is_the_noisy_passes_cross_entropy():
    """Of one step, without the distance between the passes."""
    ready, again = made("pace"), made("pace")
    done = run(ready, EXAMPLES, settings().model_copy(update={"epochs": 1, "batch_size": 12}))
    part = Batch.of(EXAMPLES, WHOLE, SHARED)
    with torch.no_grad():
        said = again.model.logits(objective_of(again).noisy(part))
    expected = torch.nn.functional.cross_entropy(said, part.targets).item()
    assert done.curve[-1].train_loss == pytest.approx(expected, rel=1e-4)


def test_the_curve_tells_norm_gap_and_shift():
    ready = made("pace", zero=True)
    base = {example: outputs_at(ready, example) for example in WHOLE}
    done = run(ready, EXAMPLES, settings().model_copy(update={"epochs": 1, "batch_size": 12}))
    first, last = done.curve
    assert (first.shift, first.gradient_norm, first.gap) == (0.0, None, None)
    total = sum(
        float((now.softmax(-1) * (now.log_softmax(-1) - base[example].log_softmax(-1))).sum())
        for example in WHOLE
        for now in [outputs_at(ready, example)]
    )
    assert last.shift == pytest.approx(total / sum(len(example.answer_ids) for example in EXAMPLES), rel=1e-3)
    assert last.shift > 0.01
    assert last.gap == last.validation_loss - last.train_loss
    again = made("pace", zero=True)
    objective_of(again)(Batch.of(EXAMPLES, WHOLE, SHARED)).div(sum(len(e.answer_ids) for e in EXAMPLES)).backward()
    norm = torch.stack([gradient.norm() for gradient in gradients(again).values()]).norm()
    assert last.gradient_norm == pytest.approx(float(norm), rel=1e-4)


@torch.no_grad()
def outputs_at(ready, example):
    logits = ready.model.network(torch.tensor([EXAMPLES[example].inputs])).logits[0]
    return logits[len(EXAMPLES[example].prompt_ids) - 1 :]


def test_validation_and_the_folded_model_have_no_noise():
    ready = made("pace", zero=True)
    done = run(ready, EXAMPLES, settings())
    ready.form.fold()
    losses = [
        float(torch.nn.functional.cross_entropy(outputs_at(ready, i), torch.tensor(EXAMPLES[i].answer_ids)))
        for i in WHOLE
    ]
    assert done.validation_losses == pytest.approx(losses, rel=1e-4)


@pytest.mark.parametrize(
    ("rule", "candidates", "outputs"),
    [
        (LabelTree.of({"a": [11, 12], "b": [11, 13], "c": [40]}), [], ([11, 12, 13, 40], 4)),
        (CandidateRule("sum"), [(5,), (4,)], ([4, 5], 2)),
        (CandidateRule("sum"), [(5,), (4, 6)], (slice(None), 100)),
        (None, [], (slice(None), 100)),
    ],
)
def test_outputs_are_those_of_the_answers_where_they_are_few(rule, candidates, outputs):
    example = replace(EXAMPLES[0], candidates=tuple(Candidate("", ids) for ids in candidates))
    assert answer_outputs(rule, [example], "answers", 100) == outputs
    assert answer_outputs(rule, [example], "vocabulary", 100) == (slice(None), 100)
