"""Suffix training: cached and uncached agree, and both with Hugging Face's own forward and AdamW."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from salf.engine.answers import Embeddings, training_logits
from salf.engine.batches import Batch, training_batches
from salf.engine.boundary_cache.states import cache_boundary
from salf.engine.training.loop import rate_factor
from salf.engine.training.scope import LayerDraws
from salf.errors import UserError
from tests.engine.training.tiny_training import (
    RUNTIME,
    SHARED,
    KilledError,
    assert_equal_weights,
    killed_at,
    made_examples,
    params,
    run,
    trainable,
    weights,
)


@pytest.fixture
def examples():
    return made_examples()


@pytest.mark.parametrize("boundary", [1, 2, 4])
def test_cached_and_uncached_training_are_the_same(examples, boundary):
    cached = trainable(boundary)
    start = cache_boundary(cached.model, RUNTIME, examples, SHARED, boundary, 64)
    ours = run(cached, examples, params(), start)
    uncached = trainable(boundary)
    theirs = run(uncached, examples, params())
    for mine, other in zip(ours.curve, theirs.curve, strict=True):
        assert mine.validation_loss == pytest.approx(other.validation_loss, rel=1e-4)
    for name, weight in weights(cached).items():
        torch.testing.assert_close(weight, weights(uncached)[name], rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("boundary", [0, 2])
def test_training_is_that_of_a_plain_loop_over_the_whole_model(examples, boundary):
    """Hugging Face's forward with its own labels and masks, torch's AdamW and clipping, same batches."""
    settings = params(schedule="constant", warmup_share=0.0)
    ours = trainable(boundary)
    run(ours, examples, settings)

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
    run(made, examples, params())
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
    start = Embeddings.after(made.model, examples[0].prompt_ids[:SHARED])
    assert not start.states(batch, joined=True).requires_grad
    assert not made.model.embed(batch.ids, batch.positions).requires_grad
    assert training_logits(made.model, start, batch).requires_grad


def test_a_loss_that_is_no_number_stops_with_advice(examples):
    made = trainable(2)
    with torch.no_grad():
        made.model.norm.weight.fill_(math.nan)
    with pytest.raises(UserError, match=r"loss became nan at step 1 of 6 .* lower finetune\.learning_rate"):
        run(made, examples, params())


def test_a_last_update_that_breaks_the_weights_is_seen_by_the_validation_loss(examples):
    made = trainable(2)
    once = params(batch_size=len(examples), epochs=1, warmup_share=0.0, schedule="constant")
    with pytest.raises(UserError, match=r"the validation loss became nan at step 1 of 1 with learning rate 1e\+38"):
        run(made, examples, once, rate=1e38)


def test_the_rate_warms_up_and_then_falls_or_stays():
    cosine, constant = params(warmup_share=0.25), params(warmup_share=0.25, schedule="constant")
    factors = [rate_factor(step, 40, cosine, 10) for step in range(41)]
    assert factors[:10] == sorted(factors[:10])
    assert factors[10] == 1.0
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert factors[40] == pytest.approx(0.0, abs=1e-12)
    assert {rate_factor(step, 40, constant, 10) for step in range(10, 41)} == {1.0}


@pytest.mark.parametrize(("per_epoch", "stays"), [(10, 30), (20, 20), (40, 10)])  # of one epoch, from the warm-up on
def test_warmup_stable_decay_falls_in_the_last_epoch_alone(per_epoch, stays):
    settings = params(warmup_share=0.25, schedule="warmup-stable-decay")
    factors = [rate_factor(step, 40, settings, per_epoch) for step in range(41)]
    assert factors[:10] == [rate_factor(step, 40, params(warmup_share=0.25), per_epoch) for step in range(10)]
    assert factors[10 : stays + 1] == [1.0] * (stays - 9)
    assert factors[stays:] == pytest.approx([(40 - step) / (40 - stays) for step in range(stays, 41)])


def test_a_training_that_stops_for_now_goes_on_to_the_same_weights(examples, tmp_path):
    whole, parts = (trainable(2) for _ in range(2))
    settings = params(epochs=2, evaluations_per_epoch=0)
    expected = run(whole, examples, settings)
    half = run(parts, examples, settings, checkpoint=tmp_path / "kept", until=3)
    assert [point.step for point in half.curve] == [3]
    again = trainable(2)
    done = run(again, examples, settings, checkpoint=tmp_path / "kept", until=6)
    assert_equal_weights(again, whole)
    since = {name: getattr(done.curve[1], name) for name in ("train_loss", "gap", "gradient_norm")}
    assert done.curve[1:] == [expected.curve[0].model_copy(update=since)]
    assert (done.flops, done.flops_validation) == (expected.flops, 2 * expected.flops_validation)


def test_more_epochs_stretch_the_schedule_and_the_validations(examples):
    """Two epochs with three validations each, stretched over six: six epochs with one each."""
    stretched, plain = trainable(2), trainable(2)
    few = params(epochs=2, evaluations_per_epoch=3)
    ours = run(stretched, examples, few, epochs=6)
    theirs = run(plain, examples, params(epochs=6, evaluations_per_epoch=1))
    assert (ours.steps, ours.curve) == (theirs.steps, theirs.curve)
    assert [point.epoch for point in ours.curve] == list(range(7))
    assert_equal_weights(stretched, plain)


@pytest.mark.parametrize(
    ("boundary", "stop", "draws", "changes"),
    [
        (0, 1, None, {}),
        (0, 5, None, {}),
        (2, 1, None, {}),
        (2, 2, None, {"accumulate": 2}),
        (2, 5, None, {"accumulate": 3, "gradient_checkpointing": True}),
        *((0, stop, LayerDraws(depth=4, layers=1, steps=2, seed=4), {}) for stop in (1, 2, 3, 5)),
    ],
)
def test_training_that_was_stopped_goes_on_to_the_very_same_weights(
    examples, boundary, stop, draws, changes, tmp_path, monkeypatch
):
    settings, kept = params(checkpoint_minutes=0, **changes), tmp_path / "checkpoint.safetensors"
    whole, stopped, resumed = (trainable(boundary, draws=draws, attention_dropout=0.2) for _ in range(3))
    expected = run(whole, examples, settings)
    killed_at(monkeypatch, stop)
    with pytest.raises(KilledError):
        run(stopped, examples, settings, checkpoint=kept)
    monkeypatch.undo()
    killed_at(monkeypatch, stop - 1)  # no step is taken twice
    torch.manual_seed(99)  # another process would not stand where this one stands
    done = run(resumed, examples, settings, checkpoint=kept)
    assert done.curve == expected.curve
    assert len(done.step_seconds) == len(expected.step_seconds) == expected.steps
    assert done.validation_losses == expected.validation_losses
    assert_equal_weights(whole, resumed)


def test_dropout_is_for_training_steps_and_not_for_validation(examples):
    plain, dropping = trainable(2), trainable(2, attention_dropout=0.5)
    without, with_dropout = (run(made, examples, params()) for made in (plain, dropping))
    assert with_dropout.curve[0] == without.curve[0]  # before the first step
    assert with_dropout.curve[-1].train_loss != without.curve[-1].train_loss
    assert [layer.training for layer in dropping.model.layers] == [False, False, True, True]  # as before


@pytest.fixture
def stopped(examples, tmp_path, monkeypatch):
    """The checkpoints of a training that was killed after each of its first three steps, the newest last."""
    made = trainable(2)
    killed_at(monkeypatch, 3)
    monkeypatch.setattr(Path, "unlink", lambda *_, **__: None)  # as if killed before the older file goes
    with pytest.raises(KilledError):
        run(made, examples, params(checkpoint_minutes=0), checkpoint=tmp_path / "a.safetensors")
    monkeypatch.undo()
    return sorted(tmp_path.glob("a-*.safetensors"), key=lambda file: file.stat().st_mtime_ns)


@pytest.mark.parametrize(("damaged", "step"), [(0, 3), (1, 2), (3, None)])
def test_a_damaged_checkpoint_is_told_and_training_goes_on_from_the_last_whole_one(
    examples, stopped, damaged, step, capsys
):
    assert len(stopped) == 3
    for file in stopped[3 - damaged :]:
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1  # inside a tensor
        file.write_bytes(bytes(data))
    whole, again = trainable(2), trainable(2)
    run(whole, examples, params())
    capsys.readouterr()
    kept = stopped[0].with_name("a.safetensors")
    run(again, examples, params(checkpoint_minutes=0), checkpoint=kept)
    told = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[0] for line in told if "damaged" in line] == [
        str(file) for file in stopped[: -damaged - 1 : -1]
    ]
    assert [line for line in told if "resumes" in line] == ([f"test: resumes at step {step} of 6"] if step else [])
    assert_equal_weights(whole, again)
    assert len(list(kept.parent.glob("a-*"))) == 1
