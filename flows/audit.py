"""Verify the lineage of everything in the workspace, for schedules: a mismatch fails the run."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefect import State, flow, get_run_logger
from prefect.states import Completed

from flows import running
from flows.lineage.project import open_project
from flows.lineage.verify import verify
from salf.errors import UserError


@flow(name="salf-audit", timeout_seconds=6 * 3600.0)
def audit(project: Path = Path("."), wait: bool = False) -> State[Any]:
    """Hash everything again and compare it with what was recorded; any mismatch fails this run.

    Args:
        project: the folder that holds `dvc.yaml`.
        wait: wait for another run in this folder instead of refusing.
    """
    project = project.resolve()
    try:
        with running.workspace(project, wait), open_project(project) as opened:
            report = verify(opened)
    except UserError as error:
        return running.failed(str(error), "Refused")
    if report.ok:
        line = report.text().splitlines()[-1]
        if report.head:  # noted here, a later cut of the ledger can be proven (verify --head)
            line += f"; the ledger's newest record is {report.head.sha256}"
        get_run_logger().info(line)
        return Completed(message=line)
    for mismatch in report.mismatches:
        get_run_logger().error(str(mismatch))
    return running.failed(f"{len(report.mismatches)} mismatches: {report.mismatches[0]}", "Mismatch")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the audit from a command line; exit status 0 fine, 1 a mismatch, 2 refused."""
    example = "example:\n  python -m flows.audit --wait    after the run that is active in this folder"
    text = "Verify the lineage of everything in the workspace."
    parser = running.command_line("audit", text, example, of_stages=False)
    return running.run_flow(audit, **vars(parser.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
