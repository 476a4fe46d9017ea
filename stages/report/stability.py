"""How many traced examples the plan needs: the named layer against the sample's size."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from stages.common.figures.palette import ACCENT, INK
from stages.common.figures.svg import panel
from stages.report.artifacts_in import Artifacts
from stages.report.tables import Cell, Column, Figure, Section, Table, number_cell
from stages.report.wording import count, percent


def add_stability(section: Section, artifacts: Artifacts) -> None:
    """Add figure and table of the plan's gain, where the law's artifact holds its stability (local and observed)."""
    plan = artifacts.plan
    found = (artifacts.law or {}).get("quantities", {}).get(plan.quantity, {}).get("stability", {}).get(plan.gain)
    if not found:
        return
    sizes, most = found["sizes"], count(found["sizes"][-1]["examples"])
    title = _title(found)
    svg = _figure(title, sizes, found["stable_share"], found["layer"])
    caption = (
        f"Draws with replacement from the {most} traced examples replace fresh samples of each size. "
        f"Dashed: {percent(found['stable_share'])}, from which a choice counts as certain."
    )
    section.figures.append(Figure(title, svg, caption))
    section.tables.append(_table(sizes, found["layer"], (artifacts.law or {}).get("confidence")))


def _title(found: Mapping[str, Any]) -> str:
    if found["enough"] is None:
        return f"{count(found['sizes'][-1]['examples'])} examples do not settle the layer"
    return f"{count(found['enough'])} examples would have been enough to name layer {found['layer']}"


def _figure(title: str, sizes: Sequence[Mapping[str, Any]], stable: float, layer: int) -> str:
    examples = [size["examples"] for size in sizes]

    def paint(axes: Axes) -> None:
        axes.axhline(stable, color=INK, linewidth=1, linestyle=(0, (3, 2)))
        axes.plot(examples, [size["same_layer"] for size in sizes], "o-", color=ACCENT, linewidth=2, markersize=4)
        axes.set_xscale("log", base=2)
        axes.set_xticks(examples, [str(n) for n in examples])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlim(examples[0] / 1.2, examples[-1] * 1.2)
        axes.set_ylim(0, 1.05)
        axes.set_xlabel("examples drawn")
        axes.set_ylabel(f"share that names layer {layer}")

    described = (
        f"Line: share of draws in which layer {layer}, the one that all examples name, has the largest gain, "
        f"against the number of examples drawn; dashed line: {percent(stable)}."
    )
    return panel("fig-stability", title, described, paint)


def _table(sizes: Sequence[Mapping[str, Any]], layer: int, confidence: float | None) -> Table:
    columns = [
        Column("Examples"),
        Column(f"Name layer {layer}"),
        Column(f"Named layer, {percent(confidence)} of draws", numeric=False),
        Column("Named most often", numeric=False),
    ]
    rows = [
        [
            number_cell(size["examples"], count(size["examples"])),
            number_cell(size["same_layer"], percent(size["same_layer"])),
            Cell(str(size["low"]) if size["low"] == size["high"] else f"{size['low']}–{size['high']}"),
            Cell(_most_often(size["layers"])),
        ]
        for size in sizes
    ]
    return Table("stability", "The layer that samples of growing size would have named.", columns, rows)


def _most_often(layers: Mapping[str, float]) -> str:
    first = sorted(layers.items(), key=lambda item: (-item[1], int(item[0])))[:3]
    return ", ".join(f"{layer} ({percent(share)})" for layer, share in first)
