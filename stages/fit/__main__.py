"""Stage ``fit``: traces → reports/scaling_law.json, reports/gains.csv."""

import csv
import io
import sys
from collections.abc import Iterable, Sequence
from math import isnan
from typing import Final, get_args

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from salf.evidence import DepthLaw, LayerGain, ScalingLaw, Stability
from salf.files import write_json, write_text
from salf.selectors import OF_THE_POWER_LAW, GainName, Quantity
from stages.common.command import exit_code, parser_of
from stages.common.params import Fit, Room
from stages.fit.analysis import analyse
from stages.fit.traces import read_traces

_TOP: Final = 3
_PARSER: Final = parser_of(
    "fit",
    "Fit scaling laws over depth to traces, and compute the gain of every layer.",
    {
        "traces": ("data/traces", "folder of part-*.parquet, made by stages.trace"),
        "law": ("reports/scaling_law.json", "JSON to write: laws, intervals, verdict"),
        "gains": ("reports/gains.csv", "CSV to write: gain of every layer"),
    },
)


class FitRoom(Room):
    """What this stage reads."""

    fit: Fit


def main(argv: Sequence[str] | None = None) -> None:
    """Read traces, fit, write both artifacts."""
    args = _PARSER.parse_args(argv)
    params = FitRoom.load().fit
    traces = read_traces(args.traces)
    console = Console()
    with console.status("fitting") as status:
        analyses = {
            name: analyse(name, curves, params, lambda what: status.update(f"fitting {what}"))
            for name, curves in traces.curves.items()
        }
    law = ScalingLaw(
        schema=1,
        layers=traces.layers,
        examples=traces.examples,
        positions=traces.positions,
        trace_sha256=traces.sha256,
        confidence=params.confidence,
        trace=traces.origin,
        quantities={name: found for name, (found, _) in analyses.items()},
    )
    write_json(args.law, law.model_dump(mode="json", by_alias=True))
    write_text(args.gains, _table(gain for _, gains in analyses.values() for gain in gains))
    for name, (found, gains) in analyses.items():
        _show(name, found, gains, console)


def _table(gains: Iterable[LayerGain]) -> str:
    """The content of ``gains.csv``: one row per quantity, gain and layer; empty where a gain is undefined."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(LayerGain.model_fields)
    for gain in gains:
        *cells, step = (value for _, value in gain)
        known = ["" if isinstance(value, float) and isnan(value) else value for value in cells]
        writer.writerow([*known, str(step).lower()])
    return text.getvalue()


def _show(quantity: Quantity, found: DepthLaw, gains: Sequence[LayerGain], console: Console) -> None:
    """Print the laws of a quantity, the verdict, and the layers of the largest gains."""
    table = Table("law", "spaces", "r²", "rmse", "AICc", "left-out layers' rmse", title=quantity)
    for law in found.laws:
        name = f"{law.name} {'(fits)' if found.fits else '(nearest)'}" if law.name == found.best else law.name
        spaces = f"{law.first_space}–{len(law.curve)}"
        table.add_row(
            name, spaces, _cell(law.r2, ".3f"), _cell(law.rmse, ".3g"), _cell(law.aicc, ".1f"),
            _cell(law.holdout_rmse, ".3g"),
        )  # fmt: skip
    console.print(table)
    console.print(escape(found.verdict))
    for name in get_args(GainName):
        doubt = "" if found.power_fits or name not in OF_THE_POWER_LAW else ", by a law that does not fit"
        largest = _largest([gain for gain in gains if gain.gain == name])
        console.print(f"  {name:8} gain is largest at {largest}{doubt}", highlight=False)
    for kind, stability in found.stability.items():
        console.print(f"  {kind} gain: {_agreement(stability)}", highlight=False)
    for note in found.notes:
        console.print(f"  note: {escape(note)}", highlight=False)


def _cell(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _largest(gains: Sequence[LayerGain]) -> str:
    """The layers that win most often, then by value."""
    competing = sorted(gains[1:], key=lambda gain: (-gain.win_share, -gain.value))
    if not competing or any(isnan(gain.value) for gain in competing):
        return "no layer: undefined here"
    winners = [f"layer {gain.layer} ({gain.win_share:.1%})" for gain in competing[:_TOP] if gain.win_share > 0]
    return ", ".join(winners) + " of the resamples"


def _agreement(stability: Stability) -> str:
    if stability.enough is None:
        last = stability.sizes[-1]
        return f"draws of all {last.examples} examples agree on layer {stability.layer} in {last.same_layer:.0%}"
    return f"{stability.enough} examples name layer {stability.layer} in {stability.stable_share:.0%} of draws or more"


if __name__ == "__main__":
    sys.exit(exit_code(main))
