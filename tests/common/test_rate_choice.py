"""Which learning rate wins on the validation split."""

import pytest

from stages.common.rate_choice import Tried, beats


@pytest.mark.parametrize(
    ("challenger", "champion", "wins"),
    [
        ((0.5, None), (0.6, None), True),  # free answers: the loss alone
        ((0.6, None), (0.6, None), False),  # of equals the one before stays
        ((0.5, 0.79), (0.6, 0.80), True),  # four points are a standard error of 0.8 among a hundred
        ((0.6, 0.83), (0.5, 0.80), False),
        ((0.5, 0.75), (0.6, 0.80), False),
        ((0.6, 0.85), (0.5, 0.80), True),
    ],
)
def test_a_clear_difference_in_accuracy_decides_and_else_the_loss(challenger, champion, wins):
    assert beats(Tried(*challenger), Tried(*champion), examples=100) is wins


def test_a_grid_does_not_drift_down_by_steps_that_are_each_within_the_error():
    best, second, third = Tried(0.5, 0.80), Tried(0.45, 0.77), Tried(0.40, 0.745)
    assert beats(second, best, examples=100)
    assert beats(third, second, examples=100)
    assert not beats(third, second, examples=100, highest=0.80)


def test_a_perfect_score_has_an_error_too():
    assert beats(Tried(0.1, 0.99), Tried(0.5, 1.0), examples=100)


def test_what_is_clear_among_many_examples_is_not_among_few():
    worse, better = Tried(0.5, 0.78), Tried(0.6, 0.80)
    assert beats(worse, better, examples=100)
    assert not beats(worse, better, examples=10_000)
