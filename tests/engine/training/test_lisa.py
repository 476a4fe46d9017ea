"""Training with layers drawn anew, against a plain loop with an optimizer of its own for every draw."""

from collections import Counter

import numpy as np
import pytest
import torch
from scipy.stats import binom

from salf.engine.batches import Batch, training_batches
from salf.engine.training.scope import LayerDraws, Scope
from tests.engine.training.tiny_training import (
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
MANY = LayerDraws(depth=12, layers=3, steps=5, seed=7)
# Six steps in intervals of two; layer 3, then layer 2 twice: a layer that is drawn again begins again, two never train.
DRAWS = LayerDraws(depth=4, layers=1, steps=2, seed=4)


def adamw(parameters):
    parameters = list(parameters)
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": 0.1},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=0.01)


def plain_loop(made, draws, settings):
    """Hugging Face's forward; embedding, head and norm keep their AdamW, drawn layers get a new one each time."""
    model = made.model
    others = {model.embedding.weight, model.head.weight, *model.norm.parameters()}
    always, rng, step = adamw(others), np.random.default_rng(1), 0
    for _ in range(settings.epochs):
        for index in training_batches([len(e.inputs) - SHARED for e in EXAMPLES], settings.batch_size, rng):
            if step % draws.steps == 0:
                chosen = [p for layer in draws.at(step) for p in model.layers[layer - 1].parameters()]
                drawn = adamw(chosen)
            losses = []
            for example in (EXAMPLES[i] for i in index):
                logits = model.network(torch.tensor([list(example.inputs)])).logits[0]
                answered = logits[len(example.prompt_ids) - 1 :]
                losses.append(
                    torch.nn.functional.cross_entropy(answered, torch.tensor(example.answer_ids), reduction="none")
                )
            torch.cat(losses).mean().backward()
            torch.nn.utils.clip_grad_norm_([*others, *chosen], 1.0)
            always.step()
            drawn.step()
            model.network.zero_grad()
            step += 1


@pytest.mark.parametrize("tied", [True, False])
def test_training_is_that_of_a_plain_loop_with_a_new_optimizer_for_every_draw(tied):
    settings = params(schedule="constant", warmup_share=0.0)
    ours, plain = (trainable(0, tied=tied, draws=DRAWS) for _ in range(2))
    run(ours, EXAMPLES, settings)
    plain_loop(plain, DRAWS, settings)
    for name, weight in weights(ours).items():
        torch.testing.assert_close(weight, weights(plain)[name], rtol=2e-3, atol=5e-4)


def test_layers_that_no_step_draws_keep_their_bits_and_all_else_changes():
    made = trainable(0, draws=DRAWS)
    before = weights(made)
    run(made, EXAMPLES, params())
    never = {1, 2, 3, 4} - set(scope_above(0, draws=DRAWS).layers_within(6))
    assert never
    kept = {f"model.layers.{layer - 1}." for layer in never}
    for name, weight in weights(made).items():
        assert torch.equal(weight, before[name]) == name.startswith(tuple(kept)), name


def test_the_optimizer_holds_state_for_what_trains_now_and_begins_each_interval_without_any_for_layers():
    made = trainable(0, draws=DRAWS)
    stepper = stepper_of(made, EXAMPLES, params())
    batch = Batch.of(EXAMPLES, range(4), SHARED)
    for step in range(6):
        stepper.take([batch], 0.01, step)
        drawn = {id(p) for layer in DRAWS.at(step) for p in made.model.layers[layer - 1].parameters()}
        others = {id(made.model.embedding.weight), *map(id, made.model.norm.parameters())}
        taken = {id(p): int(state["step"]) for p, state in stepper.optimizer.state.items()}
        assert taken == {**dict.fromkeys(drawn, step % 2 + 1), **dict.fromkeys(others, step + 1)}
        assert {id(p) for p in made.parameters if p.requires_grad} == drawn | others
        assert [layer.training for layer in made.model.layers] == [n in DRAWS.at(step) for n in (1, 2, 3, 4)]


def test_an_interval_has_one_draw_of_distinct_layers():
    for first in range(0, 100, 5):
        (drawn,) = {MANY.at(step) for step in range(first, first + 5)}
        assert len(set(drawn)) == 3
        assert sorted(drawn) == list(drawn)
        assert {1 <= layer <= 12 for layer in drawn} == {True}
    assert [MANY.interval(step) for step in (0, 4, 5, 14)] == [0, 0, 1, 2]


def test_every_layer_is_as_likely_as_any_other():
    intervals = 2000
    times = Counter(layer for n in range(intervals) for layer in MANY.at(5 * n))
    low, high = binom.ppf([0.001, 0.999], intervals, 3 / 12)
    assert set(times) == set(range(1, 13))
    assert all(low <= count <= high for count in times.values())


def test_a_draw_follows_from_seed_and_interval_alone():
    same, other = LayerDraws(12, 3, 5, seed=7), LayerDraws(12, 3, 5, seed=8)
    assert [same.at(step) for step in (50, 0, 25)] == [MANY.at(step) for step in (50, 0, 25)]
    assert [other.at(5 * n) for n in range(10)] != [MANY.at(5 * n) for n in range(10)]


@pytest.mark.parametrize("steps", [0, 1, 5, 6, 23])
def test_the_layers_of_a_run_are_all_that_its_steps_train(steps):
    scope = Scope(12, 0, tuple(range(1, 13)), draws=MANY)
    assert scope.layers_within(steps) == tuple(sorted({layer for step in range(steps) for layer in MANY.at(step)}))
