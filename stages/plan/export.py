"""``python -m stages.plan export``: a plan in another tool's words, on standard output or in a file."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from stages.common.artifacts import write_text
from stages.common.export_formats import FORMATS
from stages.common.freeze_plan import FreezePlan


def main(argv: Sequence[str]) -> None:
    """Write a freeze plan for another tool."""
    args = _parser().parse_args(argv)
    text = FORMATS[args.format](FreezePlan.load(args.plan))
    if args.out is None:
        print(text)
    else:
        write_text(args.out, f"{text}\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m stages.plan export",
        description="Write a freeze plan for another tool: a call (peft), Python code (trainer, trl), entries of a "
        "configuration file (axolotl, llama-factory) or the names of what trains (torchtune, names).",
        epilog="example: python -m stages.plan export --format axolotl",
    )
    default = Path("data/plan")
    parser.add_argument("--format", choices=FORMATS, required=True, help="the tool")
    parser.add_argument("--plan", type=Path, default=default, help=f"the plan's file or folder (default: {default})")
    parser.add_argument("--out", type=Path, help="the file to write (default: standard output)")
    return parser
