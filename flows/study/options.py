"""What both ways of running a study are told on their command lines."""

import argparse
from pathlib import Path

from flows.study.description import DESCRIPTION


def parser(name: str, described: str | None, examples: str) -> argparse.ArgumentParser:
    """A parser that knows what is studied, where that lies, and where the tables go.

    Args:
        name: of the program.
        described: what it does.
        examples: of its use, and its exit statuses.
    """
    made = argparse.ArgumentParser(
        prog=name, description=described, epilog=examples, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--description", type=Path, default=DESCRIPTION, help="the study (flows/study.yaml)")
    made.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the datasets")
    made.add_argument("--models", type=Path, default=Path("../shared/models"), help="folder of the models")
    made.add_argument("--out", type=Path, default=Path("reports/study"), help="folder of the tables and figures")
    made.add_argument("--data-sets", nargs="+", default=[], metavar="NAME", help="only these datasets")
    return made
