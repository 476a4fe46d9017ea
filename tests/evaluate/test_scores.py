"""Baselines, free answers, methods side by side."""

import csv
import json

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, f1_score

from salf.engine.batches import Candidate, Example
from salf.errors import UserError
from salf.metrics import (
    Baseline,
    Interval,
    Intervals,
    Metrics,
    RunMetrics,
    read_comparison,
    write_comparison,
)
from salf.records import CurvePoint
from stages.evaluate.baselines import answers, majority, tfidf
from stages.evaluate.compare import compare_methods, full_at_equal_compute, measured_of, run_metrics
from stages.evaluate.predict import exact_match
from stages.evaluate.scores import Bootstrap, Predictions, score
from tests.fine_tune_records import fine_tune_clock, fine_tune_record


def examples(pairs):
    return [Example(str(i), label, text, label, (1,), (2,)) for i, (text, label) in enumerate(pairs)]


def test_majority_is_the_commonest_training_label_and_ties_are_settled_by_name():
    train = examples([("x", "b"), ("x", "a"), ("x", "b"), ("x", "a")])
    assert majority(train, examples([("y", "b")] * 3)) == ["a"] * 3
    assert majority(train[:3], examples([("y", "a")])) == ["b"]


def test_tfidf_learns_words_and_word_pairs():
    train = examples([("not good at all", "neg"), ("good", "pos"), ("not bad at all", "pos"), ("bad", "neg")] * 5)
    assert tfidf(train, examples([("good", "pos"), ("not bad", "pos"), ("not good", "neg")])) == ["pos", "pos", "neg"]


def question(n, texts, right):
    candidates = tuple(Candidate(text, (at,)) for at, text in enumerate(texts))
    return Example(str(n), None, "why?", texts[right], (1,), (right,), candidates)


def test_baselines_of_multiple_choice_know_places_and_words_and_not_the_question():
    train = [question(n, ["a fish", "a bird sings", "the sea"], 1) for n in range(6)]
    train += [question(9, ["a bird hides", "a stone"], 0)]
    test = [question(1, ["bird again", "a fish", "the sea"], 0), question(2, ["a stone", "bird"], 1), train[0]]
    said = answers(train, test)
    assert said["majority"] == ["a fish", "bird", "a bird sings"]
    assert said["tfidf"] == ["bird again", "bird", "a bird sings"]
    predictions = Predictions.of_labels(said["majority"], test)
    assert predictions.correct.tolist() == [0, 1, 1]
    scores = score(predictions, "accuracy", Bootstrap(3, 20, 0.9, 0))
    assert scores["accuracy"].value == pytest.approx(2 / 3)
    assert set(scores) == {"accuracy"}


@pytest.mark.parametrize(
    ("answer", "reference", "marker", "expected"),
    [
        ("72", "72", None, True),
        ("  seventy\n two ", "seventy two", None, True),
        ("so 40 + 32 = 72\n#### 72", "48/2 = 24\n#### 72", "####", True),
        ("#### 73", "#### 72", "####", False),
        ("72", "#### 72", "####", True),
        ("", "72", None, False),
    ],
)
def test_exact_match(answer, reference, marker, expected):
    assert exact_match(answer, reference, marker) is expected


CURVE = [
    CurvePoint(step=n, epoch=n, flops=flops, train_loss=None, validation_loss=loss, validation_accuracy=accuracy)
    for n, (flops, accuracy, loss) in enumerate([(0, 0.2, 3.0), (100, 0.6, 1.0), (200, 0.7, 0.5)])
]


@pytest.mark.parametrize(
    ("own", "of_full", "share"), [(6, 8, 0.75), (None, 8, None), (6, None, None), (None, None, None)]
)
def test_backward_flops_are_a_share_of_fulls_and_unknown_in_records_made_before(own, of_full, share):
    run, full = (fine_tune_record(flops_backward=counted) for counted in (own, of_full))
    told = run_metrics(run, full, {}, 1)
    assert (told.flops_backward, told.flops_backward_share) == (own, share)


@pytest.mark.parametrize(("flops", "accuracy"), [(0, 0.2), (50, 0.4), (150, 0.65)])
def test_full_fine_tuning_at_equal_compute_is_read_off_its_curve(flops, accuracy):
    assert full_at_equal_compute(CURVE, flops)["validation_accuracy"] == pytest.approx(accuracy)


def test_a_method_that_costs_as_much_has_no_equal_compute():
    assert full_at_equal_compute(CURVE, 200) is None


def test_what_was_not_logged_by_then_is_not_taken_from_later():
    assert full_at_equal_compute(CURVE[-1:], 100) is None


def run_of(name, score=0.5, **facts):
    """What is known of a run; ``name`` is its method and seed."""
    method, _, seed = name.partition("-seed")
    known = {
        "method": method,
        "seed": int(seed),
        "scores": {"accuracy": Interval(value=score, low=score, high=score)},
        "n": 2,
        "boundary": 0,
        "boundary_before_budget": None,
        "trained_parameters": 8,
        "trained_share": None,
        "flops": 1,
        "flops_share": None,
        "epochs": 2,
        "steps": 4,
        "learning_rate": 0.1,
        "grid": [],
        "validation_loss": 0.5,
        "validation_accuracy": 0.7,
    }
    return RunMetrics(**known | facts)


@pytest.fixture
def half_right():
    """The scores of one right and one wrong answer."""
    said = Predictions(["a", "a"], np.array([1.0, 0.0]), np.ones(2), np.ones(2), [None, None])
    return score(said, "accuracy", Bootstrap(2, 20, 0.95, 0, ["a", "b"]))


def test_drawn_layers_differ_by_seed_and_count_on_the_mean(half_right):
    runs = {
        f"lisa-seed{seed}": run_of(f"lisa-seed{seed}", trained_parameters=trained)
        for seed, trained in ((1, 8), (2, 10))
    }
    row = compare_methods(runs, dict.fromkeys(runs, CURVE), dict.fromkeys(runs, half_right))["lisa"]
    assert (row.trained_parameters, row.boundary) == (9, 0)
    assert "boundary_before_budget" not in row.model_dump(exclude_unset=True)


def test_the_metrics_of_a_run_say_how_many_looks_decided_its_weights(half_right):
    kept = {"keep": "best", "step": 9, "validation_loss": 0.25, "validation_accuracy": 0.75}
    record = fine_tune_record(kept=[kept], looks=5, steps_planned=36)
    found = run_metrics(record, None, half_right, 2)
    assert (found.looks, found.steps, found.steps_planned, found.kept[0].step) == (5, 12, 36, 9)
    assert (found.validation_loss, found.validation_accuracy) == (0.25, 0.75)
    plain = run_metrics(fine_tune_record(), None, half_right, 2).model_dump(exclude_unset=True)
    assert not {"kept", "looks", "steps_planned"} & set(plain)
    assert plain["validation_loss"] == 1.5


def test_the_comparison_holds_both_boundaries_where_a_budget_moved_one(half_right, tmp_path):
    runs = {
        name: run_of(name, boundary=boundary, boundary_before_budget=before)
        for name, boundary, before in (("half-seed1", 15, None), ("salf-seed1", 18, 0))
    }
    methods = compare_methods(runs, dict.fromkeys(runs, CURVE), dict.fromkeys(runs, half_right))
    metrics = Metrics(
        layout=1,
        task="classification",
        quality="accuracy",
        intervals=Intervals(resamples=20, confidence=0.95),
        baselines={"majority": Baseline(scores=runs["half-seed1"].scores, n=2)},
        runs=runs,
        methods=methods,
    )
    measured = measured_of(runs, dict.fromkeys(runs, fine_tune_clock()))
    write_comparison(tmp_path / "comparison.csv", metrics, measured)
    table = list(csv.DictReader((tmp_path / "comparison.csv").read_text().splitlines()))
    assert [(row["name"], row["boundary"], row["boundary_before_budget"]) for row in table] == [
        ("majority", "", ""),
        ("half", "15", ""),
        ("salf", "18", "0"),
    ]
    assert read_comparison(tmp_path / "comparison.csv") == measured
    metrics.save(tmp_path / "metrics.json")
    assert Metrics.load(tmp_path / "metrics.json") == metrics
    flat = json.loads((tmp_path / "metrics.json").read_text())["methods"]["salf"]
    assert {key: flat[key] for key in ("accuracy", "accuracy_low", "accuracy_high")} == {
        f"accuracy{end}": getattr(half_right["accuracy"], part)
        for end, part in {"": "value", "_low": "low", "_high": "high"}.items()
    }


def test_a_damaged_comparison_is_one_clear_line(tmp_path):
    (tmp_path / "comparison.csv").write_text("kind,name,seconds_cache\nmethod,full,soon\n")
    with pytest.raises(UserError, match=r"comparison\.csv: damaged CSV .*dvc repro evaluate"):
        read_comparison(tmp_path / "comparison.csv")


def test_baselines_of_texts_without_words_go_by_their_characters():
    train = examples([(":-)", "glad"), (":-(", "sad")] * 4)
    assert answers(train, examples([("(-:  :-)", "glad"), (":-( :-(", "sad")]))["tfidf"][1] == "sad"


def test_methods_are_means_over_seeds_and_paired_with_full():
    n = 50
    rng = np.random.default_rng(0)
    truth, tokens = rng.integers(3, size=n), rng.integers(1, 4, size=n).astype(float)
    bootstrap = Bootstrap(n, 100, 0.95, 0, ["abc"[t] for t in truth])
    said = {}
    for name in ("full-seed1", "full-seed2", "salf-seed1", "salf-seed2"):
        guess = rng.integers(3, size=n)
        said[name] = Predictions(
            ["abc"[g] for g in guess], (guess == truth).astype(float), rng.random(n), tokens, [None] * n
        )
    scores = {name: score(each, "accuracy", bootstrap) for name, each in said.items()}
    cost = {"full": 200, "salf": 100}
    runs = {name: run_of(name, flops=cost[name[:4]], flops_share=cost[name[:4]] / 200) for name in said}
    rows = compare_methods(runs, dict.fromkeys(said, CURVE), scores)
    mean = np.mean([said["salf-seed1"].correct.mean(), said["salf-seed2"].correct.mean()])
    assert rows["salf"].scores["accuracy"].value == pytest.approx(mean)
    assert rows["salf"].differences["accuracy"].value == pytest.approx(mean - rows["full"].scores["accuracy"].value)
    # Every resample by hand: scores over classes by scikit-learn, the loss per token.
    number = {name: np.array(["abc".index(label) for label in each.predicted]) for name, each in said.items()}
    by_hand = {
        "accuracy": lambda name, picks: said[name].correct[picks].mean(),
        "loss": lambda name, picks: np.average(said[name].loss[picks], weights=tokens[picks]),
        "macro_f1": lambda name, picks: f1_score(truth[picks], number[name][picks], average="macro"),
        "balanced_accuracy": lambda name, picks: balanced_accuracy_score(truth[picks], number[name][picks]),
    }
    for key, of in by_hand.items():
        within = key in ("macro_f1", "balanced_accuracy")
        gaps = [
            np.mean([of(f"salf-seed{seed}", picks) - of(f"full-seed{seed}", picks) for seed in (1, 2)])
            for picks in (bootstrap.picks_within_classes if within else bootstrap.picks)
        ]
        found = rows["salf"].differences[key]
        assert (found.low, found.high) == pytest.approx(tuple(np.quantile(gaps, [0.025, 0.975])))
        assert found.detectable == pytest.approx(2.8016 * np.std(gaps, ddof=1), rel=1e-4)
    assert rows["salf"].seeds == [1, 2]
    assert rows["salf"].flops_share == 0.5
    assert rows["salf"].at_equal_compute.full_validation_accuracy == pytest.approx(0.6)
    assert rows["full"].at_equal_compute is None
