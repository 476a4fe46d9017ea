"""Command line of the report stage."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from salf.files import replacing_folder, write_text
from stages.common.command import exit_code, parser_of
from stages.common.params import load_params
from stages.report.artifacts import load
from stages.report.page import build, render, summary

_PLACES: Final = {
    "base": ("data/base", "folder of the base model"),
    "prepared": ("data/prepared", "folder of the prepared data"),
    "traces": ("data/traces", "folder of the trace"),
    "law": ("reports/scaling_law.json", "fitted laws"),
    "gains": ("reports/gains.csv", "gain of every layer"),
    "plan": ("data/plan/freeze_plan.json", "freeze plan"),
    "models": ("data/models", "folder of the fine-tuned models"),
    "measured": ("reports/runs", "folder of measured seconds and memory"),
    "metrics": ("reports/metrics.json", "scores and costs"),
    "comparison": ("reports/comparison.csv", "the same as a table"),
    "predictions": ("reports/predictions.parquet", "answers to the test examples"),
    "few": ("reports/few-shot.csv", "table of make few-shot"),
    "study": ("reports/study", "folder of the study's summary and figures, written by make study"),
    "params": ("params.yaml", "parameters"),
    "out": ("reports/index.html", "page to write"),
    "figures": ("reports/figures", "folder for the page's figures, one SVG file each"),
}
_PARSER: Final = parser_of(
    "report",
    "Write one self-contained HTML page about the whole chain, or print its summary.\n\n"
    "Every option may be left out: the example shows the defaults.",
    _PLACES,
    optional=_PLACES,
)
_PARSER.set_defaults(**{name: Path(place) for name, (place, _) in _PLACES.items()})
_PARSER.add_argument("--summary", action="store_true", help="print the summary and write nothing")


def main(argv: Sequence[str] | None = None) -> None:
    """Write the page, or with ``--summary`` print the summary and write nothing."""
    options = _PARSER.parse_args(argv)
    artifacts = load(options, load_params(options.params))
    if options.summary:
        print(summary(artifacts, options.out))
        return
    page = build(artifacts)
    write_text(options.out, render(page))
    with replacing_folder(options.figures) as folder:
        for figure in (one for section in page.sections for one in section.figures):
            write_text(folder / f"{figure.name}.svg", f"{figure.svg}\n")
    print(f"{page.headline.title}\nreport: {options.out}")


if __name__ == "__main__":
    sys.exit(exit_code(main, parser=_PARSER))
