"""The command ``salf``: what a model, or a plan that is at hand, can answer without the pipeline."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from salf import law_command
from salf.answer_folder import is_answer_side
from salf.errors import BAD_INPUT, UserError
from salf.export import FORMATS
from salf.files import write_text
from salf.plan import FreezePlan
from salf.scale import command as scale
from salf.summary import summary

_PLAN = Path("data/plan")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, or 2 with one line that says what is wrong."""
    arguments = _parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    return 0


def _show(arguments: argparse.Namespace) -> None:
    print(*summary(FreezePlan.load(arguments.plan)), sep="\n")


def _export(arguments: argparse.Namespace) -> None:
    folder = arguments.plan if arguments.plan.is_dir() else arguments.plan.parent
    if is_answer_side(folder):
        raise UserError(f"{folder}: weights that act after the prompt part alone, which no other tool can express")
    text = FORMATS[arguments.format](FreezePlan.load(arguments.plan))
    if arguments.out is None:
        print(text)
    else:
        write_text(arguments.out, f"{text}\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="salf", description="Where to fine-tune a language model.")
    commands = parser.add_subparsers(required=True, metavar="command")

    show = commands.add_parser(
        "show", help="print a freeze plan in readable form", epilog="example: salf show data/models/salf-seed1"
    )
    show.add_argument("plan", type=Path, nargs="?", default=_PLAN, help=f"the plan's file or folder (default: {_PLAN})")
    show.set_defaults(run=_show)

    export = commands.add_parser(
        "export",
        help="write a freeze plan for another tool",
        description="Write a freeze plan for another tool: a call (peft), Python code (trainer, trl), entries of a "
        "configuration file (axolotl, llama-factory) or the names of what trains (names).",
        epilog="example: salf export --format axolotl",
    )
    export.add_argument("--format", choices=FORMATS, required=True, help="the tool")
    export.add_argument("--plan", type=Path, default=_PLAN, help=f"the plan's file or folder (default: {_PLAN})")
    export.add_argument("--out", type=Path, help="the file to write (default: standard output)")
    export.set_defaults(run=_export)

    estimate = commands.add_parser(
        "scale",
        help="estimate what each boundary would cost a model, from its configuration",
        description=scale.DESCRIPTION,
        epilog="example: salf scale --config llama-8b llama-70b --device h100 --rows 20000",
    )
    scale.add_arguments(estimate)
    estimate.set_defaults(run=scale.run)

    laws = commands.add_parser(
        "law",
        help="say which method is better at which number of examples, from a table of runs",
        description=law_command.DESCRIPTION,
        epilog="example: salf law runs.csv --factor rank",
    )
    law_command.add_arguments(laws)
    laws.set_defaults(run=law_command.run)
    return parser
