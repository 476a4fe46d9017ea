"""Training with layers drawn anew, against a plain loop with an optimizer of its own for every draw."""

import numpy as np
import pytest
import torch

from salf.engine.batches import Batch, training_batches
from salf.engine.training.draws import LayerDraws
from salf.engine.training.step import Stepper
from tests.engine.training.test_suffix import KilledError
from tests.engine.training.tiny_training import (
    RUNTIME,
    SHARED,
    assert_equal_weights,
    made_examples,
    params,
    run,
    start_of,
    trainable,
    weights,
)

EXAMPLES = made_examples()
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
    run(ours, EXAMPLES, start_of(ours, EXAMPLES), settings)
    plain_loop(plain, DRAWS, settings)
    for name, weight in weights(ours).items():
        torch.testing.assert_close(weight, weights(plain)[name], rtol=2e-3, atol=5e-4)


def test_layers_that_no_step_draws_keep_their_bits_and_all_else_changes():
    made = trainable(0, draws=DRAWS)
    before = weights(made)
    run(made, EXAMPLES, start_of(made, EXAMPLES), params())
    never = {1, 2, 3, 4} - set(DRAWS.within(6))
    assert never
    kept = {f"model.layers.{layer - 1}." for layer in never}
    for name, weight in weights(made).items():
        assert torch.equal(weight, before[name]) == name.startswith(tuple(kept)), name


def test_the_optimizer_holds_state_for_what_trains_now_and_begins_each_interval_without_any_for_layers():
    made = trainable(0, draws=DRAWS)
    stepper = Stepper(made, RUNTIME, start_of(made, EXAMPLES), params(), seed=1)
    batch = Batch.of(EXAMPLES, range(4), SHARED)
    for step in range(6):
        stepper.take([batch], 0.01, step)
        drawn = {id(p) for layer in DRAWS.at(step) for p in made.model.layers[layer - 1].parameters()}
        others = {id(made.model.embedding.weight), *map(id, made.model.norm.parameters())}
        taken = {id(p): int(state["step"]) for p, state in stepper.optimizer.state.items()}
        assert taken == {**dict.fromkeys(drawn, step % 2 + 1), **dict.fromkeys(others, step + 1)}
        assert {id(p) for p in made.parameters if p.requires_grad} == drawn | others
        assert [layer.training for layer in made.model.layers] == [n in DRAWS.at(step) for n in (1, 2, 3, 4)]


@pytest.mark.parametrize("stop", [1, 2, 3, 5])
def test_training_that_was_stopped_goes_on_to_the_very_same_weights(stop, tmp_path, monkeypatch):
    settings = params(checkpoint_minutes=0)
    whole, stopped, resumed = (trainable(0, draws=DRAWS, attention_dropout=0.2) for _ in range(3))
    expected = run(whole, EXAMPLES, start_of(whole, EXAMPLES), settings)
    kept, take = tmp_path / "checkpoint.safetensors", Stepper.take

    def fatal(self, parts, rate, number):
        if number == stop:
            raise KilledError
        return take(self, parts, rate, number)

    monkeypatch.setattr(Stepper, "take", fatal)
    with pytest.raises(KilledError):
        run(stopped, EXAMPLES, start_of(stopped, EXAMPLES), settings, checkpoint=kept)
    monkeypatch.setattr(Stepper, "take", take)
    done = run(resumed, EXAMPLES, start_of(resumed, EXAMPLES), settings, checkpoint=kept)
    assert done.curve == expected.curve
    assert_equal_weights(whole, resumed)
