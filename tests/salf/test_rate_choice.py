"""Which learning rate wins on the validation split."""

import math
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from salf.rate_choice import Tried, choose


def winner(*stood, examples=100):
    """Place of the winner; every order of the rates gives it."""
    tried = [Tried(float(place), *each) for place, each in enumerate(stood)]
    (best,) = {choose(order, examples) for order in permutations(tried)}
    return tried.index(best)


@pytest.mark.parametrize(
    ("stood", "wins"),
    [
        ([(0.6, None), (0.5, None)], 1),  # free answers: the loss alone
        ([(0.6, None), (0.6, None)], 0),  # of equals the lower rate
        ([(0.6, 0.78), (0.6, 0.80)], 1),  # or the higher accuracy
        ([(0.6, 0.80), (0.5, 0.79)], 1),  # four points are a standard error of 0.8 among a hundred
        ([(0.5, 0.80), (0.6, 0.83)], 0),
        ([(0.6, 0.80), (0.5, 0.75)], 0),
        ([(0.5, 0.80), (0.6, 0.85)], 1),
        ([(0.5, 0.80), (0.45, 0.77), (0.40, 0.745)], 1),  # no drift by steps that are each within the error
        ([(0.5, 1.0), (0.1, 0.99)], 1),  # a perfect score has an error, too
        ([(0.5, 0.0), (0.6, 0.0)], 0),
        ([(0.5, 0.9)], 0),
    ],
)
def test_of_the_rates_near_the_highest_accuracy_the_lowest_loss_wins(stood, wins):
    assert winner(*stood) == wins


def test_what_is_clear_among_many_examples_is_not_among_few():
    stood = [(0.6, 0.80), (0.5, 0.78)]
    assert (winner(*stood, examples=100), winner(*stood, examples=10_000)) == (1, 0)


def test_a_later_rate_can_bring_back_one_that_had_lost():
    """The audit's example: compared one by one as they come, the first of three wins or the second."""
    stood = [(0.40, 0.84), (0.50, 0.86), (0.60, 0.87)]
    assert winner(*stood[:2], examples=256) == 0
    assert winner(*stood, examples=256) == 1


@given(
    st.lists(st.tuples(st.floats(0, 3), st.integers(0, 64)), min_size=1, max_size=5, unique_by=lambda one: one[0]),
    st.randoms(),
)
def test_the_order_of_the_rates_does_not_matter(stood, rng):
    tried = [Tried(rate, loss, hits / 64) for rate, (loss, hits) in enumerate(stood)]
    best = choose(tried, 64)
    assert choose(rng.sample(tried, len(tried)), 64) == best
    top = max(one.accuracy for one in tried)
    adjusted = (64 * top + 2) / 68
    error = math.sqrt(adjusted * (1 - adjusted) / 64)
    assert best.accuracy >= top - error
    assert not [one for one in tried if one.loss < best.loss and one.accuracy >= top - error]
