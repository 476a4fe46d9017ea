"""The study's section of the page."""

import json
from pathlib import Path

import pytest
from stages.common.study_schema import SUMMARY_SCHEMA

from salf.errors import UserError
from salf.files import write_json, write_text
from stages.common.figures.svg import inline, panel, standalone
from stages.report.__main__ import main
from stages.report.study import study_section
from stages.report.wording import THIN

RULE = {
    "rule": "probe",
    "groups": 7,
    "cases": 9,
    "asked": 11,
    "interpolated": 2,
    "cost_share": 0.53,
    "deciding_share": 1.5,
    "regret": 0.4375,
    "regret_at_cost": 0.125,
    "regret_cross_fitted": -0.0625,
    "regret_at_cost_cross_fitted": -0.3125,
    "behind_full": 0.25,
    "behind_full_median": 0.125,
    "groups_behind": 6,
    "equal_compute_over_full": {"difference": 0.375, "low": -0.5, "high": 1.25, "groups": 5, "p_holm": 0.4},
    "over_full": None,
    "rank": 0,
    "worst": 1.5,
    "worst_on": "sst5, embedded",
    "worst_at_cost": 1.25,
    "worst_at_cost_on": "trec, embedded",
    "rank_correlation": 0.75,
    "over_default": {"difference": -0.6875, "low": -1.5, "high": 0.25, "groups": 7, "p_holm": 1.0},
    "over_constant": {
        "difference": -0.8125,
        "low": -1.5,
        "high": 0.25,
        "groups": 7,
        "p_holm": 0.003,
        "p_holm_elsewhere": 0.51,
    },
    "degenerate": None,
}
SUMMARY = {
    "schema": SUMMARY_SCHEMA,
    "headline": "probe: 0.44 points <b>behind</b> the best.",
    "default_rule": "probe",
    "data_sets": ["trec", "sst5"],
    "models": ["embedded"],
    "seeds": [1, 2, 3],
    "seeds_each": {"trec, embedded": 3, "sst5, embedded": 2},
    "fine_tunes": 84,
    "fine_tunes_measured": 90,
    "tuned_rates": 12,
    "tuned_rates_at_an_end": 1,
    "machines": ["Some Processor, cpu, float32"],
    "leave_one_out": {
        "groups": [
            {
                "group": "trec",
                "rule": "pilot",
                "regret": 0.875,
                "regret_at_cost": 0.75,
                "regret_cross_fitted": 0.5,
                "regret_at_cost_cross_fitted": 0.375,
                "behind_full": 0.25,
                "cost_share": 0.53,
                "worst": 1.75,
                "worst_at_cost": 1.5,
            }
        ]
    },
    "sensitivity": [
        {
            "what": "cost cap 30%",
            "rule": "salf",
            "groups": 7,
            "groups_behind": 7,
            "cost_share": 0.28,
            "behind_full": 4.375,
            "regret": 5.125,
            "regret_at_cost": 0.25,
            "worst": 12.0,
            "worst_at_cost": 1.6875,
        }
    ],
    "rules": {
        "probe": {
            **RULE,
            "over_default": {"difference": 3.0625, "low": 2.5, "high": 3.5, "groups": 7, "p_holm": 0.027},
        },
        "salf": {
            **RULE,
            "rule": "salf",
            "rank": 1,
            "regret": 8.0625,
            "rank_correlation": None,
            "degenerate": "sees the cost alone",
        },
    },
    "leading": "embedded",
    "interaction": [
        {
            "model": "embedded",
            "boundaries": "0 8 15",
            "data_sets": 10,
            "observed": 5.375,
            "noise": 1.5625,
            "noise_high": 2.4375,
            "p": 0.0002,
            "excess": 1.9375,
        }
    ],
    "headroom": [
        {
            "model": model,
            "picked_by": "cross-fitted",
            "aim": "trade 11",
            "cost_share": 0.36,
            "behind_full": 0.8125,
            "fixed_behind_full": 3.125,
            "gain": gain,
            "gain_error": 1.1875,
            "least_gain": 1.25,
        }
        for model, gain in (("embedded", 2.3125), ("toy", 7.75))
    ],
    "alone": {"model": "embedded", "rules": {"probe": {**RULE, "behind_full": 0.3125}}},
    "coverage": [
        {
            "source": "loss",
            "fitted": 4,
            "asked": 5,
            "laws": {"broken_power": 3, "power": 1},
            "cases": 2,
            "places": 12,
            "covered": 0.9375,
            "nominal": 0.9,
        }
    ],
}


def drawn() -> str:
    return standalone(panel("study-trec", "Title", "Described", lambda axes: axes.plot([0, 1], [0, 1])))[1]


@pytest.fixture
def page(chain_of):
    chain = chain_of(seeds=(1,))
    (chain.root / "reports/study/figures").mkdir(parents=True)
    write_json(chain.root / "reports/study/summary.json", SUMMARY)
    write_text(chain.root / "reports/study/figures/a-embedded.svg", drawn())
    write_text(chain.root / "reports/study/figures/depth.svg", drawn().replace("study-trec", "study-depth"))
    main(chain.argv())
    return chain.page.read_text(encoding="utf-8")


def test_the_study_is_shown_with_its_headline_and_every_exact_number(page):
    assert 'id="study"' in page
    assert "probe: 0.44 points &lt;b&gt;behind&lt;/b&gt; the best." in page
    assert (
        "84 of 90 fine-tunes of embedded on trec and sst5, 2 to 3 seeds, the same for all boundaries of a data set; "
        "measured on Some Processor, cpu, float32. 12 learning rates were tuned on validation data, for a region of "
        "boundaries or a method each; 1 of them lies at an end of what was tried."
    ) in page
    for value in (
        0.4375,
        8.0625,
        -0.0625,
        0.375,
        0.875,
        0.9375,
        3.0625,
        4.375,
        1.6875,
        -0.6875,
        -0.8125,
        -0.3125,
        0.3125,
        2.3125,
        1.9375,
    ):
        assert f'<data value="{value}">' in page
    for words in (
        "With embedded alone. Every selector, mean over datasets",
        "With embedded alone. What every selector misses",
        "7 sets\np 0.003 and 0.510",
        "not counted: sees the cost alone",
        "± 1.19",
        "9 of 11",
        "2 interpolated",
        "2.5 to 3.5, 7 sets",
        "on 6",
        "cost cap 30%",
        "4 of 5",
        "broken power 3, power 1",
    ):
        assert words in page
    assert f"and 150{THIN}% to decide" in page
    assert '<data value="7.75">' not in page  # a toy model's headroom is in headroom.csv alone
    assert page.index("With embedded alone.") < page.index("All models.")


def test_its_figures_take_the_pages_colours(page):
    figure = page.partition('id="study-trec"')[2].partition("</svg>")[0]
    assert "<path" in figure
    assert "<style>" not in figure
    assert "--ink:" not in figure
    assert "var(--" in figure


def test_what_is_over_all_data_sets_comes_first(page):
    shown = page.partition('id="study"')[2]
    assert 0 < shown.index("What freezing costs") < shown.index("Quality against the boundary: a-embedded")


def test_a_figure_for_a_page_is_the_panel_that_its_file_was_made_from():
    svg = panel("a", "Title", "Described", lambda axes: axes.plot([0, 1], [0, 1]))
    assert inline(standalone(svg)[1]) == svg
    with pytest.raises(ValueError, match="not a file of a panel"):
        inline("<svg></svg>")


def test_no_section_without_a_study(pages):
    assert 'id="study"' not in pages["good"][1]


def test_a_study_of_another_version_is_one_line():
    with pytest.raises(UserError, match=r"summary\.json: of another version; run: python -m stages\.study"):
        study_section({**SUMMARY, "schema": 1}, {})


def test_the_study_that_lies_in_the_repository_is_shown():
    """Its summary was written by this analysis, and its figures are all there."""
    folder = Path(__file__).parents[2] / "reports/study"
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    figures = {file.stem: file.read_text(encoding="utf-8") for file in (folder / "figures").glob("*.svg")}
    section = study_section(summary, figures)
    assert [table.name for table in section.tables][:3] == [
        "study-left-out",
        "study-rules-alone",
        "study-regrets-alone",
    ]
    assert len(section.figures) == len(summary["seeds_each"]) + 2
