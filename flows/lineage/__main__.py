"""Lineage from the command line."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flows.lineage import diff, export, ledger, show, why
from flows.lineage.history import RevisionError
from flows.lineage.known import Universe
from flows.lineage.ledger import LedgerError
from flows.lineage.lock import LockError
from flows.lineage.project import Project, ProjectError, open_project
from flows.lineage.reconcile import record_all
from flows.lineage.verify import Report, verify
from stages.common import run_record

FINE, NOT_SO, BAD_USAGE = 0, 1, 2

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
exit status: 0 fine; 1 a mismatch, or an unknown subject; 2 bad usage or an unreadable project
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one of the commands; returns the exit status."""
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except (show.NotFoundError, RevisionError) as error:
        return _fail(str(error), NOT_SO)
    except (LedgerError, LockError, ProjectError) as error:
        return _fail(str(error), BAD_USAGE)
    except OSError as error:
        return _fail(f"{error.filename or 'output'}: {error.strerror}", BAD_USAGE)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m flows.lineage",
        description="Show what made an artifact, whether it is still unchanged, and what changed since.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--project", type=Path, default=Path(), metavar="DIR", help="the DVC project (here)")
    common.add_argument("--json", action="store_true", help="print JSON")
    commands = parser.add_subparsers(required=True, metavar="command")

    def add(name: str, text: str, run: Any) -> argparse.ArgumentParser:
        command = commands.add_parser(name, parents=[common], help=text, description=text)
        command.set_defaults(run=run)
        return command

    command = add("show", "trace an artifact, file, stage or hash back to raw data and base model", _show)
    command.add_argument(
        "subject", help="a path (in the project or elsewhere), a stage, or a hash (or its first digits)"
    )
    command = add("why", "show what changed since a stage last ran", _why)
    command.add_argument("stage", help="a stage, or a matrix item such as finetune@salf-1")
    command = add(
        "verify", "recompute the hashes of workspace and cache and compare them with dvc.lock and the ledger", _verify
    )
    command.add_argument("--head", metavar="HASH", help="hash of a record, noted earlier; it must still exist")
    command.add_argument("--whole-cache", action="store_true", help="also hash cache files that dvc.lock does not name")
    command = add("diff", "compare the freeze plans of two commits, branches or experiments", _diff)
    command.add_argument("old", help="a commit, branch, tag or experiment, or the word workspace")
    command.add_argument("new", nargs="?", default=diff.HERE, help="another (default: workspace)")
    export.add_arguments(add("export", "write the records as RO-Crate, OpenLineage or SLSA provenance", export.run))
    add("record", "record what DVC has locked since the ledger's last entry", _record)
    add("head", "number and hash of the ledger's newest record", _head)
    return parser


def _show(arguments: argparse.Namespace) -> int:
    with open_project(arguments.project) as project:
        answer = show.lineage(_universe(project), arguments.subject)
    _say(answer, show.text(answer), arguments.json)
    return FINE


def _why(arguments: argparse.Namespace) -> int:
    with open_project(arguments.project) as project:
        answer = why.why(_universe(project), arguments.stage)
    _say(answer, why.text(answer), arguments.json)
    return FINE


def _verify(arguments: argparse.Namespace) -> int:
    with open_project(arguments.project) as project:
        report = verify(project, arguments.head, arguments.whole_cache)
        newest = ledger.head(project.ledger)
    answer = {
        "ok": not report.mismatches,
        "mismatches": [asdict(mismatch) for mismatch in report.mismatches],
        "notes": report.notes,
        "checked": report.checked,
        "head": asdict(newest) if newest else None,
    }
    _say(answer, _report_text(report), arguments.json)
    return NOT_SO if report.mismatches else FINE


def _report_text(report: Report) -> str:
    lines = [str(mismatch) for mismatch in report.mismatches]
    lines += [f"note: {note}" for note in report.notes]
    counts = ", ".join(f"{count} {what}" for what, count in report.checked.items())
    found = f"{len(report.mismatches)} mismatches" if report.mismatches else "everything is what was made"
    return "\n".join([*lines, f"checked {counts or 'nothing: no stage has run'}: {found}"])


def _diff(arguments: argparse.Namespace) -> int:
    with open_project(arguments.project) as project:
        answer = diff.diff(project, arguments.old, arguments.new)
    _say(answer, diff.text(answer), arguments.json)
    return FINE


def _record(arguments: argparse.Namespace) -> int:
    with open_project(arguments.project) as project:
        recorded = record_all(project.root)
    _say({"recorded": recorded}, f"recorded: {', '.join(recorded) or 'nothing new'}", arguments.json)
    return FINE


def _head(arguments: argparse.Namespace) -> int:
    with open_project(arguments.project) as project:
        newest = ledger.head(run_record.ledger_of(project.root))
    if newest is None:
        return _fail("the ledger is empty: DVC has run no stage here", NOT_SO)
    _say(asdict(newest), f"{newest.seq} {newest.sha256}", arguments.json)
    return FINE


def _universe(project: Project) -> Universe:
    return Universe(project, ledger.read(project.ledger))


def _say(answer: Any, text: str, as_json: bool) -> None:
    print(json.dumps(answer, indent=2, ensure_ascii=False) if as_json else text)


def _fail(message: str, status: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
