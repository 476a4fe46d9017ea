"""What is said of learning rates, of label frequencies, and of predicted times."""

from types import SimpleNamespace

import pytest

from salf.metrics import Measured
from salf.plan_records import Rates, TimedBudget
from salf.records import GridRate, PreparedLabel, PreparedRecord, PreparedSplit
from stages.report.artifacts import Method
from stages.report.quality import label_sentences, place_in_grid, times_table
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


def test_predicted_times_and_prices_stand_beside_the_measured_ones():
    """Cached passes at 2 GFLOP/s, steps at 1 (answers: 0.5), updates of 36 bytes at 1 MB/s; looks are no training."""
    rates = Rates(
        frozen_flops_per_second=2e9,
        flops_per_second=1e9,
        answer_flops_per_second=5e8,
        bytes_per_second=1e6,
        machine={"device": "cpu"},
        about="ab",
    )
    budget = TimedBudget(
        budget="1 USD", seconds=600.0, price_per_hour=6.0, shallowest=0, shallowest_answer=0, rates=rates
    )
    facts = {"flops": 40 * 10**9, "flops_before": 10 * 10**9, "trained_parameters": 10_000, "steps": 12}
    runs = {
        "full-seed1": fine_tune_record(**facts),
        "full-seed2": fine_tune_record(**{**facts, "flops": 60 * 10**9, "flops_looks": 10 * 10**9}),
        "full+answer-seed1": fine_tune_record(**facts, method="full+answer"),
        "lora-seed1": fine_tune_record(method="lora"),  # made before it was recorded what was cached
    }
    measured = Measured(seconds_per_step=1.0, seconds_training=40.0, seconds_cache=10.0, peak_memory_bytes=1.0)
    methods = [Method(name, None, measured) for name in ("full", "full+answer", "lora")]
    table = times_table(SimpleNamespace(methods=methods, runs=runs), budget)
    updates = 12 * 10_000 * 36 / 1e6
    expected = [(5 + 30 + updates + 5 + 40 + updates) / 2, 5 + 60 + updates, None]
    for row, seconds in zip(table.rows, expected, strict=True):
        priced = seconds and seconds / 600  # 6 an hour
        values = [seconds, 50.0, seconds and seconds / 50, priced, 50 / 600]
        assert [cell.value for cell in row[1:]] == [value and pytest.approx(value) for value in values]
    assert "plan.budget = 1 USD" in table.caption
