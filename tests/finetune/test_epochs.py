"""Epochs at equal compute, against sums by hand and against what training counts."""

import math

import pytest

from salf.cost import ModelShape, forward_flops, training_flops
from salf.engine.training.costs import Costs
from salf.engine.training.draws import LayerDraws
from stages.finetune.epochs import epochs_for_as_much
from stages.finetune.scope import Scope
from tests.engine.models.tiny import tiny_network
from tests.engine.training.tiny_training import SHARED, made_examples, params, run, start_of, trainable

EXAMPLES = made_examples()
SHAPE = ModelShape.from_config(tiny_network(tie_word_embeddings=True).config.to_dict())
FULL = Costs(SHAPE, 0, "weights", 8)


def above(boundary, **options):
    return Scope(4, boundary, tuple(range(boundary + 1, 5)), **options)


def epochs_of(costs, scope, settings):
    return epochs_for_as_much(FULL, costs, scope, EXAMPLES, SHARED, settings, seed=1, processes=1)


def one_epoch(boundary, batches):
    """Of the whole split, the shared beginning once per batch; and the frozen layers' pass over it, once."""
    own = [len(example.inputs) - SHARED for example in EXAMPLES]
    answers = [len(example.answer_ids) for example in EXAMPLES]
    beginning = SHARED * (SHARED + 1) // 2
    attended = sum(SHARED * n + n * (n + 1) // 2 for n in own)
    seen = sum(sum(range(SHARED + n - m + 1, SHARED + n + 1)) for n, m in zip(own, answers, strict=True))
    queries = sum(own)
    epoch = training_flops(
        SHAPE, boundary, queries + batches * SHARED, attended + batches * beginning, sum(answers), seen
    )
    return epoch, forward_flops(SHAPE, boundary, queries + SHARED, attended + beginning)


@pytest.mark.parametrize("boundary", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("epochs", [1, 2, 5])
def test_the_most_epochs_that_full_fine_tuning_pays_for(boundary, epochs):
    settings = params(epochs=epochs, batch_size=4)
    batches = math.ceil(len(EXAMPLES) / 4)
    allowed = epochs * one_epoch(0, batches)[0]
    epoch, frozen = one_epoch(boundary, batches)
    found = epochs_of(Costs(SHAPE, boundary, "weights", 8), above(boundary), settings)
    assert found == (allowed - frozen * (boundary > 0)) // epoch
    assert found > epochs or boundary <= 2


def test_frozen_layers_that_run_for_every_batch_leave_less_for_epochs():
    settings = params(epochs=4)
    once, anew = (Costs(SHAPE, 3, "weights", 8, frozen_anew=anew) for anew in (False, True))
    assert epochs_of(once, above(3), settings) > epochs_of(anew, above(3), settings) > 4


def test_a_method_that_saves_nothing_trains_as_long_as_full():
    assert epochs_of(Costs(SHAPE, 0, "lora", 256), above(0, lora=True), params(epochs=2)) == 2


@pytest.mark.parametrize("boundary", [0, 3])
def test_training_so_long_costs_no_more_than_full_and_an_epoch_more_would(boundary):
    """As the training loop counts it; at boundary 0 with layers drawn anew."""
    draws = LayerDraws(4, 1, 2, seed=4) if boundary == 0 else None
    scope, settings = above(boundary, draws=draws), params(epochs=5 if draws else 2)
    costs = Costs(SHAPE, boundary, "weights", 8)
    epochs = epochs_of(costs, scope, settings)
    full, ours, longer = (
        run(made, EXAMPLES, start_of(made, EXAMPLES), settings, epochs=n).flops
        for made, n in (
            (trainable(0), None),
            (trainable(boundary, draws=draws), epochs),
            (trainable(boundary, draws=draws), epochs + 1),
        )
    )
    assert ours <= full < longer
    assert epochs > settings.epochs
