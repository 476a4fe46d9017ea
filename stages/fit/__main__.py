"""Stage ``fit``: traces → reports/scaling_law.json, reports/gains.csv."""

import sys
from collections.abc import Sequence
from typing import Any, Final

from rich.console import Console

from salf.evidence import ScalingLaw
from salf.metrics import write_csv
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
        layers=traces.layers,
        examples=traces.examples,
        positions=traces.positions,
        trace_sha256=traces.sha256,
        confidence=params.confidence,
        trace=traces.origin,
        quantities={name: found for name, (found, _) in analyses.items()},
    )
    law.save(args.law)
    rows = [gain.model_dump() for _, gains in analyses.values() for gain in gains]
    write_csv(args.gains, [{column: _cell(value) for column, value in row.items()} for row in rows])
    for found, _ in analyses.values():  # the report page shows the rest
        for line in (found.verdict, *(f"  note: {note}" for note in found.notes)):
            console.print(line, highlight=False, markup=False)


def _cell(value: Any) -> Any:
    """A value of ``gains.csv``: empty where a gain is undefined, truth in lower case."""
    if isinstance(value, bool):
        return str(value).lower()
    return None if value != value else value  # NaN alone differs from itself


if __name__ == "__main__":
    sys.exit(exit_code(main, parser=_PARSER))
