"""The summary at the end of ``make run``: the boundary and why, quality and cost, and where the page is."""

from collections.abc import Mapping
from pathlib import Path

from rich.box import SIMPLE
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from stages.report.answer import Answer, answer
from stages.report.artifacts_in import Artifacts
from stages.report.headline import headline
from stages.report.quality import BASELINE_NAMES, OVER_CLASSES, SCORES, Method, baselines, methods
from stages.report.wording import Interval, decimal, layer_range, parameters, percent, seconds, size, span


def print_summary(artifacts: Artifacts, page: Path, console: Console) -> None:
    """Print the summary; every number comes from the artifacts."""
    found = answer(artifacts)
    console.print(Panel(_words(artifacts, found), padding=(1, 2)))
    compared = methods(artifacts)
    if compared:
        console.print(_quality(compared, artifacts, found.metric), _costs(compared))
    console.print(Text.assemble("Report: ", (str(page), "bold")), soft_wrap=True)


def _words(artifacts: Artifacts, found: Answer) -> RenderableType:
    plan, said = artifacts.plan, headline(found.facts)
    boundary = (
        f"Boundary {plan.boundary} of {plan.model.layers}: {layer_range(1, plan.boundary)} frozen, "
        f"{layer_range(plan.boundary + 1, plan.model.layers)} trained."
    )
    lines = ["", boundary, plan.reason, plan.certainty.words, "", said.verdict, *said.notes]
    return Group(Text(said.title, style="bold"), *(Text(line) for line in lines))


def _quality(compared: list[Method], artifacts: Artifacts, metric: str) -> Table:
    others = [name for name in OVER_CLASSES if name in compared[0].scores]
    table = _table("Quality on the test split", *(SCORES[name] for name in (metric, *others)))

    def scores(found: Mapping[str, Interval]) -> list[str]:
        lead = f"{decimal(found[metric].value)} {span(found[metric])}" if metric in found else decimal(None)
        return [lead, *(decimal(found[name].value) for name in others)]

    for method in compared:
        table.add_row(method.name, *scores(method.scores))
    for name, found in baselines(artifacts).items():
        table.add_row(Text(BASELINE_NAMES[name], style="dim"), *scores(found))
    return table


def _costs(compared: list[Method]) -> Table:
    table = _table("Cost", "trained", "FLOPs of full", "training time", "peak memory")
    for m in compared:
        costs = (parameters(m.trained), percent(m.cost_share), seconds(m.seconds), size(m.peak_memory))
        table.add_row(m.name, *costs)
    return table


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE)
    table.add_column("method")
    for heading in headings:
        table.add_column(heading, justify="right")
    return table
