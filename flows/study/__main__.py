"""Run a study as DVC experiments, save each result, then analyse them all.

A second call resumes where the first one stopped: it skips results in the tables, from whatever machine they are.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flows.running import run_flow
from flows.study import options
from flows.study.description import StudyError, only, read_description
from flows.study.flow import study
from flows.study.outlook import outlook
from flows.study.progress import Progress
from flows.study.settings import Places
from flows.study.tables import Tables

_EXAMPLES = """examples:
  python -m flows.study                             the study of flows/study.yaml, into reports/study
  python -m flows.study --budget-hours 2            stop after two hours
  python -m flows.study --data-sets trec --plan     only show what is missing; nothing is run
exit status: 0 done or the budget is spent, 1 an experiment failed, 2 the request was refused, 130 interrupted
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the study from a command line; returns the exit status (see ``--help``)."""
    given = vars(_parser().parse_args(argv))
    try:
        if given.pop("plan"):
            return _tell(given)
        return run_flow(study, **given)
    except KeyboardInterrupt:
        print("error: interrupted; run again to resume", file=sys.stderr)
        return 130


def _tell(given: dict[str, Any]) -> int:
    """Print what there is and what is left."""
    try:
        wanted = only(read_description(given["description"]), given["data_sets"])
        places = Places(Path().resolve(), given["data"], given["models"])
        print(outlook(Progress(wanted, places, Tables(given["out"]), given["same_code"])))
    except StudyError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = options.parser("python -m flows.study", __doc__, _EXAMPLES)
    parser.add_argument("--budget-hours", type=float, metavar="HOURS", help="replaces the budget of the description")
    parser.add_argument("--side-by-side", type=int, default=0, metavar="N", help="experiments at once (0: auto)")
    parser.add_argument("--same-code", action="store_true", help="repeat results of other versions of the stages")
    parser.add_argument("--keep", action="store_true", help="keep experiments, with their models in DVC's cache")
    parser.add_argument("--plan", action="store_true", help="show what exists and what is missing, and run nothing")
    parser.add_argument("--wait", action="store_true", help="wait for a run that is active in this folder")
    return parser


if __name__ == "__main__":
    sys.exit(main())
