"""From sections to one self-contained HTML page."""

from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from stages.common.figures.palette import style_sheet
from stages.common.figures.svg import standalone
from stages.report import cost, depth, evidence, lineage, quality, rules, speed, study
from stages.report.answer import KeyFigure, answer, key_figures
from stages.report.artifacts_in import Artifacts
from stages.report.headline import Headline, headline
from stages.report.tables import Section
from stages.report.wording import layer_range

_ROOM: Final = Path(__file__).parent
_TEMPLATE: Final = "page.html.j2"
_STYLE: Final = "style.css"


@dataclass(frozen=True)
class Page:
    """Everything on the page, in the order of reading."""

    model: str
    task: str
    headline: Headline
    layers: int
    boundary: int
    key_figures: list[KeyFigure]
    sections: list[Section]

    @property
    def scope(self) -> dict[str, str]:
        """The frozen and the trained layers in words."""
        return {"frozen": layer_range(1, self.boundary), "trained": layer_range(self.boundary + 1, self.layers)}


def build(artifacts: Artifacts, parameters: Mapping[str, Any], examples_shown: int, folder: Path) -> Page:
    """Compute every section.

    Args:
        artifacts: see :class:`Artifacts`.
        parameters: the whole of params.yaml, for the run's identity.
        examples_shown: how many test examples are printed.
        folder: the project's folder, whose commit the page names.
    """
    found = answer(artifacts)
    plan = artifacts.plan
    measured = speed.speed_section(artifacts.benchmarks)
    studied = study.study_section(artifacts.study, artifacts.study_figures)
    sections = [
        quality.quality_section(artifacts, found.metric),
        quality.curves_section(artifacts),
        depth.trace_section(artifacts),
        depth.law_section(artifacts),
        depth.gains_section(artifacts),
        cost.frontier_section(plan),
        cost.certainty_section(plan),
        rules.rules_section(plan),
        *([studied] if studied else []),
        *([measured] if measured else []),
        evidence.examples_section(artifacts.predictions, found.method.name if found.method else None, examples_shown),
        evidence.data_section(artifacts),
        evidence.model_section(artifacts),
        evidence.exports_section(artifacts),
        lineage.lineage_section(artifacts),
        evidence.identity_section(artifacts, parameters, folder),
    ]
    return Page(
        model=artifacts.base["name"],
        task=str(artifacts.meta.get("task", "")),
        headline=headline(found.facts),
        layers=plan.model.layers,
        boundary=found.facts.boundary,
        key_figures=key_figures(found, plan),
        sections=sections,
    )


def standalone_figures(page: Page) -> dict[str, str]:
    """Every figure as the text of an SVG file of its own, by its name on the page."""
    return dict(standalone(figure.svg) for section in page.sections for figure in section.figures)


def render(page: Page) -> str:
    """Fill the template; every text from an artifact is escaped, only our own SVG, CSS and script are not."""
    environment = Environment(
        loader=FileSystemLoader(_ROOM), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["svg"] = Markup
    environment.filters["sha256"] = lambda text: b64encode(sha256(text.encode()).digest()).decode()
    style = Markup(style_sheet() + "\n" + (_ROOM / _STYLE).read_text(encoding="utf-8"))
    return environment.get_template(_TEMPLATE).render(page=page, style=style) + "\n"
