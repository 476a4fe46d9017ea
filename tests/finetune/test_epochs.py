"""Epochs at equal compute, against sums by hand and against what training counts."""

import math

import pytest

from salf.cost import adapters, forward_flops, training_flops
from salf.engine.batches import Split
from salf.engine.training.costs import Costs, equal_compute_epochs
from salf.engine.training.scope import LayerDraws
from salf.shape import ModelShape
from tests.engine.models.tiny import tiny_network
from tests.engine.training.tiny_training import SHARED, made_examples, params, run, scope_above, trainable

EXAMPLES = made_examples()
SHAPE = ModelShape.from_config(tiny_network(tie_word_embeddings=True).config.to_dict())
FULL = Costs(SHAPE, scope_above(0))


def epochs_of(costs, settings):
    return equal_compute_epochs(FULL, costs, Split(EXAMPLES, SHARED), settings, seed=1)


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
    found = epochs_of(Costs(SHAPE, scope_above(boundary)), settings)
    assert found == (allowed - frozen * (boundary > 0)) // epoch
    assert found > epochs or boundary <= 2


def test_frozen_layers_that_run_for_every_batch_leave_less_for_epochs():
    settings = params(epochs=4)
    once, anew = (Costs(SHAPE, scope_above(3), uncached=anew) for anew in (False, True))
    assert epochs_of(once, settings) > epochs_of(anew, settings) > 4


def test_a_method_that_saves_nothing_trains_as_long_as_full():
    assert epochs_of(Costs(SHAPE, scope_above(0), adapters(256)), params(epochs=2)) == 2


@pytest.mark.parametrize("boundary", [0, 3])
def test_training_so_long_costs_no_more_than_full_and_an_epoch_more_would(boundary):
    """As the training loop counts it; at boundary 0 with layers drawn anew."""
    draws = LayerDraws(4, 1, 2, seed=4) if boundary == 0 else None
    settings = params(epochs=5 if draws else 2)
    costs = Costs(SHAPE, scope_above(boundary, draws=draws))
    epochs = epochs_of(costs, settings)
    full, ours, longer = (
        run(made, EXAMPLES, settings, epochs=n).flops
        for made, n in (
            (trainable(0), None),
            (trainable(boundary, draws=draws), epochs),
            (trainable(boundary, draws=draws), epochs + 1),
        )
    )
    assert ours <= full < longer
    assert epochs > settings.epochs
