"""What is said of learning rates and of label frequencies."""

import pytest

from salf.records import GridRate, PreparedLabel, PreparedRecord, PreparedSplit
from stages.report.quality import label_sentences, place_in_grid
from tests.fine_tune_records import fine_tune_record


@pytest.mark.parametrize(
    ("rates", "words"),
    [
        ([0.1], ""),
        ([0.1, 0.2], "the lowest tried"),
        ([0.05, 0.1], "the highest tried"),
        ([0.2, 0.1, 0.05], "of 3 tried"),
    ],
)
def test_a_learning_rate_says_where_in_its_grid_it_lies(rates, words):
    grid = [GridRate(rate=rate, validation_loss=None, validation_accuracy=None) for rate in rates]
    assert place_in_grid(fine_tune_record(learning_rate=0.1, grid=grid)) == words


def meta(balance, **counts):
    """A split's label counts before and after its limit, by the split's name."""
    labels = [PreparedLabel(label=name, word=name, token_ids=[1]) for name in "ab"]
    splits = {
        name: PreparedSplit.model_construct(source_label_counts=before, label_counts=after)
        for name, (before, after) in counts.items()
    }
    return PreparedRecord.model_construct(balance=balance, splits=splits, labels=labels)


UNEVEN, EVEN = {"a": 900, "b": 100}, {"a": 50, "b": 50}
KEPT = {"a": 90, "b": 10}


@pytest.mark.parametrize(
    ("balance", "train", "test", "said"),
    [
        ("train", EVEN, KEPT, "Balanced over the labels: train. The source’s label frequencies remain in test."),
        (
            "none",
            KEPT,
            KEPT,
            "Balanced over the labels: no split. The source’s label frequencies remain in train and test.",
        ),
        ("train", UNEVEN, UNEVEN, "Balanced over the labels: no split."),
        ("all", EVEN, EVEN, "Balanced over the labels: train and test. Test scores are therefore those of equal label"),
        ("all", EVEN, UNEVEN, "Balanced over the labels: train. The source’s label frequencies remain in test."),
    ],
)
def test_what_was_balanced_is_said(balance, train, test, said):
    assert label_sentences(meta(balance, train=(UNEVEN, train), test=(UNEVEN, test)))[0].startswith(said)


def test_labels_with_few_test_examples_are_named():
    found = label_sentences(meta("none", train=(UNEVEN, UNEVEN), test=(UNEVEN, {"a": 99})))
    assert found[1].startswith("Fewer than 10 test examples of b (0): ")
    assert len(label_sentences(meta("none", train=(UNEVEN, UNEVEN), test=(UNEVEN, KEPT)))) == 1


def test_answers_without_labels_have_no_label_frequencies():
    assert label_sentences(PreparedRecord.model_construct(splits={}, labels=[], balance=None)) == []
