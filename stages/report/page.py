"""From sections to one self-contained HTML page, and its summary for the terminal."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from salf.metrics import SCORES
from stages.common.figures import style_sheet
from stages.report import beyond, choice, depth, evidence, quality
from stages.report.answer import Facts, Headline, chosen_method, facts_of, headline
from stages.report.artifacts import Artifacts
from stages.report.parts import Section
from stages.report.wording import decimal, layer_range, parameters, percent, seconds, size, span

_ROOM: Final = Path(__file__).parent

# The page in the order of reading; a section that has nothing to say is None.
_SECTIONS: Final[tuple[Callable[[Artifacts], Section | None], ...]] = (
    quality.quality_section,
    beyond.beyond_section,
    quality.few_section,
    quality.curves_section,
    quality.race_section,
    depth.trace_section,
    depth.law_section,
    depth.gains_section,
    choice.frontier_section,
    choice.certainty_section,
    choice.selectors_section,
    evidence.study_section,
    evidence.examples_section,
    evidence.data_section,
    evidence.model_section,
    evidence.identity_section,
)


@dataclass(frozen=True)
class Page:
    """Everything on the page, in the order of reading."""

    model: str
    task: str
    headline: Headline
    facts: Facts
    key_figures: list[tuple[str, str, str]]
    sections: list[Section]


def build(artifacts: Artifacts) -> Page:
    """Compute the answer and every section."""
    facts = facts_of(artifacts)
    return Page(
        model=artifacts.base.name,
        task=artifacts.meta.task,
        headline=headline(facts),
        facts=facts,
        key_figures=_key_figures(artifacts, facts),
        sections=[section for make in _SECTIONS if (section := make(artifacts))],
    )


def _key_figures(artifacts: Artifacts, facts: Facts) -> list[tuple[str, str, str]]:
    """The numbers of the first screen: (what it is, the number, what it is made of)."""
    plan, method = artifacts.plan, chosen_method(artifacts)
    full = next((m for m in artifacts.methods if m.name == "full"), None)
    tiles = []
    if facts.partial:
        note = f"full: {decimal(facts.full.value)}" if facts.full else span(facts.partial)
        tiles.append((f"test {SCORES[facts.metric]}", decimal(facts.partial.value), note))
    backward = (method.record if method else plan.frontier[facts.boundary]).flops_backward_share
    how = "counted" if method else "predicted"
    tiles.append(("of full’s FLOPs", percent(facts.cost), f"{how}; {percent(backward)} of its backward FLOPs"))
    if method and full:
        mine, theirs = method.measured, full.measured
        note = f"{seconds(mine.seconds)} against {seconds(theirs.seconds)}"
        tiles.append(("of full’s training time", percent(mine.seconds_share), note))
        note = f"{size(mine.peak_memory_bytes)} against {size(theirs.peak_memory_bytes)}"
        tiles.append(("of full’s peak memory", percent(mine.peak_memory_share), note))
    trained, total = plan.frontier[facts.boundary].trained_parameters, plan.parameters.total
    made_of = f"{parameters(trained)} of {parameters(total)}"
    tiles.append(("of parameters trained", percent(trained / total), made_of))
    if plan.certainty.win_share is not None:
        tiles.append(("of resamples choose it", percent(plan.certainty.win_share), f"boundary {plan.boundary}"))
    return tiles


def render(page: Page) -> str:
    """Fill the template; every text from an artifact is escaped, only our own SVG and CSS are not."""
    environment = Environment(
        loader=FileSystemLoader(_ROOM), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["svg"] = Markup
    environment.globals["layer_range"] = layer_range
    style = Markup(style_sheet() + "\n" + (_ROOM / "style.css").read_text(encoding="utf-8"))
    return environment.get_template("page.html.j2").render(page=page, style=style) + "\n"


def summary(artifacts: Artifacts, page: Path) -> str:
    """The boundary and its reason, quality and cost, and where the page is."""
    plan, said = artifacts.plan, headline(facts_of(artifacts))
    boundary = (
        f"Boundary {plan.boundary} of {plan.model.layers}: {layer_range(1, plan.boundary)} frozen, "
        f"{layer_range(plan.boundary + 1, plan.model.layers)} trained."
    )
    lines = [said.title, "", boundary, plan.reason, plan.certainty.words, "", said.verdict, *said.notes, ""]
    for found in quality.quality_section(artifacts).tables[:2] if artifacts.methods else ():
        rows = [[cell.text for cell in row] for row in found.body]
        lines += [pd.DataFrame(rows, columns=list(found.headings)).iloc[:, :7].to_string(index=False), ""]
    return "\n".join([*lines, f"Report: {page}"])
