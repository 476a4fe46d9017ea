"""Training on the answer side: a plain loop over transformers' own cache takes the same steps."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from salf.engine.batches import Split, training_batches
from salf.engine.boundary_cache.prompts import PromptLayers, answer_side, cache_prompts
from salf.engine.boundary_cache.states import cache_boundary
from salf.engine.models.adapter import CausalModel
from salf.engine.training.forms import Trainable
from salf.engine.training.loop import train
from salf.engine.training.scope import scope_of
from salf.families import family_of
from salf.methods import method_of
from salf.plan import FreezePlan
from tests.engine.models.tiny import tiny_network
from tests.engine.training.tiny_training import (
    RUNTIME,
    SHARED,
    KilledError,
    assert_equal_weights,
    job_of,
    killed_at,
    made_examples,
    params,
    weights,
)
from tests.plan_data import artifact

EXAMPLES = made_examples()
ROWS = [len(example.prompt_ids) - 1 - n % 2 for n, example in enumerate(EXAMPLES)]


def job(method, settings=None, *, cached=True, tied=True, **changes):
    """A training of a tiny model from the base's cached prompts, or with a base that reads them for every batch."""
    base, model = (CausalModel(tiny_network(tie_word_embeddings=tied), family_of("llama")) for _ in range(2))
    settings, how = settings or params(), method_of(method)
    scope = scope_of(how, FreezePlan.model_validate(artifact(2, tied=tied)), settings, 1, None)
    split = Split(EXAMPLES, SHARED, base_rows=ROWS)
    states = cache_boundary(base, RUNTIME, EXAMPLES, SHARED, scope.boundary, 64) if scope.boundary else None
    source = (
        cache_prompts(base, RUNTIME, split, 64, states)
        if cached
        else PromptLayers.of_model(base, RUNTIME, 4, split.prefix)
    )
    made = Trainable.of(model, how, scope, settings, seed=1, steps=6)
    start = answer_side(model, RUNTIME, split, source, states if cached else None, scope.boundary)
    split = replace(split, start=start)
    return job_of(made, EXAMPLES, settings, training=split, validation=split, **changes)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("boundary", [0, 2])
def test_training_is_that_of_a_plain_loop_over_transformers_own_cache(boundary, tied):
    """Embeddings and a tied head stay the base's; layers above the boundary, final norm and an own head train."""
    settings = params(schedule="constant", warmup_share=0.0)
    ours = job(f"freeze-{boundary}+answer", settings, tied=tied)
    train(ours)

    base, tuned = (tiny_network(tie_word_embeddings=tied) for _ in range(2))
    tuned.requires_grad_(False)
    trained = [*tuned.model.layers[boundary:].parameters(), *tuned.model.norm.parameters()]
    trained += [] if tied else [tuned.lm_head.weight]
    for parameter in trained:
        parameter.requires_grad_(True)
    matrices, rest = ([p for p in trained if (p.ndim >= 2) == wide] for wide in (True, False))
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}], lr=0.01
    )
    rng = np.random.default_rng(1)
    for _ in range(settings.epochs):
        for index in training_batches([len(e.inputs) - SHARED for e in EXAMPLES], settings.batch_size, rng):
            losses = []
            for i in index:
                ids, answer = torch.tensor([EXAMPLES[i].inputs]), torch.tensor(EXAMPLES[i].answer_ids)
                with torch.no_grad():
                    past = base(ids[:, : ROWS[i]], use_cache=True).past_key_values
                logits = tuned(ids[:, ROWS[i] :], past_key_values=past).logits[0, -len(answer) :]
                losses.append(torch.nn.functional.cross_entropy(logits, answer, reduction="none"))
            torch.cat(losses).mean().backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad()
    theirs = dict(tuned.named_parameters())
    assert sum(p.numel() for p in ours.trainable.parameters) == sum(p.numel() for p in trained)
    for name, weight in weights(ours.trainable).items():
        torch.testing.assert_close(weight, theirs[name].detach(), rtol=2e-3, atol=5e-4)


@pytest.mark.parametrize("method", ["full+answer", "freeze-2+answer", "full+answer+lora", "freeze-2+answer+lora"])
def test_prompts_read_for_every_batch_and_batches_in_parts_take_the_same_steps(method):
    cached = job(method)
    curves = [train(cached).curve]
    for changes in (
        {"cached": False},
        {"settings": params(accumulate=2)},
        {"settings": params(gradient_checkpointing=True)},
    ):
        other = job(method, **changes)
        curves.append(train(other).curve)
        for name, weight in weights(cached.trainable).items():
            torch.testing.assert_close(weights(other.trainable)[name], weight, rtol=1e-3, atol=2e-4)
    for curve in curves[1:]:
        losses = [[point.validation_loss for point in one] for one in (curves[0], curve)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize("method", ["full+answer", "freeze-2+answer+lora"])
def test_a_killed_training_resumes_to_the_same_bits(method, tmp_path, monkeypatch):
    settings = params(checkpoint_minutes=0.0)
    whole = job(method, settings)
    train(whole)
    with monkeypatch.context() as patch:
        killed_at(patch, 4)
        with pytest.raises(KilledError):
            train(job(method, settings, checkpoint=tmp_path / "kept.safetensors"))
    resumed = job(method, settings, checkpoint=tmp_path / "kept.safetensors")
    train(resumed)
    assert_equal_weights(resumed.trainable, whole.trainable)
