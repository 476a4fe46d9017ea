"""The wording of every outcome, the bad ones too."""

import pytest

from stages.report.headline import Facts, headline, standing_of
from stages.report.wording import THIN, Interval, count, decimal, flops, layer_range, percent, seconds, size


def plain(text: str) -> str:
    return text.replace(THIN, " ").replace("−", "-")


def facts(**changes: object) -> Facts:
    base = {
        "layers": 30,
        "boundary": 21,
        "partial": Interval(0.54, 0.48, 0.60),
        "full": Interval(0.55, 0.49, 0.61),
        "difference": Interval(-0.01, -0.05, 0.03),
        "cost": 0.314,
        "examples": 240,
    }
    return Facts(**{**base, **changes})


def test_a_difference_within_chance_is_called_so_and_not_equality() -> None:
    said = headline(facts())
    assert plain(said.title) == "Train layers 22–30 of 30: 98 % of full fine-tuning’s accuracy for 31 % of its compute"
    assert said.standing == "level"
    assert "cannot be told from chance" in said.verdict
    assert "a loss of up to 5.0 points" in plain(said.verdict)


def test_a_clear_loss_stands_in_the_title() -> None:
    said = headline(facts(partial=Interval(0.40, 0.34, 0.46), difference=Interval(-0.15, -0.20, -0.10)))
    assert plain(said.title) == (
        "Training only layers 22–30 of 30 costs accuracy: 73 % of full fine-tuning’s accuracy for 31 % of its compute"
    )
    assert said.standing == "worse"
    assert "larger than chance explains: this saving is paid for" in said.verdict


def test_a_paired_interval_finds_what_overlapping_intervals_hide() -> None:
    close = {"partial": Interval(0.52, 0.46, 0.58), "full": Interval(0.55, 0.49, 0.61)}
    assert standing_of(facts(**close, difference=None)) == "level"
    assert standing_of(facts(**close, difference=Interval(-0.03, -0.05, -0.01))) == "worse"


def test_separate_intervals_decide_where_none_is_paired() -> None:
    apart = facts(partial=Interval(0.7, 0.66, 0.74), full=Interval(0.5, 0.46, 0.54), difference=None)
    assert standing_of(apart) == "better"


@pytest.mark.parametrize(("partial", "full", "expected"), [(1.8, 2.0, "better"), (2.2, 2.0, "worse")])
def test_a_lower_loss_is_better(partial: float, full: float, expected: str) -> None:
    found = facts(
        metric="loss",
        partial=Interval(partial, partial - 0.05, partial + 0.05),
        full=Interval(full, full - 0.05, full + 0.05),
        difference=None,
    )
    assert standing_of(found) == expected


def test_a_loss_without_intervals_claims_nothing() -> None:
    said = headline(facts(metric="loss", partial=Interval(1.92), full=Interval(1.90), difference=None))
    assert plain(said.title) == (
        "Train layers 22–30 of 30: loss 1.920 against 1.900 with full fine-tuning, for 31 % of its compute"
    )
    assert said.standing == "open"
    assert "+0.020 has no interval" in said.verdict
    assert "overlap" not in said.verdict


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
    assert "nothing to hold it against" in said.verdict


@pytest.mark.parametrize(
    ("boundary", "opening"),
    [(0, "Train all 30 layers"), (29, "Train layer 30 of 30"), (30, "Train no layer, only the final norm")],
)
def test_the_ends_of_the_range_have_words_of_their_own(boundary: int, opening: str) -> None:
    assert headline(facts(boundary=boundary)).title.startswith(f"{opening}: ")


def test_baselines_that_are_not_beaten_are_named() -> None:
    plain_scores = {
        "untrained": Interval(0.31, 0.25, 0.37),
        "majority": Interval(0.50, 0.44, 0.56),
        "tfidf": Interval(0.60, 0.54, 0.66),
    }
    notes = headline(facts(baselines=plain_scores, seeds=3)).notes
    assert notes == (
        "It is clearly ahead of the untrained model (0.310).",
        "It is ahead of the majority class (0.500), but the intervals overlap.",
        "It is not ahead of TF-IDF + logistic regression (0.600).",
    )


def test_one_seed_a_missing_law_and_a_fallback_are_admitted() -> None:
    notes = " ".join(headline(facts(seeds=1, law_fits=False, fallback="observed gains decide.")).notes)
    assert "One seed" in notes
    assert "No scaling law fits" in notes
    assert "The plan fell back: observed gains decide." in notes


def test_full_fine_tuning_that_learns_nothing_gives_no_ratio() -> None:
    said = headline(facts(metric="exact match", partial=Interval(0.0, 0, 0), full=Interval(0.0, 0, 0), difference=None))
    assert "exact match 0.000 against 0.000" in said.title


def test_numbers_in_words() -> None:
    assert plain(percent(0.314)) == "31 %"
    assert plain(percent(0.0001)) == "< 1 %"
    assert percent(None) == "–"
    assert plain(count(134515008)) == "134 515 008"
    assert [plain(flops(v)) for v in (999.0, 1.234e15, 9.99e18)] == ["999 FLOP", "1.23 PFLOP", "9.99 EFLOP"]
    assert [plain(size(v)) for v in (0, 1023, 1536, 3 * 2**30)] == ["0 B", "1023 B", "1.50 KiB", "3.00 GiB"]
    assert [plain(seconds(v)) for v in (0.012, 3.21, 600)] == ["12 ms", "3.2 s", "10.0 min"]
    assert plain(decimal(-0.01, 2)) == "-0.01"
    assert decimal(-0.0001, 2) == "0.00"
    assert [layer_range(1, 0), layer_range(3, 3), layer_range(2, 5)] == ["no layer", "layer 3", "layers 2–5"]
