"""The ``fit`` stage: traces in, scaling laws and gains out."""

import argparse
import csv
import io
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console

from salf.files import significant, write_json, write_text
from stages.common.command import exit_code
from stages.common.params import Fit, Room
from stages.fit.quantity import DIGITS, Analysis, analyse, artifact
from stages.fit.summary import show
from stages.fit.traces import Traces, read_traces

SCHEMA = 1
COLUMNS = ("quantity", "gain", "layer", "value", "low", "high", "win_share", "embedding_step")


class FitRoom(Room):
    """The parameters that this stage reads."""

    fit: Fit


def main(argv: Sequence[str] | None = None) -> None:
    """Read traces, fit, write both artifacts.

    Raises:
        UserError: bad parameters or traces.
    """
    arguments = _parser().parse_args(argv)
    params = FitRoom.load().fit
    traces = read_traces(arguments.traces)
    console = Console()
    with console.status("fitting") as status:
        analyses = [
            analyse(name, curves, params, lambda what: status.update(f"fitting {what}"))
            for name, curves in traces.curves.items()
        ]
    write_json(arguments.law, scaling_law(traces, analyses, params))
    write_text(arguments.gains, gains_table(analyses))
    for analysis in analyses:
        show(analysis, console)


def scaling_law(traces: Traces, analyses: Sequence[Analysis], params: Fit) -> dict[str, object]:
    """The content of ``scaling_law.json``."""
    origin = {key: traces.origin.get(key) for key in ("model", "weights_sha256", "space", "target", "dtype")}
    return {
        "schema": SCHEMA,
        "layers": traces.layers,
        "examples": traces.examples,
        "positions": traces.positions,
        "trace_sha256": traces.sha256,
        "confidence": params.confidence,
        "trace": origin,
        "quantities": {analysis.name: artifact(analysis, params.confidence) for analysis in analyses},
    }


def gains_table(analyses: Sequence[Analysis]) -> str:
    """The content of ``gains.csv``: one row per quantity, gain and layer; empty where a gain is undefined."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for analysis in analyses:
        for gain in analysis.gains:
            rows = zip(gain.value, gain.low, gain.high, gain.win_share, strict=True)
            for layer, (value, low, high, share) in enumerate(rows, start=1):
                numbers = [_cell(value), _cell(low), _cell(high), _cell(share)]
                writer.writerow([analysis.name, gain.name, layer, *numbers, "true" if layer == 1 else "false"])
    return text.getvalue()


def _cell(value: float) -> float | str:
    return significant(float(value), DIGITS) if np.isfinite(value) else ""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m stages.fit",
        description="Fit scaling laws over depth to traces, and compute the gain of every layer.",
        epilog="example: python -m stages.fit --traces data/traces --law reports/scaling_law.json"
        " --gains reports/gains.csv",
    )
    parser.add_argument("--traces", type=Path, required=True, help="folder of part-*.parquet, made by stages.trace")
    parser.add_argument("--law", type=Path, required=True, help="JSON to write: laws, intervals, verdict")
    parser.add_argument("--gains", type=Path, required=True, help="CSV to write: gain of every layer")
    return parser


if __name__ == "__main__":
    sys.exit(exit_code(main))
