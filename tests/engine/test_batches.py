"""Batches: right tokens, right answer positions, every example once, little padding, unbiased order."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import chisquare

from salf.engine.batches import Batch, Example, Split, inference_batches, training_batches


def example(prompt, answer):
    return Example("x", None, "", "", tuple(prompt), tuple(answer))


def test_a_batch_holds_inputs_behind_the_beginning_and_where_answers_are_predicted():
    examples = [example([1, 2, 3, 4, 5], [6]), example([1, 2, 7], [8, 9, 10])]
    batch = Batch.of(examples, [1, 0], shared=2)
    assert batch.ids.tolist() == [7, 8, 9, 3, 4, 5]
    assert batch.lengths == (3, 3)
    assert batch.rows.tolist() == [0, 0, 0, 1]
    assert batch.answers.tolist() == [0, 1, 2, 5]
    assert batch.targets.tolist() == [8, 9, 10, 6]
    assert batch.answer_index.tolist() == [0, 1, 2, 0]


def test_attended_counts_the_keys_that_every_token_sees():
    batch = Batch.of([example(range(5), [9]), example(range(7), [9])], [0, 1], shared=2)
    assert batch.attended == sum(2 + t + 1 for tokens in (3, 5) for t in range(tokens))


def test_seen_counts_the_keys_that_the_answer_positions_see():
    batch = Batch.of([example(range(5), [9]), example(range(7), [9, 10])], [0, 1], shared=2)
    assert batch.seen == 5 + 7 + 8


@pytest.mark.parametrize("budget", [16, 64, 1000])
def test_inference_batches_hold_every_example_once_within_the_budget(budget):
    lengths = np.random.default_rng(0).integers(1, 20, size=50).tolist()
    batches = inference_batches(lengths, budget)
    assert sorted(i for batch in batches for i in batch) == list(range(50))
    for batch in batches:
        padded = len(batch) * max(lengths[i] for i in batch)
        assert padded <= budget or len(batch) == 1


def test_training_batches_hold_every_example_once_with_little_padding():
    lengths = np.random.default_rng(0).integers(1, 200, size=1000).tolist()
    batches = list(training_batches(lengths, 8, np.random.default_rng(1)))
    assert sorted(i for batch in batches for i in batch) == list(range(1000))
    padded = sum(len(batch) * max(lengths[i] for i in batch) for batch in batches)
    assert padded < 1.15 * sum(lengths)


def test_no_length_comes_earlier_than_another_in_training():
    """Mean place in the epoch of the longest tenth, over many epochs: the middle."""
    lengths = list(range(200))
    places = []
    for seed in range(60):
        order = [i for batch in training_batches(lengths, 4, np.random.default_rng(seed)) for i in batch]
        places.append(np.mean([order.index(i) for i in range(180, 200)]) / 199)
    assert abs(np.mean(places) - 0.5) < 0.05


def test_every_example_is_as_likely_at_every_place_and_in_the_batch_that_is_left_over():
    """Chi-square over seeds: batch of the epoch by example, and membership of the smaller batch."""
    lengths, seeds = list(range(1, 24)), 600
    places, left_over = np.zeros((23, 6)), np.zeros(23)
    for seed in range(seeds):
        batches = list(training_batches(lengths, 4, np.random.default_rng(seed)))
        assert sorted(map(len, batches)) == [3, 4, 4, 4, 4, 4]
        for place, batch in enumerate(batches):
            places[batch, place] += 1
            left_over[batch] += len(batch) == 3
    assert min(chisquare(row).pvalue for row in places) > 0.01 / 23
    assert chisquare(left_over).pvalue > 0.01
    assert chisquare(places.sum(0)).pvalue > 0.01


def test_rows_of_a_batch_are_its_tokens_and_nothing_else():
    examples = [example(range(3, 5 + n), [9] * (1 + n % 3)) for n in range(11)]
    for index in training_batches([len(e.inputs) for e in examples], 4, np.random.default_rng(0)):
        batch = Batch.of(examples, index, shared=1)
        assert batch.ids.tolist() == [token for i in index for token in examples[i].inputs[1:]]


def test_a_subset_keeps_its_places_in_the_start_and_a_start_of_its_own_counts_anew():
    """Boundary states are in the order of the split that they were computed for."""
    start = object()
    whole = Split([example(range(n), [9]) for n in range(3, 9)], 1, start)
    part = whole.subset([4, 2, 5]).subset([2, 0])
    assert [len(one.prompt_ids) for one in part.examples] == [8, 7]
    assert part.batch([1, 0]).index.tolist() == [4, 5]
    plain = replace(Split(whole.examples, 1).subset([4, 2, 5]), start=start)
    assert plain.batch([0, 2]).index.tolist() == [0, 2]
