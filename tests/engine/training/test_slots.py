"""Slots: a registered word is asked by the training step, and a neutral one equals plain training, bit for bit."""

import pytest
import torch

from salf.engine.models.adapter import CausalModel
from salf.engine.training import step
from salf.engine.training.forms import Lora, Trainable, Weights
from salf.errors import UserError
from salf.families import family_of
from salf.methods import SLOTS, WORDS, Method, Word, checked, method_of
from tests.engine.models.tiny import tiny_network
from tests.engine.training.tiny_training import assert_equal_weights, made_examples, params, run, scope_above, weights

EXAMPLES = made_examples()
HERE = "tests.engine.training.test_slots"
asked: list[str] = []


class SameWeights(Weights):
    """Form: the network's own weights, under another name."""

    def __init__(self, *args):
        asked.append("form")
        super().__init__(*args)


class HalfOfTwice(step.CrossEntropy):
    """Objective: the loss doubled and halved, which is exact in floating point."""

    def __call__(self, part):
        asked.append("objective")
        return 2 * super().__call__(part) / 2


def one_part_at_a_time(_job):
    """Gradient: back-propagation, part by part."""
    asked.append("gradient")
    return lambda loss, parts: sum(step.backward(loss, [part]) for part in parts)


class TwiceLooked(torch.optim.AdamW):
    """Update: looks at loss and gradients once more before the step, as an extrapolating rule would."""

    def step(self, closure):
        asked.append("update")
        with torch.enable_grad():
            closure()
        self.zero_grad()
        return super().step(closure)


def twice_looked(job):
    return TwiceLooked(step.decayed(job), fused=True)


NEUTRAL = {
    "same": Word("same", "form", f"{HERE}:SameWeights"),
    "halves": Word("halves", "objective", f"{HERE}:HalfOfTwice"),
    "parts": Word("parts", "gradient", f"{HERE}:one_part_at_a_time"),
    "twice": Word("twice", "update", f"{HERE}:twice_looked"),
}


def made(method, boundary, settings=None, **overrides):
    model = CausalModel(tiny_network(tie_word_embeddings=True, **overrides), family_of("llama"))
    return Trainable.of(model, method, scope_above(boundary), settings or params(), seed=1, steps=6)


@pytest.mark.parametrize("words", [*((name,) for name in NEUTRAL), tuple(NEUTRAL)], ids="+".join)
@pytest.mark.parametrize("boundary", [0, 2])
def test_a_registered_word_is_asked_and_a_neutral_one_equals_plain_training(words, boundary, monkeypatch):
    for name, word in NEUTRAL.items():
        monkeypatch.setitem(WORDS, name, word)
    asked.clear()
    name = "+".join(("full", *words))
    assert checked(name, ["full"]) == name
    plain, ours = (made(method, boundary, attention_dropout=0.2) for method in (Method("full"), method_of(name)))
    settings = params(accumulate=2)
    expected, found = (run(each, EXAMPLES, settings) for each in (plain, ours))
    assert set(asked) == {WORDS[word].slot for word in words}
    assert found.curve[-1].validation_loss == expected.curve[-1].validation_loss
    assert_equal_weights(plain, ours)


def test_adapters_whose_products_are_zero_are_the_base_and_training_folds_them_into_layers_alone():
    lora = made(Method("full", ("lora",)), 2)
    assert isinstance(lora.form, Lora)
    assert lora.units == ["layer-03", "layer-04"]
    base = weights(made(Method("full"), 2))
    run(lora, EXAMPLES, params())
    changed = lora.form.fold()
    after = weights(lora)
    assert after.keys() == base.keys()
    assert {name for name in base if not torch.equal(after[name], base[name])} == changed
    assert all(name.startswith(("model.layers.2.", "model.layers.3.")) for name in changed)


def test_adapters_whose_rank_no_matrix_has_are_refused():
    made(Method("full", ("lora",)), 2, params(lora_rank=32))
    with pytest.raises(UserError, match="a LoRA rank of 33 is above 32, the highest that a matrix has"):
        made(Method("full", ("lora",)), 2, params(lora_rank=33))


@pytest.mark.parametrize("word", WORDS.values(), ids=lambda word: word.name)
def test_every_word_has_a_slot_and_an_implementation_that_needs_no_more_than_its_entry(word):
    assert word.slot in SLOTS
    assert callable(word.implementation())
    assert word.slot != "form" or {"fold", "save"} <= set(dir(word.implementation()))
