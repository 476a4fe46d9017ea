"""Suffix training: cached and uncached agree, and both with Hugging Face's own forward and AdamW."""

import math

import numpy as np
import pytest
import torch

from stages.common.answers import Embeddings, Reader, training_logits
from stages.common.batches import Batch, Example, training_batches
from stages.common.boundary_cache.compute import cache_boundary
from stages.common.command import UserError
from stages.common.cost import ModelShape
from stages.common.models.adapter import CausalModel
from stages.common.models.families import family_of
from stages.common.models.walk import embed
from stages.common.params import Device, Finetune, load_params
from stages.common.runtime import choose_runtime
from stages.finetune.costs import Costs
from stages.finetune.loop import rate_factor, train
from stages.finetune.methods import Trainable
from stages.finetune.step import Stepper
from stages.finetune.validation import Split
from tests.common.models.tiny import tiny_network
from tests.conftest import PROJECT

SHARED = 3
RUNTIME = choose_runtime(Device(kind="cpu", dtype="float32"))


def params(**changes) -> Finetune:
    defaults = {"epochs": 2, "batch_size": 4, "evaluations_per_epoch": 1, "clip_norm": 1.0, "weight_decay": 0.1}
    return load_params(PROJECT / "params.yaml").finetune.model_copy(update={**defaults, **changes})


@pytest.fixture
def examples():
    rng = np.random.default_rng(0)
    made = []
    for n in range(12):
        prompt = (5, 6, 7, *rng.integers(10, 90, size=3 + n % 4))
        made.append(Example(str(n), None, "", "", prompt, tuple(rng.integers(3, 90, size=1 + n % 2))))
    return made


def trainable(boundary) -> Trainable:
    model = CausalModel(tiny_network(tie_word_embeddings=True), family_of("llama"))
    model.network.requires_grad_(False)
    parameters = [*model.layers[boundary:].parameters(), *model.norm.parameters()]
    if boundary == 0:
        parameters.append(model.embedding.weight)
    for parameter in parameters:
        parameter.requires_grad_(True)
    return Trainable(model, parameters, boundary, None)


def start_of(made, examples):
    return Embeddings.behind(made.model, examples[0].prompt_ids[:SHARED])


def run(made, examples, start, settings, rate=0.01, checkpoint=None):
    shape = ModelShape.from_config(made.model.network.config.to_dict())
    split = Split(examples, start)
    reader = Reader(made.model, RUNTIME, None, batch_tokens=64)
    costs = Costs(shape, made.boundary, "weights", 8)
    return train(made, RUNTIME, split, split, reader, costs, settings, rate, 1, "test", checkpoint)


def weights(made):
    return {name: parameter.detach().clone() for name, parameter in made.model.network.named_parameters()}


@pytest.mark.parametrize("boundary", [1, 2, 4])
def test_cached_and_uncached_training_are_the_same(examples, boundary):
    cached = trainable(boundary)
    start = cache_boundary(cached.model, RUNTIME, examples, SHARED, boundary, 64)
    ours = run(cached, examples, start, params())
    uncached = trainable(boundary)
    beginning = examples[0].prompt_ids[:SHARED]
    theirs = run(uncached, examples, Embeddings.behind(uncached.model, beginning), params())
    for mine, other in zip(ours.curve, theirs.curve, strict=True):
        assert mine["validation_loss"] == pytest.approx(other["validation_loss"], rel=1e-4)
    for name, weight in weights(cached).items():
        torch.testing.assert_close(weight, weights(uncached)[name], rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("boundary", [0, 2])
def test_training_is_that_of_a_plain_loop_over_the_whole_model(examples, boundary):
    """Hugging Face's forward with its own labels and masks, torch's AdamW and clipping, same batches."""
    settings = params(schedule="constant", warmup_share=0.0)
    ours = trainable(boundary)
    run(ours, examples, Embeddings.behind(ours.model, examples[0].prompt_ids[:SHARED]), settings)

    plain = trainable(boundary)
    decayed = [p for p in plain.parameters if p.ndim >= 2]
    rest = [p for p in plain.parameters if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}], lr=0.01
    )
    rng = np.random.default_rng(1)
    for _ in range(settings.epochs):
        for index in training_batches([len(e.inputs) - SHARED for e in examples], settings.batch_size, rng):
            losses = []
            for example in (examples[i] for i in index):
                logits = plain.model.network(torch.tensor([list(example.inputs)])).logits[0]
                answered = logits[len(example.prompt_ids) - 1 :]
                losses.append(
                    torch.nn.functional.cross_entropy(answered, torch.tensor(example.answer_ids), reduction="none")
                )
            torch.cat(losses).mean().backward()
            torch.nn.utils.clip_grad_norm_(plain.parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad()
    for name, weight in weights(ours).items():
        torch.testing.assert_close(weight, weights(plain)[name], rtol=2e-3, atol=5e-4)


def test_frozen_parameters_are_not_touched_and_get_no_gradient(examples):
    made = trainable(2)
    before = weights(made)
    run(made, examples, Embeddings.behind(made.model, examples[0].prompt_ids[:SHARED]), params())
    chosen = {id(parameter) for parameter in made.parameters}
    for name, parameter in made.model.network.named_parameters():
        if id(parameter) in chosen:
            assert not torch.equal(parameter, before[name])
        else:
            assert parameter.grad is None
            assert torch.equal(parameter, before[name])


def test_frozen_layers_build_no_graph(examples):
    """The states that the suffix starts from need no gradient, so back-propagation ends at the boundary."""
    made = trainable(2)
    batch = Batch.of(examples, [0, 1], SHARED)
    start = Embeddings.behind(made.model, examples[0].prompt_ids[:SHARED])
    assert not start.states(batch, joined=True).requires_grad
    assert not embed(made.model, batch.ids).requires_grad
    assert training_logits(made.model, start, batch).requires_grad


def test_a_loss_that_is_no_number_stops_with_advice(examples):
    made = trainable(2)
    with torch.no_grad():
        made.model.norm.weight.fill_(math.nan)
    start = Embeddings.behind(made.model, examples[0].prompt_ids[:SHARED])
    with pytest.raises(UserError, match=r"loss became nan at step 1 of 6 .* lower finetune\.learning_rate"):
        run(made, examples, start, params())


def test_the_rate_warms_up_and_then_falls_or_stays():
    cosine, constant = params(warmup_share=0.25), params(warmup_share=0.25, schedule="constant")
    factors = [rate_factor(step, 40, cosine) for step in range(41)]
    assert factors[:10] == sorted(factors[:10])
    assert factors[10] == 1.0
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert factors[40] == pytest.approx(0.0, abs=1e-12)
    assert {rate_factor(step, 40, constant) for step in range(10, 41)} == {1.0}


class KilledError(Exception):
    pass


@pytest.mark.parametrize("stop", [1, 2, 5])
@pytest.mark.parametrize("boundary", [0, 2])
def test_training_that_was_stopped_goes_on_to_the_very_same_weights(examples, boundary, stop, tmp_path, monkeypatch):
    settings = params(checkpoint_minutes=0)
    whole = trainable(boundary)
    expected = run(whole, examples, start_of(whole, examples), settings)

    kept = tmp_path / "checkpoint.safetensors"
    steps = []
    step = Stepper.take

    def fatal(*args):
        if len(steps) == stop:
            raise KilledError
        steps.append(args)
        return step(*args)

    monkeypatch.setattr(Stepper, "take", fatal)
    stopped = trainable(boundary)
    with pytest.raises(KilledError):
        run(stopped, examples, start_of(stopped, examples), settings, checkpoint=kept)
    monkeypatch.setattr(Stepper, "take", lambda *args: steps.append(args) or step(*args))
    resumed = trainable(boundary)
    done = run(resumed, examples, start_of(resumed, examples), settings, checkpoint=kept)

    assert len(steps) == expected.steps  # none was taken twice
    assert done.curve == expected.curve
    for name, weight in weights(whole).items():
        assert torch.equal(weights(resumed)[name], weight), name


def test_a_damaged_checkpoint_costs_time_and_nothing_else(examples, tmp_path):
    kept = tmp_path / "checkpoint.safetensors"
    kept.write_bytes(b"half a file")
    whole, again = trainable(2), trainable(2)
    run(whole, examples, start_of(whole, examples), params())
    run(again, examples, start_of(again, examples), params(), checkpoint=kept)
    for name, weight in weights(whole).items():
        assert torch.equal(weights(again)[name], weight)
