"""Lineage from the command line."""

import argparse
import json
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flows import report
from flows.lineage import show, why
from flows.lineage.export import FORMATS, export
from flows.lineage.known import Universe
from flows.lineage.ledger import Ledger, record_all
from flows.lineage.project import NotFoundError, Project, open_project
from flows.lineage.verify import BusyError, verify
from salf.errors import UserError
from salf.ledger import repair

FINE, NOT_SO, BAD_USAGE, BUSY = 0, 1, 2, 3

_EXAMPLES = """examples:
  python -m flows.lineage show reports/metrics.json         from the metrics back to raw data and base model
  python -m flows.lineage show /elsewhere/salf-seed1        a model folder found anywhere, by its content
  python -m flows.lineage show 18d4e6eb                     by a hash, or its first digits
  python -m flows.lineage why plan                          what changed since the plan was made
  python -m flows.lineage verify                            recompute every hash; exit status 1 on any mismatch
  python -m flows.lineage verify --head HASH                also prove that the ledger was not truncated since
  python -m flows.lineage diff main workspace               compare freeze plans (others: dvc params|metrics diff)
  python -m flows.lineage export ro-crate --out crate       files, runs, parameters and hashes in a standard format
  python -m flows.lineage record                            add what `dvc repro` did without a flow
  python -m flows.lineage head                              the ledger's newest record, to note elsewhere
  python -m flows.lineage repair                            put damaged lines of the ledger aside
exit status: 0 fine; 1 a mismatch, or an unknown subject; 2 bad usage or an unreadable project; 3 a run is at work
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one of the commands; returns the exit status."""
    arguments = _parser().parse_args(argv)
    # A terminal without "é" shows the rest; DVC's libraries put a wrapper in the stream's place.
    getattr(sys.stdout, "reconfigure", lambda **_: None)(errors="replace")
    try:
        with open_project(arguments.project) as project:
            answer, text = _answer(project, arguments)
        print(json.dumps(answer, indent=2, ensure_ascii=False) if arguments.json else text, flush=True)
        return FINE if arguments.command != "verify" or answer["ok"] else NOT_SO
    except UserError as error:
        return report(str(error), {NotFoundError: NOT_SO, BusyError: BUSY}.get(type(error), BAD_USAGE))
    except BrokenPipeError:  # the reader has seen enough (show ... | head)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FINE
    except OSError as error:
        return report(f"{error.filename or 'output'}: {error.strerror}", BAD_USAGE)


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    text = "Show what made an artifact, whether it is still unchanged, and what changed since."
    parser = argparse.ArgumentParser(
        prog="python -m flows.lineage", description=text, epilog=_EXAMPLES, formatter_class=raw
    )
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--project", type=Path, default=Path(), metavar="DIR", help="the DVC project (here)")
    common.add_argument("--json", action="store_true", help="print JSON")
    commands = parser.add_subparsers(required=True, dest="command", metavar="command")

    def add(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, parents=[common], help=text, description=text, formatter_class=raw)

    command = add("show", "trace an artifact, file, stage or hash back to raw data and base model")
    command.add_argument("subject", help="a path (here or elsewhere), a stage, or a hash (or its first digits)")
    command = add("why", "show what changed since a stage last ran")
    command.add_argument("stage", help="a stage, or a matrix item such as finetune@salf-1")
    command = add("verify", "recompute all hashes and compare them with dvc.lock and the ledger")
    command.add_argument("--head", type=_noted, metavar="HASH", help="what `head` printed earlier; it must still exist")
    command.add_argument(
        "--accept", nargs="+", default=[], metavar="STAGE", help="take over what dvc.lock says of these; a note says so"
    )
    command.add_argument("--whole-cache", action="store_true", help="also hash cached files of older runs")
    command = add("diff", "compare the freeze plans of two commits, branches or experiments")
    command.add_argument("old", help="a commit, branch, tag or experiment, or the word workspace")
    command.add_argument("new", nargs="?", default=why.HERE, help="another (default: workspace)")
    command = add("export", "write the records as RO-Crate, OpenLineage or SLSA provenance")
    command.add_argument("format", choices=sorted(FORMATS), help="format to write")
    out = "output folder (for openlineage: a file; for ro-crate: all files are copied to it)"
    command.add_argument("--out", type=Path, metavar="PATH", help=out)
    command.add_argument("--key", type=Path, metavar="FILE", help="slsa: sign with this Ed25519 key (PEM)")
    add("record", "record what DVC has locked since the ledger's last entry")
    add("head", "number and hash of the ledger's newest record")
    add("repair", "put damaged lines of the ledger aside, and write a lost head file")
    return parser


def _noted(text: str) -> str:
    """The hash that was noted: at least 8 digits, alone or after the record's number."""
    found = re.fullmatch(r"(?:\d+ )?([0-9a-f]{8,64})", text.strip().lower())
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not the hash of a record: give at least 8 of its digits")
    return found[1]


def _answer(project: Project, given: argparse.Namespace) -> tuple[Any, str]:
    """A command's answer for programs, and for readers."""
    match given.command:
        case "show":
            lineage = show.lineage(Universe(project), given.subject)
            return lineage, show.text(lineage)
        case "why":
            changes = why.why(Universe(project), given.stage)
            return changes, why.text(changes)
        case "verify":
            found = verify(project, given.head, given.whole_cache, given.accept)
            return found.model_dump(mode="json"), found.text()
        case "diff":
            plans = why.diff(project, given.old, given.new)
            same = f"the plans of {given.old} and {given.new} do not differ"
            return plans, "\n".join(plans["plans"]) or same
        case "export":
            written = [str(path) for path in export(given.format, project, given.out, given.key)]
            return written, "\n".join(written)
        case "record":
            recorded = record_all(project.root)
            return {"recorded": recorded}, f"recorded: {', '.join(recorded) or 'nothing new'}"
        case "head":
            newest = Ledger(project.ledger).head
            if newest is None:
                raise NotFoundError("the ledger is empty: DVC has run no stage here")
            return asdict(newest), str(newest)
        case _:
            done = repair(project.ledger)
            lines = [f"line {number} was damaged: it is in records.torn now" for number in done.put_aside]
            lines += ["the lost head file was written again"] if done.new_head else []
            return lines, "\n".join(lines) or "nothing to repair"


if __name__ == "__main__":
    sys.exit(main())
