"""Which learning rate wins on the validation split, and which arms of a race are dropped."""

import math
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from salf.rate_choice import LEVEL, Tried, choose, ranking, standings


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


def arm(losses, hits=()):
    return Tried(0.001, float(np.mean(losses)), float(np.mean(hits)) if len(hits) else None, list(losses), list(hits))


def drawn(rng, shift=0.0, right=0.7, examples=100):
    return arm(rng.gamma(2.0, size=examples) + shift, rng.random(examples) < right)


def test_p_values_are_those_of_mcnemar_and_student():
    rng = np.random.default_rng(1)
    arms = {number: drawn(rng, 0.1 * number, 0.8 - 0.1 * number) for number in range(3)}
    leader, *others = ranking(arms)
    for number in others:
        (found,) = (one for one in standings(arms, 0.01, None) if one.arm == number)
        mine, best = arms[number], arms[leader]
        lost = sum(b and not m for m, b in zip(mine.hits, best.hits, strict=True))
        differ = sum(b != m for m, b in zip(mine.hits, best.hits, strict=True))
        assert found.p_accuracy == pytest.approx(stats.binomtest(lost, differ, 0.5, alternative="greater").pvalue)
        gaps = np.subtract(mine.losses, best.losses)
        t = gaps.mean() / (gaps.std(ddof=1) / 10)
        assert found.p_loss == pytest.approx(stats.t.sf(t, 99))


LOW, HIGH = [0.5] * 20 + [0.6] * 20, [1.5] * 20 + [1.4] * 20
ALL, HALF = [True] * 40, [True, False] * 20


@pytest.mark.parametrize(
    ("arms", "keep", "fates"),
    [
        ([arm(LOW, ALL), arm(LOW, HALF)], None, ["leads", "worse accuracy"]),
        ([arm(HIGH, ALL), arm(LOW, HALF)], None, ["leads", "worse accuracy"]),  # accuracy comes before the loss
        ([arm(HIGH, HALF), arm(LOW, HALF)], None, ["worse loss", "leads"]),
        ([arm(HIGH), arm(LOW)], None, ["worse loss", "leads"]),  # free answers: the loss alone
        ([arm(LOW, HALF), arm(LOW, HALF)], None, ["leads", "stays"]),
        ([arm(LOW, HALF)] * 4, 2, ["leads", "stays", "too many", "too many"]),
        ([arm(HIGH, HALF), *[arm(LOW, HALF)] * 3], 2, ["worse loss", "leads", "stays", "too many"]),
        ([arm(LOW, ALL), arm(LOW, HALF)], 1, ["leads", "worse accuracy"]),
    ],
)
def test_an_arm_that_is_significantly_worse_is_dropped(arms, keep, fates):
    assert [one.fate for one in standings(dict(enumerate(arms)), 0.01, keep)] == fates


def test_at_the_end_nothing_is_tested():
    found = standings({3: arm(HIGH, HALF), 5: arm(LOW, HALF)}, None, None)
    assert [(one.arm, one.fate, one.p_accuracy, one.p_loss) for one in found] == [
        (3, "lost", None, None),
        (5, "won", None, None),
    ]


@pytest.mark.parametrize(("arms", "looks", "right"), [(2, 1, 0.7), (4, 2, 0.7), (4, 1, 0.97), (6, 1, 0.5)])
def test_an_arm_as_good_as_the_others_is_rarely_dropped(arms, looks, right):
    """The bound is per arm. Looks at new examples are the worst case: those of one race resemble each other."""
    races, rng, dropped = 200, np.random.default_rng(arms + looks), 0
    level = LEVEL / (2 * (arms - 1) * looks)
    for _ in range(races):
        for _ in range(looks):
            found = standings({number: drawn(rng, right=right) for number in range(arms)}, level, None)
            if found[0].fate not in ("leads", "stays"):
                dropped += 1
                break
    assert dropped <= LEVEL * races


def test_a_worse_arm_is_dropped_the_more_surely_the_more_examples_there_are():
    rng, shares = np.random.default_rng(0), []
    for examples in (50, 200, 800):
        made = [[arm(rng.gamma(2.0, size=examples) + worse) for worse in (0, 0.5)] for _ in range(30)]
        found = [standings(dict(enumerate(pair)), LEVEL / 2, None)[1].fate for pair in made]
        shares.append(found.count("worse loss") / 30)
    assert shares[0] < shares[1] < shares[2] == 1.0
