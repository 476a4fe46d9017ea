"""Run a study: fine-tune above every wanted boundary and save each result; with --analyse: analyse all results.

A second call resumes where the first one stopped: it skips results in the tables, from whatever machine they are.
"""

import argparse
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from stages.common.command import exit_code
from stages.study.analysis import analyse
from stages.study.description import DESCRIPTION, read_description
from stages.study.progress import Progress
from stages.study.runner import Runner
from stages.study.settings import Places
from stages.study.tables import Tables, sole_writer

_EXAMPLES = """examples:
  python -m stages.study                                   the study of stages/study/study.yaml, into reports/study
  python -m stages.study --budget-hours 2 --workers 4      stop after two hours
  python -m stages.study --data-sets trec --plan           show what exists and what is missing
  python -m stages.study --analyse --page docs/method.md   only the analysis, from the tables
  python -m stages.study --only-prepare                    make models and data, to copy to another machine
exit status: 0 done or out of time, 1 a job failed, 2 the request was refused, 130 interrupted
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run, show or analyse a study (see ``--help``)."""
    given = _parser().parse_args(argv)
    if given.analyse:
        print(analyse(given.out, given.page, given.resamples))
        return
    faults = _run(given)
    for fault in faults:
        print(f"error: {fault}", file=sys.stderr)
    if faults:
        raise SystemExit(1)


def _run(given: argparse.Namespace) -> list[str]:
    """Run what is missing, or show it; return what failed."""
    description = read_description(given.description, given.data_sets)
    places = Places(Path().resolve(), given.data.resolve(), given.models.resolve())
    if given.plan:
        print(Progress(description, places, Tables(given.out)).outlook())
        return []
    deadline = time.monotonic() + 3600 * (given.budget_hours or description.budget_hours)
    with sole_writer(given.out), sole_writer(given.work):
        progress = Progress(description, places, Tables(given.out))
        print(progress.outlook(), flush=True)
        runner = Runner(progress, given.work.resolve(), given.workers, deadline)
        faults = runner.run_all(only_prepare=given.only_prepare)
    print(progress.outlook(), flush=True)
    return faults


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m stages.study",
        description=__doc__,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--out", type=Path, default=Path("reports/study"), help="folder of tables and figures (reports/study)")
    run = parser.add_argument_group("running").add_argument
    run("--description", type=Path, default=DESCRIPTION, help=f"the study ({DESCRIPTION})")
    run("--data", type=Path, default=Path("../shared/data"), help="folder of datasets (../shared/data)")
    run("--models", type=Path, default=Path("../shared/models"), help="folder of models (../shared/models)")
    run("--data-sets", nargs="+", default=[], metavar="NAME", help="only these datasets")
    run("--budget-hours", type=float, metavar="HOURS", help="replaces the description's budget")
    run("--workers", type=_count, default=1, metavar="N", help="number of processes (1)")
    run("--work", type=Path, default=Path("data/study"), help="folder of intermediate results (data/study)")
    run("--only-prepare", action="store_true", help="make only base models and data")
    run("--plan", action="store_true", help="show what exists and what is missing, and run nothing")
    analysis = parser.add_argument_group("analysis").add_argument
    analysis("--analyse", action="store_true", help="only analyse the tables")
    analysis("--page", type=Path, nargs="+", default=[], help="pages whose marked parts are updated")
    analysis("--resamples", type=_count, default=10000, help="resamples of examples and seeds (10000)")
    return parser


def _count(word: str) -> int:
    if not word.isdecimal() or int(word) < 1:
        raise argparse.ArgumentTypeError(f"{word!r}: expected a number from 1 on")
    return int(word)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an exit that stops the workers
    if "--plan" in sys.argv:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # --plan | head: its reader may have seen enough
    sys.exit(exit_code(main))
