"""The wording of every outcome, the bad ones too."""

import pytest

from salf.metrics import Difference, Interval
from stages.report.answer import Facts, headline
from stages.report.wording import THIN, count, decimal, flops, layer_range, percent, seconds, size


def plain(text: str) -> str:
    return text.replace(THIN, " ").replace("−", "-")


def of(value: float, low: float, high: float) -> Interval:
    return Interval(value=value, low=low, high=high)


def gap_of(value: float, low: float, high: float, detectable: float = 0.057) -> Difference:
    return Difference(value=value, low=low, high=high, detectable=detectable)


def facts(**changes: object) -> Facts:
    base = {
        "layers": 30,
        "boundary": 21,
        "partial": of(0.54, 0.48, 0.60),
        "full": of(0.55, 0.49, 0.61),
        "difference": gap_of(-0.01, -0.05, 0.03),
        "confidence": 0.95,
        "cost": 0.314,
        "examples": 240,
        "seeds": 2,
    }
    return Facts(**{**base, **changes})


def test_answers_alone_are_named() -> None:
    assert plain(headline(facts(boundary=0, answers_alone=True)).title).startswith(
        "Train all 30 layers, at answer positions only: no significant difference"
    )


def test_a_race_whose_winners_differ_names_no_layers_that_nobody_trained() -> None:
    said = headline(facts(boundary=1, unmeasured_plan=2, answers_alone=True, mixed=True))
    assert plain(said.title).startswith("Race with every seed, because the winners differ: no significant difference")
    assert not [note for note in said.notes if "boundary" in note]


def test_a_difference_that_is_not_significant_is_called_so_and_not_equality() -> None:
    said = headline(facts())
    assert plain(said.title) == (
        "Train layers 22–30 of 30: no significant difference (± 4.0 points) from full fine-tuning’s accuracy, "
        "for 31 % of its compute"
    )
    assert facts().standing == "level"
    assert plain(said.verdict) == (
        "Accuracy 0.540 [0.480, 0.600] against 0.550 [0.490, 0.610] for full fine-tuning on 240 test examples. "
        "The difference of -1.0 points [-5.0, 3.0] is not significant (paired bootstrap over the test examples, "
        "95 % interval): its interval still allows a loss of up to 5.0 points. The test would detect a difference of "
        "5.7 points with 80 % power. This holds for this test set and the mean of these 2 seeds, not for other data."
    )


def test_answers_that_agree_on_every_example_promise_no_power() -> None:
    same = headline(facts(difference=Difference(value=0, low=0, high=0, detectable=0)))
    assert "The difference is the same on every example" in same.verdict
    assert "would detect a difference of" not in same.verdict


@pytest.mark.parametrize(
    ("gap", "standing", "said"),
    [
        (gap_of(-0.15, -0.2, -0.1), "worse", "Training only layers 22–30 of 30: significantly worse than"),
        (gap_of(0.15, 0.1, 0.2), "better", "Train layers 22–30 of 30: significantly better than"),
    ],
)
def test_a_significant_difference_stands_in_the_title_with_its_interval(
    gap: Difference, standing: str, said: str
) -> None:
    known = facts(partial=of(0.55 + gap.value, 0.3, 0.8), difference=gap)
    found = headline(known)
    sign = "+" if gap.value > 0 else "-"
    assert (
        plain(found.title)
        == f"{said} full fine-tuning’s accuracy ({sign}15.0 points ± 5.0 points), for 31 % of its compute"
    )
    assert known.standing == standing
    assert "is significant (paired bootstrap over the test examples, 95 % interval)." in plain(found.verdict)


@pytest.mark.parametrize(
    ("gap", "expected"),
    [((-0.2, -0.25, -0.15), "better"), ((0.2, 0.15, 0.25), "worse"), ((0.02, -0.01, 0.05), "level")],
)
def test_a_lower_loss_is_better(gap: tuple[float, float, float], expected: str) -> None:
    partial, full = of(2.0 + gap[0], 1.7, 2.3), of(2.0, 1.9, 2.1)
    found = facts(metric="loss", partial=partial, full=full, difference=gap_of(*gap, detectable=0.043))
    assert found.standing == expected
    said = headline(found)
    assert "points" not in said.title + said.verdict
    assert "detect a difference of 0.043" in said.verdict


def test_an_interval_that_ends_at_zero_is_not_significant() -> None:
    assert facts(difference=gap_of(-0.02, -0.04, 0.0)).standing == "level"


def test_one_seed_says_that_seeds_were_not_compared() -> None:
    assert "one seed: how much the result varies between seeds was not measured" in headline(facts(seeds=1)).verdict


def test_a_plan_without_runs_predicts_cost_and_admits_that_quality_is_unknown() -> None:
    said = headline(facts(partial=None, full=None, difference=None))
    assert plain(said.title) == "Train layers 22–30 of 30: a predicted 31 % of full fine-tuning’s compute"
    assert "not known" in said.verdict


def test_full_fine_tuning_alone_says_nothing_about_freezing() -> None:
    said = headline(facts(partial=None, difference=None))
    assert said.verdict.startswith("No method that freezes layers has been evaluated yet")


def test_another_methods_results_are_called_so() -> None:
    notes = headline(facts(boundary=15, unmeasured_plan=21)).notes
    assert "These are the results of boundary 15: no method of this run follows the plan’s own, 21." in notes
    assert not any("results of boundary" in note for note in headline(facts()).notes)


def test_without_full_fine_tuning_nothing_is_compared() -> None:
    said = headline(facts(full=None, difference=None, cost=None))
    assert said.title == "Train layers 22–30 of 30: accuracy 0.540, full fine-tuning not run"
    assert "nothing to compare with" in said.verdict


@pytest.mark.parametrize(
    ("boundary", "opening"),
    [(0, "Train all 30 layers"), (29, "Train layer 30 of 30"), (30, "Train no layer, only the final norm")],
)
def test_the_ends_of_the_range_have_words_of_their_own(boundary: int, opening: str) -> None:
    assert headline(facts(boundary=boundary)).title.startswith(f"{opening}: ")


def test_baselines_that_are_not_beaten_are_named() -> None:
    plain_scores = {
        "untrained": of(0.31, 0.25, 0.37),
        "majority": of(0.50, 0.44, 0.56),
        "tfidf": of(0.60, 0.54, 0.66),
    }
    notes = headline(facts(baselines=plain_scores, seeds=3)).notes
    assert notes == (
        "It is not better than the majority class (0.500) and TF-IDF + logistic regression (0.600), or the intervals "
        "overlap.",
    )
    losses = {name: of(score.value + 0.3, score.low + 0.3, score.high + 0.3) for name, score in plain_scores.items()}
    (note,) = headline(facts(metric="loss", partial=of(0.8, 0.75, 0.81), baselines=losses)).notes
    assert note.startswith("It is not better than the untrained model (0.610) and the majority class (0.800), or")


def test_uneven_labels_bring_all_scores_over_classes_together() -> None:
    scores = {"balanced_accuracy": of(0.5, 0.45, 0.55), "macro_f1": of(0.4, 0.3, 0.5)}
    uneven = facts(
        partial=of(0.91, 0.88, 0.94),
        frequencies=(0.1, 0.9),
        other_scores=scores,
        baselines={"majority": of(0.9, 0.87, 0.93)},
    )
    assert plain(headline(uneven).notes[0]) == (
        "The test split’s labels are uneven, from 10.0 % to 90.0 % of the examples: accuracy 0.910 [0.880, 0.940], "
        "balanced accuracy 0.500 [0.450, 0.550], macro-F1 0.400 [0.300, 0.500] and accuracy of the majority class "
        "0.900."
    )
    assert headline(facts(frequencies=(0.5, 0.5), other_scores=scores)).notes == ()


def test_a_missing_law_and_a_fallback_are_admitted() -> None:
    notes = " ".join(headline(facts(law_fits=False, fallback="observed gains decide.")).notes)
    assert "No scaling law fits" in notes
    assert "The plan fell back: observed gains decide." in notes


def test_numbers_in_words() -> None:
    assert plain(percent(0.314)) == "31 %"
    assert plain(percent(0.0001)) == plain(percent(0.005)) == "< 1 %"
    assert percent(None) == "–"
    assert plain(count(134515008)) == "134 515 008"
    assert [plain(flops(v)) for v in (999.0, 1.234e15, 9.99e18)] == ["999 FLOP", "1.23 PFLOP", "9.99 EFLOP"]
    assert [plain(size(v)) for v in (0, 1023, 1536, 3 * 2**30)] == ["0 B", "1023 B", "1.50 KiB", "3.00 GiB"]
    assert [plain(seconds(v)) for v in (0.012, 3.21, 600)] == ["12 ms", "3.2 s", "10.0 min"]
    assert plain(decimal(-0.01, 2)) == "-0.01"
    assert decimal(-0.0001, 2) == "0.00"
    assert [layer_range(1, 0), layer_range(3, 3), layer_range(2, 5)] == ["no layer", "layer 3", "layers 2–5"]
