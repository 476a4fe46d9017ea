"""Stage ``fit``: traces → reports/scaling_law.json, reports/gains.csv."""

import csv
import io
import sys
from collections.abc import Iterable, Sequence
from math import isnan
from typing import Final

from rich.console import Console

from salf.evidence import LayerGain, ScalingLaw
from salf.files import write_text
from stages.common.command import exit_code, parser_of
from stages.common.params import Fit, Room
from stages.fit.analysis import analyse
from stages.fit.traces import read_traces

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
    """The parameters that this stage reads."""

    fit: Fit


def main(argv: Sequence[str] | None = None) -> None:
    """Read traces, fit, write both artifacts."""
    args = _PARSER.parse_args(argv)
    params = FitRoom.load().fit
    traces = read_traces(args.traces)
    console = Console()
    with console.status("fitting"):
        analyses = {name: analyse(name, curves, params) for name, curves in traces.curves.items()}
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
    law.save(args.law)
    write_text(args.gains, _table(gain for _, gains in analyses.values() for gain in gains))
    for found, _ in analyses.values():  # the report page shows the rest
        for line in (found.verdict, *(f"  note: {note}" for note in found.notes)):
            console.print(line, highlight=False, markup=False)


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


if __name__ == "__main__":
    sys.exit(exit_code(main, parser=_PARSER))
