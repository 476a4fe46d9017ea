"""The study's section of the page."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from salf.errors import UserError
from salf.files import write_json, write_text
from stages.common.figures import panel
from stages.common.study_page import FILE, StudyPage, StudyTable
from stages.report.__main__ import main
from stages.report.evidence import study_section

RULES = StudyTable(
    caption="Each selector",
    headings=["selector", "FLOPs", "better"],
    rows=[["`probe`", [0.53, "53 % + 150 %"], [-0.8125, "−0.81 [−1.50, 0.25]"]], ["`salf`*", [0.28, "28 %"], ""]],
)
SHOWN = StudyPage(
    headline="probe: 0.44 points <b>worse</b> than the best.",
    scope="84 of 90 fine-tunes.",
    tables={"rules of embedded": RULES, "quality of embedded": RULES.model_copy(update={"caption": "Docs only"})},
    report=["rules of embedded"],
)


def drawn() -> str:
    return panel("study-trec", "Title", "Described", lambda axes: axes.plot([0, 1], [0, 1]))


@pytest.fixture
def page(chain_of):
    chain = chain_of(seeds=(1,))
    (chain.root / "reports/study/figures").mkdir(parents=True)
    SHOWN.write(chain.root / "reports/study")
    write_text(chain.root / "reports/study/figures/balance.svg", drawn())
    write_text(chain.root / "reports/study/figures/methods.svg", drawn().replace("study-trec", "study-methods"))
    main(chain.argv())
    return chain.page.read_text(encoding="utf-8")


def test_the_study_is_shown_with_its_headline_and_every_exact_number(page):
    assert 'id="study"' in page
    assert "probe: 0.44 points &lt;b&gt;worse&lt;/b&gt; than the best." in page
    assert "84 of 90 fine-tunes." in page
    for value, text in ((0.53, "53 % + 150 %"), (-0.8125, "−0.81"), (0.28, "28 %")):
        assert f'<data value="{value}">{text}</data>' in page
    assert "<small>[−1.50, 0.25]</small>" in page
    assert "salf*" in page
    assert "Docs only" not in page


def test_its_figures_take_the_pages_colours(page):
    figure = page.partition('id="study-trec"')[2].partition("</svg>")[0]
    assert "<path" in figure
    assert "--ink:" not in figure
    assert "var(--ink, #" in figure or "var(--muted, #" in figure


def test_what_methods_cost_and_gain_comes_first(page):
    shown = page.partition('id="study"')[2]
    assert 0 < shown.index("What each method costs and gains") < shown.index("What the trace promises")


def test_no_section_without_a_study(pages, tmp_path):
    assert 'id="study"' not in pages["good"][1]
    assert StudyPage.read(tmp_path) is None


def test_a_study_of_another_version_is_one_line(tmp_path):
    write_json(tmp_path / FILE, {**SHOWN.model_dump(), "version": 2})
    with pytest.raises(UserError, match=r"page\.json: of another version; run: python -m stages\.study --analyse"):
        StudyPage.read(tmp_path)


def test_the_committed_study_is_shown():
    folder = Path(__file__).parents[2] / "reports/study"
    figures = {file.stem: file.read_text(encoding="utf-8") for file in (folder / "figures").glob("*.svg")}
    section = study_section(SimpleNamespace(study=StudyPage.read(folder), study_figures=figures))
    assert [table.name for table in section.tables][:2] == ["study-methods", "study-default-left-out"]
    assert len(section.figures) == len(figures) == 2
